"""Chroots of Debian and Ubuntu with chosen packages, in build/check."""

import hashlib
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path

from shared import SOURCE, emptied

WORK = SOURCE / "build" / "check"
UBUNTU = ("jammy", "noble")
UBUNTU_MIRROR = "http://archive.ubuntu.com/ubuntu"
# The keys of Ubuntu's archive, which Debian 12 does not bring.
UBUNTU_KEYRING = "pool/main/u/ubuntu-keyring/ubuntu-keyring_2023.11.28.1_all.deb"
UBUNTU_KEYRING_SHA256 = "36de43b15853ccae0028e9a767613770c704833f82586f28eb262f0311adb8a8"


def clean_environment() -> dict[str, str]:
    """Returns the variables without those that lead to other packages and libraries."""
    foreign = ("PYTHON", "LD_", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def run(command: Sequence[object], stdout: int | None = None) -> str:
    """Returns what the command prints into a pipe, if `stdout` is one."""
    words = list(map(str, command))
    done = subprocess.run(words, env=clean_environment(), stdout=stdout, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: failed, see above")
    return done.stdout


def output_of(command: Sequence[object]) -> str:
    return run(command, subprocess.PIPE)


def make_system(
    suite: str, name: str, packages: Iterable[str], options: Sequence[str] = ("--variant=minbase",)
) -> Path:
    """Returns the chroot `name` of this release with these packages, which is made once.

    `options` are those of mmdebstrap.
    """
    root, complete = WORK / name, WORK / f"{name}.packages"
    wanted = " ".join(packages)
    if not complete.exists() or complete.read_text() != wanted:
        complete.unlink(missing_ok=True)
        include = f"--include={wanted.replace(' ', ',')}"
        sources = find_ubuntu(suite) if suite in UBUNTU else [find_debian()]
        run(["mmdebstrap", *options, include, suite, emptied(root), *sources])
        for file in ("hosts", "resolv.conf"):
            (root / "etc" / file).unlink(missing_ok=True)
            shutil.copy(f"/etc/{file}", root / "etc" / file)
        complete.write_text(wanted)
    return root


def find_debian() -> str:
    """Returns the archive of Debian that apt uses here, or the public one."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Label: Debian"]
    found = subprocess.run(command, capture_output=True, text=True).stdout.split()
    return found[0] if found else "http://deb.debian.org/debian"


def find_ubuntu(suite: str) -> list[str]:
    """Returns the lines of apt's sources for this release with its updates."""
    keys = WORK / "ubuntu-archive-keyring.gpg"
    if not keys.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(f"{UBUNTU_MIRROR}/{UBUNTU_KEYRING}", timeout=60) as answer:
            package = answer.read()
        found = hashlib.sha256(package).hexdigest()
        if found != UBUNTU_KEYRING_SHA256:
            raise SystemExit(
                f"{UBUNTU_KEYRING}: expected SHA-256 {UBUNTU_KEYRING_SHA256} but found {found}"
            )
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "keyring.deb").write_bytes(package)
            run(["dpkg-deb", "--extract", f"{folder}/keyring.deb", folder])
            shutil.copy(f"{folder}/usr/share/keyrings/{keys.name}", keys)
    pockets = ("", "-updates", "-security")
    return [
        f"deb [signed-by={keys}] {UBUNTU_MIRROR} {suite}{pocket} main universe"
        for pocket in pockets
    ]


def name_of(root: Path) -> str:
    """Returns such as: Debian 12."""
    lines = (root / "etc" / "os-release").read_text().splitlines()
    values = {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}
    return f"{values['NAME'].split()[0]} {values['VERSION_ID']}"


def enter(root: Path, paths: Iterable[Path]) -> list[object]:
    """Returns the command before one that runs in the chroot; `paths` as for tools/in_chroot."""
    return [SOURCE / "tools" / "in_chroot", root, *paths, "--"]
