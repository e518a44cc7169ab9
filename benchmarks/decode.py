"""NPY to torch tensors from what is on this machine: bytes in memory, a small file, a large one.

The limit is a C++ module that knows the shapes and checks nothing (raw_decode.cpp).
"""

import importlib.util
import io
import sysconfig
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from _harness import Contender, Row, compile_cpp, parse_args, run

IMAGE_SHAPE = (480, 640, 3)  # 0.9 MB
SMALL_SHAPE = (3, 100, 100)  # 30 kB
NPY_HEADER_NBYTES = 128

Work = Callable[[], object]


def main() -> None:
    args = parse_args(__doc__.split("\n")[0], "decode")
    warnings.filterwarnings("ignore", message="The given buffer is not writable")
    random = np.random.default_rng(0)
    calls_s = 0.02 if args.quick else 0.2
    with tempfile.TemporaryDirectory() as folder:
        image = random.integers(0, 256, IMAGE_SHAPE, np.uint8)
        small = Files(Path(folder, "small"), random.integers(0, 256, SMALL_SHAPE, np.uint8))
        large = Files(Path(folder, "large"), random.integers(0, 256, 64 << 20, np.uint8))
        rows = [bytes_row(image, calls_s), small_file_row(small, calls_s)]
        rows.append(large_file_row(large, calls_s))
        run(rows, args)


class Files:
    """The same array in each format; `stem` is a path without its extension."""

    def __init__(self, stem: Path, array: np.ndarray) -> None:
        self.shape = array.shape
        self.npy, self.pt = str(stem.with_suffix(".npy")), str(stem.with_suffix(".pt"))
        self.safetensors = str(stem.with_suffix(".safetensors"))
        np.save(self.npy, array)
        torch.save(torch.from_numpy(array), self.pt)
        try:
            from safetensors.torch import save_file
        except ImportError:
            return
        save_file({"array": torch.from_numpy(array)}, self.safetensors)

    def load_safetensors(self) -> Work:
        from safetensors.torch import load_file

        return lambda: load_file(self.safetensors)["array"]


def bytes_row(image: np.ndarray, calls_s: float) -> Row:
    file = io.BytesIO()
    np.save(file, image)
    data = file.getvalue()

    def spdl() -> Work:
        import spdl.io

        return lambda: torch.from_numpy(spdl.io.load_npy(data))

    contenders = [
        Contender("torchnpy", "ours", lambda: lambda: torchnpy().load_npy(data)),
        Contender("spdl", "peer", spdl),
        Contender("np.load", "peer", lambda: lambda: torch.from_numpy(np.load(io.BytesIO(data)))),
        Contender(  # parses nothing, and gives no shape
            "torch.frombuffer",
            "peer",
            lambda: lambda: torch.frombuffer(data, dtype=torch.uint8, offset=NPY_HEADER_NBYTES),
        ),
        Contender("C++ over bytes", "limit", lambda: limit("over_bytes", data)),
    ]
    title = "`load_npy(bytes)`, an image of 0.9 MB"
    return Row("bytes", title, "us", contenders, check=check(image.shape), calls_s=calls_s)


def small_file_row(files: Files, calls_s: float) -> Row:
    def fromfile() -> Work:
        def work() -> torch.Tensor:
            return torch.from_numpy(np.fromfile(files.npy, np.uint8, offset=NPY_HEADER_NBYTES))

        return work

    contenders = [
        Contender("torchnpy", "ours", lambda: lambda: torchnpy().load(files.npy)),
        Contender("np.load", "peer", lambda: lambda: torch.from_numpy(np.load(files.npy))),
        Contender("np.fromfile", "peer", fromfile),  # parses nothing
        Contender("safetensors", "peer", files.load_safetensors),
        Contender("torch.load", "peer", lambda: lambda: torch.load(files.pt)),
        Contender("C++ read", "limit", lambda: limit("read_file", files.npy)),
    ]
    title = "a local file of 30 kB"
    return Row("small_file", title, "us", contenders, check=check(files.shape), calls_s=calls_s)


def large_file_row(files: Files, calls_s: float) -> Row:
    def mapped() -> torch.Tensor:
        return torch.from_numpy(np.load(files.npy, mmap_mode="c"))

    contenders = [
        Contender("torchnpy", "ours", lambda: lambda: torchnpy().load(files.npy)),
        Contender("np.load", "peer", lambda: lambda: torch.from_numpy(np.load(files.npy))),
        Contender("np.load(mmap)", "peer", lambda: mapped),
        Contender("safetensors", "peer", files.load_safetensors),
        Contender("torch.load(mmap)", "peer", lambda: lambda: torch.load(files.pt, mmap=True)),
        Contender("C++ mmap", "limit", lambda: limit("map_file", files.npy)),
    ]
    title = "a local file of 64 MiB"
    return Row("large_file", title, "us", contenders, check=check(files.shape), calls_s=calls_s)


def check(shape: tuple[int, ...]) -> Callable[[object], None]:
    def is_right(tensor: object) -> None:
        assert isinstance(tensor, torch.Tensor)
        assert tensor.dtype == torch.uint8
        assert tensor.shape == shape or tensor.shape == (np.prod(shape),)

    return is_right


def limit(function: str, argument: object) -> Work:
    work = getattr(raw_decode(), function)
    return lambda: work(argument)


@cache
def raw_decode() -> ModuleType:
    """The compiled module; its first compilation takes half a minute."""
    from torch.utils.cpp_extension import include_paths, library_paths

    include = [*include_paths(), sysconfig.get_path("include")]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    flags = ["-shared", "-fPIC", abi, *(f"-isystem{path}" for path in include)]
    flags += [f"-L{path}" for path in library_paths()]
    flags += [f"-Wl,-rpath,{path}" for path in library_paths()]
    flags += ["-ltorch_python", "-ltorch_cpu", "-lc10"]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    program = compile_cpp("raw_decode.cpp", flags, suffix=suffix)
    spec = importlib.util.spec_from_file_location("raw_decode", program)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def torchnpy() -> ModuleType:
    import torchnpy

    return torchnpy


if __name__ == "__main__":
    main()
