"""Datasets for torch.utils.data.DataLoader."""

from torchnpy.data.concat import concat
from torchnpy.data.listing import urls_below, urls_in_manifest, urls_matching
from torchnpy.data.npy import NpyDataset
from torchnpy.data.npz import NpzDataset
from torchnpy.data.rows import NpyRowDataset
from torchnpy.data.stream import NpyStream
from torchnpy.data.urls import UrlList

__all__ = [
    "NpyDataset",
    "NpyRowDataset",
    "NpyStream",
    "NpzDataset",
    "UrlList",
    "concat",
    "urls_below",
    "urls_in_manifest",
    "urls_matching",
]
