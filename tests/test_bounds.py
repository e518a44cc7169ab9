"""Whatever a server sends or promises, a load takes no more memory than its object and 32 MiB."""

from __future__ import annotations

from collections.abc import Callable

from servers.http import Answer, ObjectServer, Request
from support import noise, npy, run_script

ARRAY = noise(50, 1000)
GIGABYTE = 1 << 30
BODY = npy(ARRAY)
# The header of an array of a gigabyte, and the first of its data.
PROMISE = (
    b"\x93NUMPY\x01\x00\x76\x00"
    + b"{'descr': '|u1', 'fortran_order': False, 'shape': (1073741824,), }".ljust(117)
    + b"\n"
)


def promise(request: Request, _: Answer) -> Answer:
    """A gigabyte, of which nothing comes but the header."""
    first = int(request.range.removeprefix("bytes=").partition("-")[0] or 0)
    last = min(int(request.range.partition("-")[2]), len(PROMISE) + GIGABYTE - 1)
    headers = {
        "Content-Range": f"bytes {first}-{last}/{len(PROMISE) + GIGABYTE}",
        "Content-Length": str(last - first + 1),
        "ETag": '"1"',
    }
    body = PROMISE + bytes(100) if first == 0 else b""
    return Answer(206, headers, body, cut=len(body), cut_by="close")


def endless(status: int, body: bytes = b"") -> Callable[..., Answer]:
    return lambda *_: Answer(status, {"Content-Length": ""}, body, endless=bytes(1 << 16))


HOSTILE: dict[str, tuple[Callable[..., Answer], str]] = {
    "an endless error": (endless(404), "FileNotFoundError"),
    "an endless fault": (endless(503), "TransportError"),
    "an endless redirect": (
        lambda request, _: Answer(
            302, {"Location": request.target, "Content-Length": ""}, endless=bytes(1 << 16)
        ),
        "TransportError",
    ),
    "an endless body after an array": (endless(200, BODY), "(50, 1000)"),
    "an endless body that is no array": (endless(200), "FormatError"),
    "a gigabyte of which nothing comes": (promise, "TransportError"),
}


def test_hostile_servers_cost_little_memory(server: ObjectServer) -> None:
    for name, (fault, _) in HOSTILE.items():
        server.put(f"/{name}", BODY)
        server.always(f"/{name}", fault)
    server.put("/warm.npy", BODY)
    out = run_script(
        """
        import sys, torchnpy as tnp

        def peak_kib():
            lines = open("/proc/self/status").read().splitlines()
            return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

        client = tnp.Client(retries=2)
        tnp.load(sys.argv[1] + "/warm.npy", client=client)
        for name in sys.argv[2:]:
            before = peak_kib()
            try:
                result = tuple(tnp.load(f"{sys.argv[1]}/{name}", client=client).shape)
            except (OSError, ValueError) as error:
                result = [base.__name__ for base in type(error).__mro__]
            assert peak_kib() - before < 32 << 10, (name, before, peak_kib())
            print(result)
        """,
        server.url,
        *(name.replace(" ", "%20") for name in HOSTILE),
    )
    for line, (name, (_, outcome)) in zip(out.splitlines(), HOSTILE.items(), strict=True):
        assert outcome in line, name
