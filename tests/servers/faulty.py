"""A server in a process of its own that fails one request in ten: python -m servers.faulty."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

from .http import Fault, ObjectServer, Request, cut, s3_error, status

FAULTS: dict[str, Fault] = {
    "500": status(500),
    "503": status(503),
    "SlowDown": s3_error(503, "SlowDown"),
    "429 with Retry-After": status(429, Retry_After="0"),
    "reset before the head": cut(None),
    "closed before the head": cut(None, "close"),
    "closed after the head": cut(0, "close"),
    "reset in the body": lambda request, answer: cut(len(answer.body) // 2)(request, answer),
    "closed in the body": lambda request, answer: cut(len(answer.body) // 2, "close")(
        request, answer
    ),
}
SHARE = 0.1


class _FaultyObjectServer(ObjectServer):
    def __init__(self) -> None:
        self.count = 0
        self.faults = 0
        self.unanswered = 0  # on a connection that had served before
        self._random = random.Random(5)
        self._has_served: set[int] = set()
        super().__init__()

    def _next_fault(self, request: Request) -> Fault | None:
        self.count += 1
        self.requests.clear()  # else they fill the memory
        used_before = request.connection in self._has_served
        self._has_served.add(request.connection)
        if self._random.random() >= SHARE:
            return None
        name = self._random.choice(list(FAULTS))
        self.faults += 1
        self.unanswered += used_before and name.endswith("before the head")
        return FAULTS[name]


class FaultyServer:
    """Serves these objects; `urls` are theirs."""

    def __init__(self, bodies: list[bytes]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "servers.faulty", *map(str, map(len, bodies))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )
        assert self._process.stdin
        assert self._process.stdout
        for body in bodies:
            self._process.stdin.write(body)
        self._process.stdin.flush()
        url = self._process.stdout.readline().decode().strip()
        self.urls = [f"{url}/{i}.npy" for i in range(len(bodies))]

    def count(self) -> dict[str, int]:
        """requests, faults, unanswered (see above), connections: open now."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(b"count\n")
        self._process.stdin.flush()
        counts: dict[str, int] = json.loads(self._process.stdout.readline())
        return counts

    def close(self) -> None:
        self._process.communicate(b"")


def main() -> None:
    server = _FaultyObjectServer()
    for i, nbytes in enumerate(map(int, sys.argv[1:])):
        server.put(f"/{i}.npy", sys.stdin.buffer.read(nbytes))
        server.etags[f"/{i}.npy"] = f'"{i}"'
    print(server.url, flush=True)
    while sys.stdin.buffer.readline():
        counts = {
            "requests": server.count,
            "faults": server.faults,
            "unanswered": server.unanswered,
            "connections": len(server._connections),
        }
        print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
