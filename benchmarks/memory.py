"""Peak memory of a load from S3, beyond the object itself: each library in a process of its own."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from _harness import Entry, Result, parse_args, write
from _server import serve_objects, use_credentials

# What the process has when its connections are open, and the most that it has had, in MiB.
PROGRAM = """
import os, re, sys
sys.path.insert(0, {folder!r})
import remote

def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

remote.LARGE_KEY, large = remote.small_key(0), remote.LARGE_KEY
work = remote.{function}({port})
work()
remote.LARGE_KEY = large
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = status("VmRSS")
tensor = work()
print(status("VmHWM") - before - tensor.numel() / 2**20)
"""

CONTENDERS = {
    "torchnpy": ("ours", "torchnpy_large"),
    "tensorstore": ("peer", "tensorstore_large"),
    "obstore": ("peer", "obstore_large"),
    "s3torchconnector": ("peer", "s3torchconnector_large"),
    "boto3": ("peer", "boto3_large"),
}


def main() -> None:
    args = parse_args(__doc__.split("\n")[0], "memory")
    nbytes = (32 if args.quick else 512) << 20
    use_credentials()
    title = f"peak memory of one object of {nbytes >> 20} MiB, beyond the object"
    result = Result("memory", title, "MiB", higher_is_better=False)
    with serve_objects(1, nbytes) as server:
        for name, (role, function) in CONTENDERS.items():
            try:
                values = measure(function, server.port, range(args.rounds))
            except (OSError, subprocess.CalledProcessError) as error:
                if role == "ours":
                    raise
                result.absent[name] = str(error)[:300]
                continue
            result.entries.append(Entry(name, role, min(values), values, 0))
    write([result], args)


def measure(function: str, port: int, rounds: Sequence[int]) -> list[float]:
    folder = str(Path(__file__).parent)
    program = PROGRAM.format(folder=folder, function=function, port=port)
    values = []
    for _ in rounds:
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        values.append(float(done.stdout))
    return values


if __name__ == "__main__":
    main()
