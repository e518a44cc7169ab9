"""Datasets for torch.utils.data.DataLoader."""

from torchnpy.data.npy import NpyDataset
from torchnpy.data.npz import NpzDataset
from torchnpy.data.rows import NpyRowDataset

__all__ = ["NpyDataset", "NpyRowDataset", "NpzDataset"]
