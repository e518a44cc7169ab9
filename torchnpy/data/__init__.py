"""Datasets for torch.utils.data.DataLoader."""

from torchnpy.data.npy import NpyDataset
from torchnpy.data.npz import NpzDataset

__all__ = ["NpyDataset", "NpzDataset"]
