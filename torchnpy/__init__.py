"""NumPy files from files, HTTP and S3 as torch tensors.

``load`` and ``load_npy`` give tensors; ``torchnpy.data`` feeds a DataLoader; ``torch.ops.npy`` has
the same verbs for scripted models and C++.
"""

from torchnpy.append import (
    NpyAppendArray,
    ensure_appendable,
    is_appendable,
    needs_recovery,
    recover,
)
from torchnpy.client import Cache, Client, ObjectInfo, default_client, set_default_client
from torchnpy.errors import FormatError, LockError, TransportError, UnsupportedError
from torchnpy.io import header, load, load_many, load_npy, load_rows
from torchnpy.npz import DEFAULT_LIMITS, NpzFile, NpzLimits, load_npz, open_npz
from torchnpy.sources import Array, NpyHeader
from torchnpy.text import loadtxt, savetxt
from torchnpy.write import save, savez, savez_compressed

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_LIMITS",
    "Array",
    "Cache",
    "Client",
    "FormatError",
    "LockError",
    "NpyAppendArray",
    "NpyHeader",
    "NpzFile",
    "NpzLimits",
    "ObjectInfo",
    "TransportError",
    "UnsupportedError",
    "default_client",
    "ensure_appendable",
    "header",
    "is_appendable",
    "load",
    "load_many",
    "load_npy",
    "load_npz",
    "load_rows",
    "loadtxt",
    "needs_recovery",
    "open_npz",
    "recover",
    "save",
    "savetxt",
    "savez",
    "savez_compressed",
    "set_default_client",
]
