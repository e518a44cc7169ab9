"""Read .npy files over plain HTTP: the header, the whole array, a few of its rows.

Usage:
    python examples/read_http.py                                   # starts a server itself
    python examples/read_http.py https://server.example/array.npy
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np

import torchnpy as tnp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("url", nargs="?", help="of an .npy file; else a local one is served")
    args = parser.parse_args()
    with nullcontext(args.url) if args.url else serve_example() as url:
        header = tnp.header(url)  # fetches the first bytes only
        print(f"{url} holds {header.dtype} of shape {tuple(header.shape)}, {header.nbytes} bytes")

        array = tnp.load(url)  # one request, straight into the tensor's memory
        print(f"loaded whole: sum {array.double().sum():.6g}")

        # Asks for the bytes of these rows only. A server without ranges, such as Python's own,
        # sends everything; what was not asked for is skipped.
        rows = tnp.load_rows(url, 10, 13)
        print(f"rows 10 to 12: shape {tuple(rows.shape)}, equal {rows.equal(array[10:13])}")


@contextmanager
def serve_example() -> Iterator[str]:
    """Serves a folder with one array, as `python -m http.server` does; yields its URL."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "waves.npy"), np.sin(np.arange(32_000).reshape(1000, 32) / 100))
        server = QuietServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder))
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/waves.npy"
        finally:
            server.shutdown()
            server.server_close()


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, *args: object) -> None:
        pass  # a client that has enough hangs up


class QuietHandler(SimpleHTTPRequestHandler):
    def log_request(self, *args: object) -> None:
        pass


if __name__ == "__main__":
    main()
