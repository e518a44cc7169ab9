"""How long `import torchnpy` takes when torch is already there; a fresh process each time."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable

from _harness import Contender, Row, Sample, parse_args, run

PROGRAM = """
import resource, time, torch
used = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
cpu, start = used(), time.perf_counter()
import {module}
print(time.perf_counter() - start, used() - cpu)
"""


def main() -> None:
    args = parse_args(__doc__.split("\n")[0], "import_time")
    modules = ["spdl.io", "safetensors.torch", "tensorstore", "obstore", "s3torchconnector"]
    contenders = [contender("torchnpy", "ours"), *(contender(name, "peer") for name in modules)]
    run([Row("import", "`import torchnpy` after `import torch`", "ms", contenders)], args)


def contender(module: str, role: str) -> Contender:
    def make() -> Callable[[], Sample]:
        if importlib.util.find_spec(module.split(".")[0]) is None:
            raise ModuleNotFoundError(f"No module named {module!r}")
        return lambda: import_once(module)

    return Contender(module, role, make)


def import_once(module: str) -> Sample:
    command = [sys.executable, "-c", PROGRAM.format(module=module)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ImportError(done.stderr.strip().splitlines()[-1])
    seconds, cpu_s = map(float, done.stdout.split())
    return Sample(seconds, cpu_s)


if __name__ == "__main__":
    main()
