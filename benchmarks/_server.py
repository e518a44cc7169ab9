"""The servers of the benchmarks: nginx with objects, and a proxy that adds latency."""

import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trustme
from _harness import compile_cpp
from tqdm import tqdm

BUCKET = "bkt"
SMALL_SHAPE = (3, 100, 100)
LARGE_KEY = "large.npy"

# One worker, as a client has two cores at most beside it. nginx ignores the signatures of S3
# requests; with the bucket's name as a folder it answers path-style GETs.
CONFIG = """
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  sendfile on;
  keepalive_requests 1000000;
  keepalive_timeout 3600;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  ssl_certificate {folder}/server.pem;
  ssl_certificate_key {folder}/server.pem;
  server {{
    listen 127.0.0.1:{port};
    listen 127.0.0.1:{tls_port} ssl;
    root {folder}/root;
  }}
}}
"""


@dataclass(frozen=True)
class Server:
    """nginx with a bucket, on 127.0.0.1."""

    port: int
    tls_port: int
    ca_file: str  # the authority of its certificate


def small_key(index: int) -> str:
    return f"{index:06}.npy"


def use_credentials() -> None:
    """Any will do; without them the clients look for some elsewhere."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        os.environ.pop(name, None)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def serve_objects(count: int, large_nbytes: int) -> AbstractContextManager[Server]:
    """Serves a bucket with `count` small objects and a large one."""

    def fill(bucket: Path) -> None:
        random = np.random.default_rng(0)
        for index in tqdm(range(count), "make objects", leave=False):
            np.save(bucket / small_key(index), random.integers(0, 256, SMALL_SHAPE, np.uint8))
        np.save(bucket / LARGE_KEY, random.integers(0, 256, large_nbytes, np.uint8))

    return serve(fill)


def serve_bucket(objects: Mapping[str, bytes]) -> AbstractContextManager[Server]:
    """Serves a bucket with these objects, by key."""

    def fill(bucket: Path) -> None:
        for key, content in objects.items():
            (bucket / key).write_bytes(content)

    return serve(fill)


@contextmanager
def serve(fill: Callable[[Path], None]) -> Iterator[Server]:
    """Serves a bucket, a folder on a disk with what `fill` puts there."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # /tmp may be memory
        bucket = Path(folder, "root", BUCKET)
        bucket.mkdir(parents=True)
        fill(bucket)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(f"{folder}/ca.pem")
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_and_cert_chain_pem.write_to_path(f"{folder}/server.pem")
        server = Server(free_port(), free_port(), f"{folder}/ca.pem")
        user = "user root;" if os.geteuid() == 0 else ""
        config = Path(folder, "nginx.conf")
        config.write_text(
            CONFIG.format(folder=folder, port=server.port, tls_port=server.tls_port, user=user)
        )
        nginx = subprocess.Popen(["nginx", "-p", folder, "-c", str(config)])
        try:
            wait_for(f"http://127.0.0.1:{server.port}/{BUCKET}/{next(bucket.iterdir()).name}")
            yield server
        finally:
            nginx.terminate()
            nginx.wait()


@contextmanager
def delayed(port: int, one_way_ms: float) -> Iterator[int]:
    """Yields a port that leads to `port`, with a delay in each direction."""
    program = compile_cpp("delay_proxy.cpp")
    command = [str(program), str(port), str(one_way_ms)]
    proxy = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert proxy.stdin
    assert proxy.stdout
    try:
        yield int(proxy.stdout.readline())
    finally:
        proxy.stdin.close()
        proxy.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(url: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    give_up = time.monotonic() + 10
    while True:
        try:
            opener.open(url).close()
            return
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.05)
