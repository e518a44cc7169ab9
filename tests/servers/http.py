"""A threaded HTTP/1.1 server of byte strings that misbehaves on command and logs every request."""

from __future__ import annotations

import array
import collections
import contextlib
import ctypes
import fcntl
import hashlib
import select
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Any
from urllib.parse import quote, unquote, urlsplit

REASONS = {200: "OK", 206: "Partial Content", 404: "Not Found", 416: "Range Not Satisfiable"}


@dataclass
class Request:
    """As it stood on the wire; header names in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    connection: int
    body: bytes = b""

    @property
    def path(self) -> str:
        return unquote(self.raw_path)

    @property
    def raw_path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    @property
    def range(self) -> str:
        return self.headers.get("range", "")


@dataclass
class Answer:
    """What is sent. `cut` body bytes go out, then `cut_by` happens: "reset", "close" or "stall".
    Else `endless` follows the body again and again, for as long as the client takes it."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    cut_by: str = "reset"
    send_head: bool = True
    endless: bytes = b""


Fault = Callable[[Request, Answer], Answer]


@dataclass
class Cut:
    """Of a request's body so many bytes are read; then `by`: "reset" or "stall"."""

    nbytes: int
    by: str = "reset"


def parse_range(text: str, nbytes: int) -> tuple[int, int] | None:
    """(start, stop) of a `bytes=` range in an object of `nbytes`; None if it holds no byte."""
    first, _, last = text.removeprefix("bytes=").partition("-")
    if not first:
        start, stop = max(0, nbytes - int(last)), nbytes
    else:
        start, stop = int(first), min(nbytes, int(last) + 1) if last else nbytes
    return (start, stop) if start < stop else None


class ObjectServer:
    """Serves `objects` (decoded path -> bytes) on a free port of 127.0.0.1."""

    def __init__(self, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.objects: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.requests: list[Request] = []
        self.latency_s = 0.0
        self.stalled = threading.Event()  # a stall has begun
        self.dropped = threading.Event()  # a stalled client went away
        self.max_concurrent = 0
        self.sent_nbytes = 0  # of bodies
        self._release = threading.Event()
        self._faults: dict[str, collections.deque[Fault | None]] = {}
        self._cuts: dict[str, collections.deque[Cut | None]] = {}
        self._always: dict[str, Fault] = {}
        self._gate = 0
        self._concurrent = 0
        self._changed = threading.Condition()
        self._connections: dict[int, socket.socket] = {}
        self._accepted = 0
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", port), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        threading.Thread(target=self._accept, daemon=True).start()

    def put(self, path: str, body: bytes) -> str:
        """Stores an object; its URL."""
        self.objects[path] = body
        return self.url + quote(path, safe="/")

    def fail(self, path: str, *faults: Fault | None) -> None:
        """The next answers for `path` go through these; None leaves one alone."""
        self._faults.setdefault(path, collections.deque()).extend(faults)

    def cut_body(self, path: str, *cuts: Cut | None) -> None:
        """The same of the next bodies that are sent to `path`."""
        self._cuts.setdefault(path, collections.deque()).extend(cuts)

    def always(self, path: str, fault: Fault) -> None:
        self._always[path] = fault

    def hold_until(self, count: int) -> None:
        """Answers wait until `count` requests are here at once (or 20 s, then all go)."""
        self._gate = count

    def release(self) -> None:
        """Ends all stalls: their connections are closed."""
        self._release.set()

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Of what the server's own threads do: asked again with each request, and often."""
        give_up = time.monotonic() + 30
        while not ready():
            assert time.monotonic() < give_up
            time.sleep(0.005)

    def receive(self, request: Request) -> None:
        """What happens to a request on its way."""

    def requests_for(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]

    def connections(self) -> int:
        return self._accepted

    def close(self) -> None:
        self.release()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._connections.values()):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> ObjectServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answer(self, request: Request) -> Answer:
        """The right answer, before faults."""
        body = self.objects.get(request.path)
        if request.method == "PUT":
            if body is not None and request.headers.get("if-none-match") == "*":
                return Answer(412, {}, b"there is one")
            self.objects[request.path] = request.body
            return Answer(201, {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})
        if body is None:
            return Answer(404, {"Content-Type": "text/plain"}, b"no such object")
        etag = self.etags.get(request.path, f'"{hashlib.md5(body).hexdigest()}"')
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        if request.headers.get("if-match", etag) not in (etag, "*"):
            return Answer(412, headers, b"etag differs")
        if etag and request.headers.get("if-none-match") == etag:
            return Answer(304, {"ETag": etag})
        if not request.range:
            return Answer(200, headers, body)
        span = parse_range(request.range, len(body))
        if span is None:
            return Answer(416, headers | {"Content-Range": f"bytes */{len(body)}"})
        start, stop = span
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
        return Answer(206, headers, body[start:stop])

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._accepted += 1
            number = self._accepted
            self._connections[number] = connection
            threading.Thread(target=self._serve, args=(connection, number), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._connections[number] = connection
            stream = connection.makefile("rb")
            while (request := self._read_request(connection, stream, number)) is not None:
                if not self._exchange(connection, request):
                    break
        except OSError:
            pass
        finally:
            self._connections.pop(number, None)
            with contextlib.suppress(OSError):
                # A forked worker may hold a copy of the descriptor: close() alone says nothing.
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _read_request(
        self, connection: socket.socket, stream: BufferedReader, number: int
    ) -> Request | None:
        lines = []
        for line in stream:
            if line == b"\r\n":
                break
            lines.append(line.decode("latin-1").rstrip("\r\n"))
        if not lines:
            return None
        method, target, _ = lines[0].split(" ")
        if "://" in target:  # asked as a proxy
            target = target[target.index("/", target.index("://") + 3) :]
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:])
        }
        request = Request(method, target, headers, number)
        nbytes = int(headers.get("content-length", 0))
        cuts = self._queue(self._cuts, request) if nbytes else None
        cut = cuts.popleft() if cuts else None
        if cut is not None:
            stream.read(min(cut.nbytes, nbytes))
            with self._changed:
                self.requests.append(request)
            if cut.by == "reset":
                _reset(connection)
            else:
                self.stalled.set()
                self._release.wait()
            return None
        request.body = stream.read(nbytes)
        self.receive(request)
        return request if len(request.body) == nbytes else None

    def _exchange(self, connection: socket.socket, request: Request) -> bool:
        """Answers one request; False to close the connection."""
        with self._changed:
            self.requests.append(request)
            self._concurrent += 1
            self.max_concurrent = max(self.max_concurrent, self._concurrent)
            self._changed.notify_all()
            if self._gate:
                self._changed.wait_for(lambda: self.max_concurrent >= self._gate, timeout=20)
            fault = self._next_fault(request)
        try:
            if self.latency_s:
                time.sleep(self.latency_s)
            # What is refused is not done.
            is_refused = getattr(fault, "refuses", False)
            answer = Answer(0) if is_refused else self.answer(request)
            return self._send(connection, request, fault(request, answer) if fault else answer)
        finally:
            with self._changed:
                self._concurrent -= 1

    def names(self, request: Request) -> list[str]:
        """What fail() and cut_body() may call the request."""
        return [request.path]

    def _next_fault(self, request: Request) -> Fault | None:
        queue = self._queue(self._faults, request)
        return queue.popleft() if queue else self._always.get(request.path)

    def _queue(
        self, queues: dict[str, collections.deque[Any]], request: Request
    ) -> collections.deque[Any] | None:
        """The first that has something for the request."""
        return next((queues[name] for name in self.names(request) if queues.get(name)), None)

    def _send(self, connection: socket.socket, request: Request, answer: Answer) -> bool:
        body = b"" if request.method == "HEAD" else answer.body
        headers = {"Content-Length": str(len(answer.body))} | answer.headers
        if not headers["Content-Length"]:
            del headers["Content-Length"]  # the body ends with the connection
        head = f"HTTP/1.1 {answer.status} {REASONS.get(answer.status, 'Status')}\r\n"
        sent = ((name, value) for name, value in headers.items() if value)  # "": left out
        head += "".join(f"{name}: {value}\r\n" for name, value in sent) + "\r\n"
        part = memoryview(body)[: answer.cut]
        if answer.send_head:
            with self._changed:  # before the client can know that it has them
                self.sent_nbytes += len(part)
            connection.sendall(head.encode("latin-1"))
            connection.sendall(part)
            while answer.endless:
                connection.sendall(answer.endless)
        if answer.cut is None and answer.send_head:
            return headers.get("Connection") != "close" and "Content-Length" in headers
        if answer.cut_by == "stall":
            self._stall(connection)
        elif answer.cut_by == "reset":
            _drain(connection)
            _reset(connection)
        return False

    def _stall(self, connection: socket.socket) -> None:
        self.stalled.set()
        while not self._release.wait(0.02):
            if select.select([connection], [], [], 0)[0]:
                self.dropped.set()
                return


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # connect() to nowhere ends it at once, also while a stream holds the descriptor; shutdown()
    # would send a FIN first.
    nowhere = struct.pack("H14x", socket.AF_UNSPEC)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.connect(connection.fileno(), nowhere, len(nowhere))


def _drain(connection: socket.socket) -> None:
    """Waits until the peer has acknowledged everything, which a reset would throw away."""
    pending = array.array("i", [1])
    while pending[0]:
        fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, pending)
        time.sleep(0.001)


def status(code: int, body: bytes = b"", **headers: str) -> Fault:
    """Answers with `code` instead; header names with _ for -."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}

    def fault(*_: object) -> Answer:
        return Answer(code, dict(fields), body)

    fault.refuses = True  # type: ignore[attr-defined]
    return fault


def s3_error(code: int, name: str, message: str = "as asked", **headers: str) -> Fault:
    text = f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>{message}</Message></Error>"
    return status(code, text.encode(), **{"Content_Type": "application/xml"} | headers)


def redirect(location: str, code: int = 302) -> Fault:
    return status(code, Location=location)


def cut(nbytes: int | None, by: str = "reset") -> Fault:
    """Ends the answer after `nbytes` of the body; None: before the head."""

    def fault(_: Request, answer: Answer) -> Answer:
        answer.cut, answer.cut_by, answer.send_head = nbytes or 0, by, nbytes is not None
        return answer

    return fault


def edit(**headers: str) -> Fault:
    """The right answer with these headers changed; "" takes one away."""

    def fault(_: Request, answer: Answer) -> Answer:
        for name, value in headers.items():
            answer.headers[name.replace("_", "-")] = value
        answer.headers = {name: value for name, value in answer.headers.items() if value}
        return answer

    return fault


def damage(offset: int = -1) -> Fault:
    """The right answer with one byte of its body changed."""

    def fault(_: Request, answer: Answer) -> Answer:
        body = bytearray(answer.body)
        body[offset] ^= 0x10
        answer.body = bytes(body)
        return answer

    return fault


def whole(server: ObjectServer, **headers: str) -> Fault:
    """200 with all of the object, as servers do that know no ranges."""
    return lambda request, _: Answer(200, dict(headers), server.objects[request.path])


def chunked(_: Request, answer: Answer) -> Answer:
    """The right answer, whose length shows when it ends."""
    body = b"%x\r\n%b\r\n" % (len(answer.body), answer.body) if answer.body else b""
    headers = answer.headers | {"Transfer-Encoding": "chunked", "Content-Length": ""}
    return Answer(answer.status, headers, body + b"0\r\n\r\n")


def until_close(_: Request, answer: Answer) -> Answer:
    """The right answer, whose length shows when the connection ends."""
    headers = answer.headers | {"Connection": "close", "Content-Length": ""}
    return Answer(answer.status, headers, answer.body)


_refusing: list[socket.socket] = []


def refused_url() -> str:
    """A URL of 127.0.0.1 that nothing listens on, but a server that is told its port."""
    kept = socket.socket()  # bound, so that no other server gets the port
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", 0))
    _refusing.append(kept)
    return f"http://127.0.0.1:{kept.getsockname()[1]}/x.npy"


def host_of(url: str) -> str:
    return urlsplit(url).netloc
