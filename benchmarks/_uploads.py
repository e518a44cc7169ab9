"""The row of write.py about uploads: an array to a server on this machine that throws it away.

We, boto3 and obstore speak S3, and send parts of 8 MiB with their checksums; the limit is libcurl
that PUTs such parts and nothing else (raw_curl.cpp).
"""

import io
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from _harness import Contender, Row, compile_cpp
from _server import BUCKET, use_credentials
from remote import boto3_client, obstore_store, raw_curl

PART_NBYTES = 8 << 20


@contextmanager
def take_uploads() -> Iterator[int]:
    """Yields the port of a server that takes them."""
    use_credentials()
    program = compile_cpp("put_server.cpp", ["-pthread"])
    server = subprocess.Popen(
        [str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin
    assert server.stdout
    try:
        yield int(server.stdout.readline())
    finally:
        server.stdin.close()
        server.wait()


def upload_row(port: int, nbytes: int) -> Row:
    def limit(threads: int) -> Contender:
        url = f"http://127.0.0.1:{port}/{BUCKET}/x.npy"
        arguments = ["put", url, str(nbytes), str(PART_NBYTES), str(threads)]
        return Contender(f"libcurl, {threads} threads", "limit", partial(raw_curl, arguments))

    contenders = [
        Contender("torchnpy", "ours", partial(torchnpy_upload, port, nbytes)),
        Contender("boto3", "peer", partial(boto3_upload, port, nbytes)),
        Contender("obstore", "peer", partial(obstore_upload, port, nbytes)),
        limit(2),
        limit(4),
    ]
    title = f"`save` of {nbytes >> 20} MiB to S3"
    return Row("upload", title, "MB/s", contenders, amount=nbytes / 1e6)


def array_of(nbytes: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)


def torchnpy_upload(port: int, nbytes: int) -> Callable[[], object]:
    import torchnpy

    client = torchnpy.Client(endpoint=f"http://127.0.0.1:{port}")
    array = array_of(nbytes)
    return lambda: torchnpy.save(f"s3://{BUCKET}/x.npy", array, client=client)


def boto3_upload(port: int, nbytes: int) -> Callable[[], object]:
    from boto3.s3.transfer import TransferConfig

    client = boto3_client(port)
    config = TransferConfig(multipart_chunksize=PART_NBYTES)
    data = array_of(nbytes).tobytes()
    return lambda: client.upload_fileobj(io.BytesIO(data), BUCKET, "x.npy", Config=config)


def obstore_upload(port: int, nbytes: int) -> Callable[[], object]:
    store = obstore_store(port)
    data = array_of(nbytes).tobytes()
    return lambda: store.put("x.npy", data, chunk_size=PART_NBYTES)
