"""What a bug report needs to know about an installation, and advice.

``torchnpy doctor`` and ``python -m torchnpy doctor`` print it. Where ``import torchnpy`` fails,
``python .../torchnpy/doctor.py`` does: this module needs only the standard library. It opens no
connection, runs no program and prints no secret.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import re
import resource
import runpy
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

Section: TypeAlias = dict[str, Any]
Report: TypeAlias = dict[str, Any]

_PIPE_CLOSED = 141
_MIN_OPEN_FILES, _MIN_MAPS, _MIN_SHM_NBYTES = 4096, 65530, 1 << 30
_METADATA_HOST = "169.254.169.254"
_HOW_TO_BUILD = "pip install --no-deps --force-reinstall . (in torchnpy's source)"
_PACKAGES = ("numpy", "boto3", "certifi", "click", "rich", "ray", "torchdata")
# Their values are shown. Of any other variable of AWS only the name is.
_SHOWN_VARIABLES = (
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_STS",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CURL_CA_BUNDLE",
)
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def _env(name: str) -> str | None:
    """None where it is unset or empty, which the library does not tell apart."""
    return os.environ.get(name) or None


def _read_text(path: Path) -> str:
    """Empty where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def mask_url(text: str) -> str:
    """``text`` without user, password, query and fragment."""
    found = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text)
    scheme = found[0] if found else ""
    _, at, host = text[len(scheme) :].rpartition("@")
    shown = re.split(r"[?#]", host)[0]
    return f"{scheme}{'***@' if at else ''}{shown}{'?***' if shown != host else ''}"


# What is installed


def _package_folder() -> Path:
    return Path(getattr(sys.modules.get("torchnpy"), "__file__", None) or __file__).parent


def _read_version() -> str | None:
    """That of the package beside this file, which need not be importable."""
    text = _read_text(_package_folder() / "__init__.py")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    return found[1] if found else None


def _minor(version: str) -> str:
    """ "2.13" of "2.13.0+cpu"."""
    found = re.match(r"\d+\.\d+", version)
    return found[0] if found else version


def _collect_torch() -> Section:
    try:
        import torch

        version, folder = str(torch.__version__), Path(str(torch.__file__)).parent
    except Exception as error:  # also of a folder that an uninstallation left
        return {"version": None, "import_error": _describe(error)}
    builds = {name: getattr(torch.version, name, None) for name in ("cuda", "hip", "xpu")}
    accelerator = "none"
    try:
        if torch.accelerator.is_available():
            device = torch.accelerator.current_accelerator()
            accelerator = f"{device} ({torch.accelerator.device_count()})"
    except Exception as error:
        accelerator = _describe(error)
    return {
        "version": version,
        "path": str(folder),
        "build": ", ".join(f"{name} {value}" for name, value in builds.items() if value) or "cpu",
        "accelerator": accelerator,
        "is_conda": any(Path(sys.prefix, "conda-meta").glob("pytorch-[0-9]*.json")),
        "import_error": None,
    }


def _collect_package() -> tuple[Section, Any]:
    """The section, and the bindings, or None where they cannot be imported."""
    bindings, import_error = None, None
    try:
        from torchnpy._ops import _C

        bindings = _C
    except Exception as error:
        import_error = _describe(error)
    folder = _package_folder()
    minors = [path.name.removeprefix("torch-") for path in (folder / "lib").glob("torch-*")]
    section = {
        "version": _read_version(),
        "path": str(folder),
        "torch_minors": sorted(minors, key=lambda minor: [*map(int, re.findall(r"\d+", minor))]),
        "import_error": import_error,
    }
    return section, bindings


def _collect_packages() -> Section:
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


# The machine


def _cpus_of(folder: Path) -> float:
    quota, _, period = _read_text(folder / "cpu.max").strip().partition(" ")
    if not quota:  # of control groups of version 1
        quota = _read_text(folder / "cpu.cfs_quota_us").strip()
        period = _read_text(folder / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else math.inf


def _memory_of(folder: Path) -> float:
    text = _read_text(folder / "memory.max") or _read_text(folder / "memory.limit_in_bytes")
    nbytes = int(text) if text.strip().isdigit() else 1 << 62
    return nbytes if nbytes < 1 << 60 else math.inf  # version 1 writes a huge number for none


def read_cgroup(root: Path = Path("/")) -> Section:
    """The CPUs and the memory that the control group and those above it allow; None: all."""
    cpus = memory = math.inf
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):  # "" in version 2
            mount = root / "sys/fs/cgroup" / controller
            place = mount / path.strip("/")
            for folder in (place, *place.parents):
                if not folder.is_relative_to(mount):
                    break
                cpus, memory = min(cpus, _cpus_of(folder)), min(memory, _memory_of(folder))
    return {
        "cgroup_cpus": None if math.isinf(cpus) else round(cpus, 2),
        "cgroup_memory_nbytes": None if math.isinf(memory) else int(memory),
    }


def _collect_system() -> Section:
    libc = ""
    with contextlib.suppress(ValueError, OSError):  # another libc than glibc does not know it
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    return {
        "platform": " ".join(os.uname()[i] for i in (0, 2, 4)),
        "machine": platform.machine(),
        "libc": libc or "not glibc",
        "cpus": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)),
        "memory_nbytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        **read_cgroup(),
    }


def _collect_limits() -> Section:
    limits: Section = {}
    numbers = {
        "open_files": resource.RLIMIT_NOFILE,
        "locked_memory_nbytes": resource.RLIMIT_MEMLOCK,
    }
    for name, number in numbers.items():
        soft, hard = resource.getrlimit(number)
        limits[name] = None if soft == resource.RLIM_INFINITY else soft
        limits[f"hard_{name}"] = None if hard == resource.RLIM_INFINITY else hard
    text = _read_text(Path("/proc/sys/vm/max_map_count")).strip()
    limits["memory_maps"] = int(text) if text.isdigit() else None
    return limits


def _collect_folders() -> Section:
    folders: Section = {}
    cache = _env("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    try:
        temporary = tempfile.gettempdir()
    except OSError:
        temporary = None
    for name, path in (("shm", "/dev/shm"), ("temporary", temporary), ("cache", cache)):
        folders[name] = path
        try:
            usage = shutil.disk_usage(path or "")
        except OSError:
            usage = None
        folders[f"{name}_total_nbytes"] = usage and usage.total
        folders[f"{name}_free_nbytes"] = usage and usage.free
    return folders


# Connections


def count_certificates(path: str) -> int | None:
    """Those in a file, or the hashed names in a folder; None where it cannot be read."""
    try:
        if os.path.isdir(path):
            names = os.listdir(path)
            return sum(re.fullmatch(r"[0-9a-f]{8}\.\d+", name) is not None for name in names)
        data = Path(path).read_bytes()
    except OSError:
        return None
    return len(re.findall(rb"^-----BEGIN (?:TRUSTED )?CERTIFICATE-----", data, re.MULTILINE))


def _collect_tls(bindings: Any) -> Section:
    bundle = bindings.ca_bundle() if bindings else None
    return {"ca_bundle": bundle, "certificates": count_certificates(bundle) if bundle else None}


def _collect_proxies() -> Section:
    names = [name for known in _PROXY_VARIABLES for name in (known, known.upper())]
    return {name: mask_url(value) for name in names if (value := _env(name))}


def _collect_environment() -> Section:
    shown = {name: mask_url(value) for name in _SHOWN_VARIABLES if (value := _env(name))}
    hidden = sorted(name for name in os.environ if name.startswith("AWS_") and _env(name))
    return shown | {name: "(set)" for name in hidden if name not in shown}


def _collect_s3() -> Section:
    # Not by its name, which imports the package: that may be what fails.
    settings = runpy.run_path(str(_package_folder() / "_aws.py"))["AwsSettings"]()
    return {
        "credentials": settings.find_credentials(),
        "profile": settings.profile,
        "region": settings.find_region(),
        "endpoint": mask_url(settings.find_endpoint()),
        "problems": settings.problems,
    }


# Advice


def _advise_on_package(report: Report) -> Iterator[str]:
    package, torch = report["torchnpy"], report["torch"]
    minors, version = package["torch_minors"], torch["version"]
    if torch["import_error"]:
        wanted = " or ".join(minors) or "2.9 or newer"
        yield f"`import torch` fails ({torch['import_error']}); install torch {wanted}"
    elif minors and _minor(version) not in minors:
        yield (
            f"torchnpy: expected torch {' or '.join(minors)} but found {version}; install one of "
            f"those, or build for yours: {_HOW_TO_BUILD}"
        )
    elif package["import_error"]:
        yield (
            f"`import torchnpy` fails ({package['import_error']}); install it anew, or build it "
            f"from source: {_HOW_TO_BUILD}"
        )
    if torch.get("is_conda"):
        yield (
            "torch is conda's, whose C++ libraries may differ from those of PyPI's torch, for "
            "which the wheels are built; if `import torchnpy` fails, build from source with "
            "conda's compilers"
        )
    found = re.fullmatch(r"glibc (\d+)\.(\d+).*", report["system"]["libc"])
    if not found or (int(found[1]), int(found[2])) < (2, 34):
        yield (
            f"libc: expected glibc 2.34 or newer, for which the wheels are built, but found "
            f"{report['system']['libc']}; build from source"
        )


def _advise_on_connections(report: Report) -> Iterator[str]:
    bundle, count = report["tls"]["ca_bundle"], report["tls"]["certificates"]
    if bundle == "":
        yield (
            "expected certificates of authorities for HTTPS but found none; install "
            "ca-certificates, or pip install certifi"
        )
    elif bundle and not count:
        found = "none in it" if count == 0 else "no file or folder that can be read"
        yield (
            f"{bundle}: expected certificates of authorities but found {found}; install "
            "ca-certificates, or correct the variable that names it"
        )
    proxies = {name.lower(): value for name, value in report["proxies"].items()}
    is_proxied = "http_proxy" in proxies or "all_proxy" in proxies
    exceptions = re.split(r"[\s,]+", proxies.get("no_proxy", ""))
    if is_proxied and not {"*", _METADATA_HOST} & set(exceptions):
        yield (
            f"a proxy is set, and no_proxy lacks {_METADATA_HOST}: torchnpy asks the metadata "
            "services of EC2 directly all the same, but other programs do not; add "
            f"{_METADATA_HOST},169.254.170.2 to no_proxy"
        )


def _advise_on_limits(report: Report) -> Iterator[str]:
    limits, folders, system = report["limits"], report["folders"], report["system"]
    soft, hard = limits["open_files"], limits["hard_open_files"]
    if soft is not None and soft < _MIN_OPEN_FILES:
        enough = hard is None or hard >= _MIN_OPEN_FILES
        remedy = (
            f"ulimit -n {_MIN_OPEN_FILES}"
            if enough
            else f"its hard limit is {hard}: docker run --ulimit nofile={_MIN_OPEN_FILES}, or "
            "/etc/security/limits.conf"
        )
        yield (
            f"open files: expected a limit of {_MIN_OPEN_FILES} or more, for batches that wait in "
            f"many workers take one for each tensor, but found {soft}; {remedy}"
        )
    if limits["memory_maps"] is not None and limits["memory_maps"] < _MIN_MAPS:
        yield (
            f"memory maps: expected {_MIN_MAPS} or more, for each mapped file takes one, but found "
            f"{limits['memory_maps']}; sysctl -w vm.max_map_count={_MIN_MAPS}"
        )
    shm = folders["shm_total_nbytes"]
    if shm is None or shm < _MIN_SHM_NBYTES:
        yield (
            f"/dev/shm: expected 1 GiB or more but found {_format_nbytes(shm or 0)}; batches of "
            "equal arrays need none of it, but what the default collate copies in workers does: "
            "docker run --shm-size=8g, in Kubernetes an emptyDir of medium Memory"
        )
    if system["cgroup_cpus"] is not None and system["cgroup_cpus"] < system["usable_cpus"]:
        yield (
            f"the control group gives {system['cgroup_cpus']:g} of {system['usable_cpus']} CPUs, "
            "which programs do not see; take no more workers of a DataLoader, and set "
            f"OMP_NUM_THREADS={max(1, int(system['cgroup_cpus']))}"
        )
    if folders["temporary"] is None:
        yield "expected a folder for temporary files but found none; set TMPDIR to one"


def advise(report: Report) -> list[str]:
    """What to change, a line each."""
    return [
        *_advise_on_package(report),
        *_advise_on_connections(report),
        *report["s3"]["problems"],
        *_advise_on_limits(report),
    ]


# The report


def collect() -> Report:
    """All sections, of JSON's types, and ``advice``. Imports torch and torchnpy."""
    torch = _collect_torch()
    package, bindings = _collect_package()
    report: Report = {
        "torchnpy": package,
        "torch": torch,
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
            "prefix": sys.prefix,
        },
        "system": _collect_system(),
        "libraries": bindings.library_versions() if bindings else {},
        "packages": _collect_packages(),
        "tls": _collect_tls(bindings),
        "proxies": _collect_proxies(),
        "s3": _collect_s3(),
        "environment": _collect_environment(),
        "limits": _collect_limits(),
        "folders": _collect_folders(),
    }
    report["advice"] = advise(report)
    return report


def _format_nbytes(nbytes: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} bytes"


def _format_value(section: str, key: str, value: Any) -> str:
    if value is None:
        is_limit = section == "limits" or key.startswith("cgroup_")
        return "unlimited" if is_limit else "none" if key == "import_error" else "unknown"
    if key.endswith("_nbytes"):
        return _format_nbytes(value)
    text = ", ".join(value) if isinstance(value, list) else str(value) or "none"
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def format_report(report: Report) -> str:
    """The report for people."""
    lines = []
    for name, section in report.items():
        if name == "advice":
            continue
        lines.append(name)
        shown = {key: value for key, value in section.items() if value != [] and key != "problems"}
        for key, value in shown.items():
            label = key.removesuffix("_nbytes")
            lines.append(f"  {label}: {_format_value(name, key, value)}")
        if not shown:
            lines.append("  none")
    lines.append("advice")
    lines += [f"  - {_format_value('', '', line)}" for line in report["advice"]] or ["  none"]
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report; ``--json``: as one JSON object.

    Returns:
        The exit status: 0; 1, ``import torchnpy`` or printing fails; 2, the arguments are wrong;
        141, nobody reads what is printed.
    """
    parser = _Parser("torchnpy doctor", description="What a bug report needs to know, and advice.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    try:
        wanted = parser.parse_args(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about drivers and numpy
        report = collect()
    text = json.dumps(report) if wanted.json else format_report(report)
    encoding = sys.stdout.encoding or "utf-8"  # what collects text in memory has none
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        if isinstance(error, BrokenPipeError):
            return _PIPE_CLOSED
        sys.stderr.write(f"torchnpy doctor: {error}\n")
        return 1
    return 1 if report["torchnpy"]["import_error"] else 0


if __name__ == "__main__":
    if not __package__:
        # A plain script: its folder would give torchnpy/ray.py for Ray.
        _folder = Path(__file__).resolve().parent
        sys.path[:] = [path for path in sys.path if Path(path).resolve() != _folder]
        if str(_folder.parent) not in sys.path:
            sys.path.insert(0, str(_folder.parent))
    sys.exit(main())
