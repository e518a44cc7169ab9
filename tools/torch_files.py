"""What compiling needs of a version of torch, without the gigabytes of a CUDA build."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from shared import SOURCE, emptied, only_wheel

WORK = SOURCE / "build" / "wheel"
# What the ops and the bindings are compiled and linked with.
TORCH_PARTS = re.compile(
    r"torch/(include/|share/cmake/|version\.py$|lib/lib(c10|shm|torch|torch_cpu|torch_python)\.so$)"
)


def fetch_torch(version: str) -> Path:
    """Returns the folder of this version of torch, out of its wheel for this interpreter.

    The headers and libtorch_cpu.so are the same for all interpreters; of libtorch_python.so, which
    is not, linking takes the name alone.
    """
    root = WORK / f"torch-{version}"
    complete = root / "complete"
    if not complete.exists():
        download = emptied(WORK / "download")
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        if subprocess.run([*pip, "--dest", download, f"torch=={version}"]).returncode:
            raise SystemExit(f"torch {version}: expected a wheel but found none, see above")
        unpack_torch(only_wheel(download, "*.whl", "see above"), emptied(root))
        shutil.rmtree(download)
        complete.touch()
    return root / "torch"


def unpack_torch(wheel: Path, root: Path) -> None:
    """Unpacks what compiling needs of torch's wheel."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(root, [n for n in archive.namelist() if TORCH_PARTS.match(n)])
