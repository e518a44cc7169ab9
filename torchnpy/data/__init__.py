"""Datasets for torch.utils.data.DataLoader."""

from torchnpy.data.npy import NpyDataset

__all__ = ["NpyDataset"]
