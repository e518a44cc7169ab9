"""Loads the native libraries, once, and gives the ops of ``torch.ops.npy`` their fakes.

``lib`` holds libnpy_core.so, which knows no torch, and a folder per minor release of torch: the ops
and the bindings, which load with that release only.
"""

import re
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

import torch

if TYPE_CHECKING:
    from torchnpy import _C

__all__ = ["_C"]

_LIB = Path(__file__).parent / "lib"
_HOW_TO_BUILD = "pip install --no-deps --force-reinstall . (in torchnpy's source; docs/install.md)"


def _find_pair() -> tuple[Path, Path]:
    """The ops and the bindings for the torch that is imported.

    Raises:
        ImportError: The package holds none for this torch, or none for this Python.
    """
    if not hasattr(torch, "__version__"):
        raise ImportError(
            f"torchnpy: expected torch but found only a folder of its name, {torch.__path__[0]}, "
            "as an uninstallation leaves; remove the folder and install torch"
        )
    release = "".join(re.findall(r"^\d+\.\d+", torch.__version__))  # also of 2.13rc1
    folder = _LIB / f"torch-{release}"
    if not folder.is_dir():
        held = sorted((path.name[6:] for path in _LIB.glob("torch-*")), key=_version_key)
        if not held:
            raise ImportError(
                f"torchnpy: expected libraries in {_LIB} but found none; build them: "
                f"{_HOW_TO_BUILD}"
            )
        raise ImportError(
            f"torchnpy: expected torch {', '.join(held)} (what {_LIB} holds) but found "
            f"torch {torch.__version__}; install one of those, or build for yours: {_HOW_TO_BUILD}"
        )
    for suffix in EXTENSION_SUFFIXES:
        bindings = folder / f"_C{suffix}"
        if bindings.is_file():
            return folder / "libtorchnpy.so", bindings
    held = sorted(path.name for path in folder.glob("_C.*"))
    raise ImportError(
        f"torchnpy: expected {folder.name}/_C{EXTENSION_SUFFIXES[0]}, for this Python, but found "
        f"{', '.join(held) or 'none'}; install the wheel of this Python, or build: {_HOW_TO_BUILD}"
    )


def _version_key(release: str) -> list[int]:
    return [int(part) for part in release.split(".") if part.isdigit()]


def _load_libraries() -> ModuleType:
    ops, path = _find_pair()
    try:
        torch.ops.load_library(str(ops))  # type: ignore[no-untyped-call]
        name = "torchnpy._C"
        loader = ExtensionFileLoader(name, str(path))
        spec = spec_from_file_location(name, path, loader=loader)
        assert spec is not None
        bindings = module_from_spec(spec)
        sys.modules[name] = bindings
        loader.exec_module(bindings)
    except (OSError, ImportError) as error:
        sys.modules.pop("torchnpy._C", None)
        raise ImportError(
            f"torchnpy: expected {ops.parent} to load with torch {torch.__version__} but found: "
            f"{error.__cause__ or error}; docs/install.md says what to do"  # torch wraps the reason
        ) from error
    return bindings


def _trust_certifi() -> None:
    """Takes certifi's certificates where the system has none, as slim containers do."""
    if not _C.ca_bundle():
        try:
            from certifi import where

            _C.set_fallback_ca_bundle(where())
        except (ImportError, OSError):  # none, or one without its file
            return


if not TYPE_CHECKING:
    _C = _load_libraries()
_trust_certifi()


def _data_dependent(op: str) -> NoReturn:
    # torch.compile takes this as "call it for real": it breaks the graph instead of failing.
    from torch._subclasses.fake_tensor import UnsupportedOperatorException

    raise UnsupportedOperatorException(getattr(torch.ops.npy, op).default)


def _fake_load(url: str) -> torch.Tensor:
    _data_dependent("load")


def _fake_load_rows(url: str, start: int, stop: int) -> torch.Tensor:
    _data_dependent("load_rows")


def _fake_load_many(urls: list[str]) -> list[torch.Tensor]:
    _data_dependent("load_many")


def _fake_load_npz(url: str) -> dict[str, torch.Tensor]:
    _data_dependent("load_npz")


def _fake_load_npz_keys(url: str, keys: list[str]) -> list[torch.Tensor]:
    _data_dependent("load_npz_keys")


def _fake_npz_keys(url: str) -> list[str]:
    _data_dependent("npz_keys")


def _fake_header(url: str) -> tuple[str, list[int], bool, int]:
    _data_dependent("header")


def _fake_fetch(url: str, offset: int = 0, nbytes: int = -1) -> torch.Tensor:
    size = nbytes if nbytes >= 0 else torch.library.get_ctx().new_dynamic_size()
    return torch.empty(size, dtype=torch.uint8)


def _fake_decode(data: torch.Tensor) -> torch.Tensor:
    _data_dependent("decode")


# Writing breaks the graph, too: from inside one a call without a result would be dropped.
def _fake_save(url: str, array: torch.Tensor) -> None:
    _data_dependent("save")


def _fake_append(path: str, rows: torch.Tensor) -> None:
    _data_dependent("append")


# In Python: a Meta kernel of an op without tensor arguments is never reached.
for _fake in (
    _fake_load,
    _fake_load_rows,
    _fake_load_many,
    _fake_load_npz,
    _fake_load_npz_keys,
    _fake_npz_keys,
    _fake_header,
    _fake_fetch,
    _fake_decode,
    _fake_save,
    _fake_append,
):
    torch.library.register_fake(_fake.__name__.replace("_fake_", "npy::"), _fake)
