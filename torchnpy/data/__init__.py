"""Datasets for torch.utils.data.DataLoader."""

from torchnpy.data.npy import NpyDataset
from torchnpy.data.npz import NpzDataset
from torchnpy.data.stream import NpyStream

__all__ = ["NpyDataset", "NpyStream", "NpzDataset"]
