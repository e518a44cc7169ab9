"""NumPy files from files, HTTP and S3 as torch tensors.

``load`` and ``load_npy`` give tensors; ``torchnpy.data`` feeds a DataLoader; ``torch.ops.npy`` has
the same verbs for scripted models and C++.
"""

from torchnpy.client import Client, ObjectInfo, default_client, set_default_client
from torchnpy.errors import FormatError, LockError, TransportError, UnsupportedError
from torchnpy.io import Array, NpyHeader, header, load, load_many, load_npy, load_rows

__version__ = "0.1.0"

__all__ = [
    "Array",
    "Client",
    "FormatError",
    "LockError",
    "NpyHeader",
    "ObjectInfo",
    "TransportError",
    "UnsupportedError",
    "default_client",
    "header",
    "load",
    "load_many",
    "load_npy",
    "load_rows",
    "set_default_client",
]
