"""nginx in a process of its own, with TLS and HTTP/2 on request."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from pathlib import Path

import trustme

CONFIG = """
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  proxy_cache_path {folder}/cache keys_zone=all:1m;
  log_format protocol '$server_protocol $status';
  access_log {folder}/access.log protocol;
  keepalive_requests {keepalive_requests};
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} reuseport {tls};
    {certificate}
    root {folder}/root;
    {options}
  }}
}}
"""


class Nginx:
    """Serves the files below ``root``; ``options`` are directives of its one server."""

    def __init__(
        self,
        folder: Path,
        authority: trustme.CA | None = None,
        *,
        http2: bool = False,
        keepalive_requests: int = 1_000_000,
        options: str = "",
    ) -> None:
        self._folder = folder
        self.root = folder / "root"
        self.root.mkdir()
        # Bound to the end, so that no other process takes the port before nginx does.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reserved.bind(("127.0.0.1", 0))
        port = self._reserved.getsockname()[1]
        self.url = f"{'https' if authority else 'http'}://127.0.0.1:{port}"
        certificate = ""
        if authority:
            key_and_chain = folder / "server.pem"
            issued = authority.issue_cert("127.0.0.1")
            issued.private_key_and_cert_chain_pem.write_to_path(str(key_and_chain))
            certificate = f"ssl_certificate {key_and_chain}; ssl_certificate_key {key_and_chain};"
        config = folder / "nginx.conf"
        config.write_text(
            CONFIG.format(
                user="user root;" if os.geteuid() == 0 else "",
                folder=folder,
                port=port,
                tls=("ssl" if authority else "") + (" http2" if http2 else ""),
                certificate=certificate,
                keepalive_requests=keepalive_requests,
                options=options,
            )
        )
        self._process = subprocess.Popen(
            ["nginx", "-p", str(folder), "-c", str(config)], stderr=subprocess.DEVNULL
        )
        give_up = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except OSError:
                if time.monotonic() > give_up or self._process.poll() is not None:
                    raise
                time.sleep(0.02)

    def put(self, path: str, body: bytes) -> str:
        """Stores an object; its URL."""
        (self.root / path).write_bytes(body)
        return f"{self.url}/{path}"

    def protocols(self) -> list[str]:
        """Of the requests so far: "HTTP/1.1", "HTTP/2.0"."""
        return re.findall(r"^(\S+)", (self._folder / "access.log").read_text(), re.MULTILINE)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._reserved.close()

    def __enter__(self) -> Nginx:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
