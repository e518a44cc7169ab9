"""What `torchnpy doctor` tells, what it never tells, and what it advises."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from servers.http import ObjectServer
from support import Run, npy, run_script, start_script

import torchnpy as tnp
from torchnpy import doctor

PACKAGE = Path(tnp.__file__).parent
PREFIX = f"{PACKAGE}/share/cmake;{torch.utils.cmake_prefix_path}\n"

WITHOUT_CLICK = """
import sys

class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("click", "rich"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent)
from torchnpy.cli import main
sys.exit(main(sys.argv[1:]))
"""

# Whatever the machine is on which the tests run.
HEALTHY: dict[str, dict[str, Any]] = {
    "torch": {"is_conda": False},
    "system": {"libc": "glibc 2.34", "cgroup_cpus": None},
    "tls": {"ca_bundle": "/ca.pem", "certificates": 1},
    "limits": {"memory_maps": 65530},
    "folders": {"shm_total_nbytes": 1 << 30, "temporary": "/tmp"},
}

Report = dict[str, Any]


@pytest.fixture
def report(run: Run) -> Callable[[], Report]:
    """What --json tells."""
    return lambda: run("doctor", "--json").rows[0]


def advice_on(topic: str, report: Report) -> str:
    """The one line of advice that has the words."""
    (line,) = [line for line in report["advice"] if topic in line]
    return line


def without_free_room(text: str) -> list[str]:
    """The lines, but for those that differ from one moment to the next."""
    return [line for line in text.splitlines() if "_free: " not in line]


# The command


def test_report_is_text_or_json_without_click() -> None:
    text = run_script(WITHOUT_CLICK, "doctor")
    assert text.startswith(f"torchnpy\n  version: {tnp.__version__}\n")
    assert f"\ntorch\n  version: {torch.__version__}\n" in text
    (found,) = map(json.loads, run_script(WITHOUT_CLICK, "doctor", "--json").splitlines())
    assert [line for line in text.splitlines() if not line.startswith(" ")] == list(found)
    verbose = run_script(WITHOUT_CLICK, "--version", "--verbose")
    assert without_free_room(verbose) == without_free_room(text)


def test_version_and_cmake_prefix_are_told_without_click() -> None:
    assert run_script(WITHOUT_CLICK, "--version") == f"torchnpy {tnp.__version__}\n"
    assert run_script(WITHOUT_CLICK, "--cmake-prefix") == PREFIX


def test_other_commands_without_click_say_what_to_install() -> None:
    with start_script(WITHOUT_CLICK, "info", "x.npy") as script:
        status, _, err = script.finish()
    assert (status, err) == (
        1,
        "torchnpy: expected the package click for the command line but found none; "
        "pip install 'torchnpy[cli]'\n",
    )


def test_click_lists_the_command_and_answers_alike(run: Run) -> None:
    text = run("--help").out
    assert "\n  doctor " in text
    assert "--version" in text
    assert "--cmake-prefix" in text
    assert run("--debug", "--version").out == run("--version").out
    assert run("--debug", "--cmake-prefix").out == run("--cmake-prefix").out == PREFIX
    assert (
        run("--debug", "doctor", "--json").rows[0].keys() == run("doctor", "--json").rows[0].keys()
    )


def test_cmake_prefix_has_both_packages() -> None:
    ours, torchs = PREFIX.strip().split(";")
    assert (Path(ours) / "TorchNpy/TorchNpyConfig.cmake").is_file()
    assert (Path(torchs) / "Torch/TorchConfig.cmake").is_file()


def test_installation_without_cmake_package_is_an_error(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tnp, "__file__", str(tmp_path / "torchnpy/__init__.py"))
    ended = run("--cmake-prefix")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == (
        f"torchnpy: {tmp_path}/torchnpy/share/cmake: expected TorchNpy/TorchNpyConfig.cmake but "
        "found none; install torchnpy anew\n"
    )


def test_wrong_arguments_are_one_line(run: Run) -> None:
    ended = run("doctor", "--bogus")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == (
        "torchnpy doctor: unrecognized arguments: --bogus; see torchnpy doctor --help\n"
    )
    ended = run("--profile", "lab", "doctor")
    assert (ended.status, ended.out) == (2, "")
    assert "expected no options of the client but found profile; set the variables" in ended.err


def test_nobody_who_reads_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "torchnpy", "doctor"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, cwd=PACKAGE.parent)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_is_one_line() -> None:
    command = [sys.executable, "-m", "torchnpy", "doctor"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=PACKAGE.parent)
    message = b"torchnpy doctor: [Errno 28] No space left on device\n"
    assert (done.returncode, done.stderr) == (1, message)


# What it tells


def test_report_tells_the_installation_and_the_machine(report: Callable[[], Report]) -> None:
    found = report()
    assert found["torchnpy"]["version"] == tnp.__version__
    assert found["torchnpy"]["path"] == str(PACKAGE)
    assert found["torch"]["path"] == str(Path(torch.__file__).parent)
    assert found["torch"]["build"] == (
        f"cuda {torch.version.cuda}" if torch.version.cuda else "cpu"
    )
    assert found["packages"]["numpy"] == np.__version__
    assert found["system"]["usable_cpus"] == len(os.sched_getaffinity(0))
    assert found["limits"]["open_files"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert found["folders"]["shm_total_nbytes"] == shutil.disk_usage("/dev/shm").total
    libraries = found["libraries"]
    assert {"libcurl", "tls", "zlib"} <= libraries.keys()
    assert all(any(char.isdigit() for char in version) for version in libraries.values())


def test_ca_bundle_is_the_one_that_a_client_takes(
    report: Callable[[], Report],
    monkeypatch: pytest.MonkeyPatch,
    tls_server: ObjectServer,
    ca_file: str,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", ca_file)
    found = report()
    assert found["tls"] == {"ca_bundle": ca_file, "certificates": 1}
    assert not any("certificates" in line for line in found["advice"])
    url = tls_server.put("/x.npy", npy(np.arange(3)))
    assert tnp.load(url, client=tnp.Client(retries=1)).tolist() == [0, 1, 2]


def test_control_groups_above_count_too(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/job/step"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/job/step\n")
    (group / "cpu.max").write_text("max 100000\n")
    (group / "memory.max").write_text("8589934592\n")
    assert doctor.read_cgroup(tmp_path) == {
        "cgroup_cpus": None,
        "cgroup_memory_nbytes": 8 << 30,
    }
    (group.parent / "cpu.max").write_text("150000 100000\n")
    (group.parent / "memory.max").write_text("4294967296\n")
    assert doctor.read_cgroup(tmp_path) == {"cgroup_cpus": 1.5, "cgroup_memory_nbytes": 4 << 30}


def test_control_groups_of_version_1_are_read(tmp_path: Path) -> None:
    for name, value in {
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n",
        # The group of the container is mounted as the root.
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(value)
    assert doctor.read_cgroup(tmp_path) == {"cgroup_cpus": 2, "cgroup_memory_nbytes": None}


# How it tells it


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        ("http://user:word@proxy:3128", "http://***@proxy:3128"),
        ("user:word@proxy", "***@proxy"),
        ("http://user:w@r/d@proxy", "http://***@proxy"),
        ("https://host/path?signature=word", "https://host/path?***"),
        ("https://host/?word=x@y", "https://***@y"),
        ("localhost,.example.com", "localhost,.example.com"),
    ],
)
def test_urls_are_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert doctor.mask_url(url) == shown


def test_text_cannot_trick_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "\x1b[31mred\udcff")
    out = run("doctor").out
    assert "AWS_REGION: \\x1b[31mred\\udcff" in out


# Advice


@pytest.mark.parametrize(
    ("environment", "topic", "found"),
    [
        ({"SSL_CERT_FILE": "/none"}, "/none: expected certificates", "that can be read; install"),
        ({"SSL_CERT_FILE": os.devnull}, "certificates", "found none in it; install ca-cert"),
        ({"SSL_CERT_DIR": "/proc/self/fd"}, "certificates", "found none in it; install ca-cert"),
        ({"http_proxy": "http://p:1"}, "a proxy is set", "add 169.254.169.254,169.254.170.2"),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "x"}, "a proxy is set", "add 169.254.169.254"),
    ],
)
def test_advice_on_the_environment(
    environment: dict[str, str],
    topic: str,
    found: str,
    report: Callable[[], Report],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert found in advice_on(topic, report())


@pytest.mark.parametrize("exceptions", ["*", "localhost,169.254.169.254", "x 169.254.169.254"])
def test_proxy_with_exceptions_needs_no_advice(
    exceptions: str, report: Callable[[], Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://p:1")
    monkeypatch.setenv("no_proxy", exceptions)
    assert not any("proxy" in line for line in report()["advice"])


@pytest.mark.parametrize(
    ("hard", "remedy"), [(4096, "ulimit -n 4096"), (512, "docker run --ulimit")]
)
def test_advice_on_few_open_files(hard: int, remedy: str) -> None:
    out = run_script(
        """
        import resource, sys
        from torchnpy import doctor
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, int(sys.argv[1])))
        doctor.main(["--json"])
        """,
        hard,
    )
    line = advice_on("open files", json.loads(out))
    assert "expected a limit of 4096 or more" in line
    assert "but found 256" in line
    assert remedy in line


@pytest.mark.parametrize(
    ("section", "changes", "topic", "found"),
    [
        ("tls", {"ca_bundle": ""}, "certificates", "but found none; install ca-certificates"),
        ("folders", {"shm_total_nbytes": 64 << 20}, "/dev/shm", "found 64.0 MiB; batches of equal"),
        ("folders", {"shm_total_nbytes": None}, "/dev/shm", "found 0 bytes; batches of equal"),
        ("folders", {"temporary": None}, "temporary files", "set TMPDIR to one"),
        ("limits", {"memory_maps": 1000}, "memory maps", "sysctl -w vm.max_map_count=65530"),
        (
            "system",
            {"cgroup_cpus": 1.5, "usable_cpus": 64},
            "control group",
            "gives 1.5 of 64 CPUs, which programs do not see",
        ),
        ("system", {"libc": "not glibc"}, "libc", "found not glibc; build from source"),
        ("system", {"libc": "glibc 2.31"}, "libc", "found glibc 2.31; build from source"),
        ("torch", {"is_conda": True}, "conda", "build from source with conda's compilers"),
    ],
)
def test_advice_on_a_machine_that_is_otherwise(
    section: str, changes: Report, topic: str, found: str, report: Callable[[], Report]
) -> None:
    other = copy.deepcopy(report())
    for name, values in HEALTHY.items():
        other[name] |= values
    assert not any(topic in line for line in doctor.advise(other))
    other[section] |= changes
    assert found in advice_on(topic, {"advice": doctor.advise(other)})


# A package that cannot be imported


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """The module as a script, in a package that cannot be imported."""
    package = tmp_path / "torchnpy"
    package.mkdir()
    (package / "__init__.py").write_text(
        '__version__ = "9.8.7"\nraise ImportError("libtorchnpy.so: undefined symbol: x")\n'
    )
    shutil.copy(PACKAGE / "_aws.py", package)
    return Path(shutil.copy(PACKAGE / "doctor.py", package))


def run_alone(script: Path, *options: str, **environment: str) -> tuple[int, str, str]:
    command = [sys.executable, *options, str(script), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    return done.returncode, done.stdout, done.stderr


def test_script_reports_why_the_package_cannot_be_imported(alone: Path) -> None:
    status, out, err = run_alone(alone)
    assert (status, err) == (1, "")
    found = json.loads(out)
    assert found["torchnpy"] == {
        "version": "9.8.7",
        "path": str(alone.parent),
        "torch_minors": [],
        "import_error": "ImportError: libtorchnpy.so: undefined symbol: x",
    }
    assert found["torch"]["version"] == torch.__version__
    assert (found["libraries"], found["tls"]["ca_bundle"]) == ({}, None)
    assert "undefined symbol: x); install it anew" in advice_on("`import torchnpy` fails", found)


def test_advice_on_a_torch_that_the_package_is_not_built_for(alone: Path) -> None:
    for minor in ("3.14", "3.100", "3.9"):
        (alone.parent / f"lib/torch-{minor}").mkdir(parents=True)
    (alone.parent / "lib/libnpy_core.so").touch()
    found = json.loads(run_alone(alone)[1])
    assert found["torchnpy"]["torch_minors"] == ["3.9", "3.14", "3.100"]
    line = advice_on("build for yours", found)
    assert f"expected torch 3.9 or 3.14 or 3.100 but found {torch.__version__}" in line
    assert "pip install --no-deps --force-reinstall ." in line


def test_credentials_are_found_where_the_package_cannot_be_imported(alone: Path) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "s3cret"}
    _, out, _ = run_alone(alone, **keys)
    found = json.loads(out)
    assert found["torchnpy"]["import_error"]
    assert "AWS_ACCESS_KEY_ID" in found["s3"]["credentials"]
    assert "s3cret" not in out


def test_advice_on_what_an_uninstalled_torch_left(alone: Path, tmp_path: Path) -> None:
    (tmp_path / "left" / "torch" / "lib").mkdir(parents=True)
    for minor in ("2.98", "2.99"):
        (alone.parent / f"lib/torch-{minor}").mkdir(parents=True)
    status, out, err = run_alone(alone, "-S", PYTHONPATH=str(tmp_path / "left"))
    assert (status, err) == (1, "")
    found = json.loads(out)
    assert found["torch"]["version"] is None
    assert "; install torch 2.98 or 2.99" in advice_on("`import torch` fails", found)


def test_report_goes_to_text_in_memory() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert doctor.main([]) == 0
    assert printed.getvalue().startswith("torchnpy\n")


def test_advice_on_a_missing_torch(alone: Path) -> None:
    status, out, err = run_alone(alone, "-S")  # without the folder of packages
    assert (status, err) == (1, "")
    found = json.loads(out)
    assert found["torch"]["version"] is None
    assert "No module named 'torch'); install torch 2.9 or newer" in advice_on(
        "import torch", found
    )
