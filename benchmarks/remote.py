"""Objects from a server on this machine into torch tensors: 2000 small ones, and a large one.

The server is nginx; we, s3torchconnector, boto3 and obstore speak S3 and sign, tensorstore reads
plain HTTP. The limit is a libcurl program that only fetches (raw_curl.cpp).
"""

import asyncio
import io
import json
import os
import subprocess
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from _harness import Contender, Row, Sample, compile_cpp, parse_args, run
from _server import (
    BUCKET,
    LARGE_KEY,
    SMALL_SHAPE,
    Server,
    delayed,
    serve_objects,
    small_key,
    use_credentials,
)

NPY_HEADER_NBYTES = 128
THREADS = 32

Work = Callable[[], object]


def main() -> None:
    args = parse_args(__doc__.split("\n")[0], "remote")
    count, large_nbytes = (200, 32 << 20) if args.quick else (2000, 512 << 20)
    use_credentials()
    with serve_objects(count, large_nbytes) as server, delayed(server.port, 10) as slow_port:
        rows = [
            small_row("small", f"{count} objects of 30 kB", server.port, count),
            small_row("small_20ms", f"{count} objects of 30 kB, 20 ms away", slow_port, count),
            large_row(server.port, large_nbytes),
            https_row(server, large_nbytes),
        ]
        run(rows, args)


def small_row(name: str, title: str, port: int, count: int) -> Row:
    keys = [small_key(i) for i in range(count)]

    def check(tensors: object) -> None:
        assert isinstance(tensors, list)
        assert len(tensors) == count
        assert all(tensor.shape == SMALL_SHAPE for tensor in tensors)

    def peer(name: str, make: Callable[[int, list[str]], Work]) -> Contender:
        return Contender(name, "peer", partial(make, port, keys))

    def limit(in_flight: int) -> Contender:
        base = f"http://127.0.0.1:{port}/{BUCKET}"
        arguments = ["small", base, str(count), str(in_flight)]
        return Contender(f"libcurl, {in_flight} in flight", "limit", partial(raw_curl, arguments))

    contenders = [
        Contender("torchnpy", "ours", partial(torchnpy_small, port, keys)),
        peer("tensorstore", tensorstore_small),
        peer("obstore", obstore_small),
        peer("s3torchconnector", s3torchconnector_small),
        peer("boto3", boto3_small),
        limit(16),
        limit(64),
    ]
    return Row(name, title, "objects/s", contenders, amount=count, check=check)


def large_row(port: int, nbytes: int) -> Row:
    def check(tensor: object) -> None:
        assert isinstance(tensor, torch.Tensor)
        assert tensor.numel() == nbytes

    def peer(name: str, make: Callable[[int], Work]) -> Contender:
        return Contender(name, "peer", partial(make, port))

    def limit(name: str, huge_pages: bool) -> Contender:
        url = f"http://127.0.0.1:{port}/{BUCKET}/{LARGE_KEY}"
        arguments = ["large", url, str(nbytes), "4", str(int(huge_pages))]
        return Contender(name, "limit", partial(raw_curl, arguments))

    contenders = [
        Contender("torchnpy", "ours", partial(torchnpy_large, port)),
        peer("tensorstore", tensorstore_large),
        peer("obstore", obstore_large),
        peer("s3torchconnector", s3torchconnector_large),
        peer("boto3", boto3_large),
        limit("libcurl, 4 threads", huge_pages=False),
        limit("libcurl, 4 threads, huge pages", huge_pages=True),
    ]
    title = f"one object of {nbytes >> 20} MiB"
    return Row("large", title, "MB/s", contenders, amount=nbytes / 1e6, check=check)


def https_row(server: Server, nbytes: int) -> Row:
    """Where encryption takes most of the time: what more I/O threads bring, and HTTP/2."""
    base = f"https://127.0.0.1:{server.tls_port}"

    def ours(name: str, role: str = "variant", **options: Any) -> Contender:
        def make() -> Work:
            import torchnpy

            client = torchnpy.Client(endpoint=base, ca_bundle=server.ca_file, **options)
            return lambda: torchnpy.load(f"s3://{BUCKET}/{LARGE_KEY}", client=client)

        return Contender(name, role, make)

    def boto3() -> Work:
        client = boto3_client(server.tls_port, "https", verify=server.ca_file)
        return lambda: tensor_over(client.get_object(Bucket=BUCKET, Key=LARGE_KEY)["Body"].read())

    def check(tensor: object) -> None:
        assert isinstance(tensor, torch.Tensor)
        assert tensor.numel() == nbytes

    arguments = ["large", f"{base}/{BUCKET}/{LARGE_KEY}", str(nbytes), "4", "1"]
    contenders = [
        ours("torchnpy", "ours"),
        ours("torchnpy, 1 I/O thread", io_threads=1),
        ours("torchnpy, 4 I/O threads", io_threads=4),
        Contender("boto3", "peer", boto3),
        Contender(
            "libcurl, 4 threads, huge pages", "limit", partial(raw_curl, arguments, server.ca_file)
        ),
    ]
    title = f"one object of {nbytes >> 20} MiB over HTTPS"
    return Row("large_https", title, "MB/s", contenders, amount=nbytes / 1e6, check=check)


def raw_curl(arguments: list[str], ca_file: str | None = None) -> Work:
    program = compile_cpp("raw_curl.cpp", ["-lcurl"])
    environment = os.environ | ({"SSL_CERT_FILE": ca_file} if ca_file else {})

    def work() -> Sample:
        done = subprocess.run(
            [str(program), *arguments], capture_output=True, text=True, env=environment
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        measured = json.loads(done.stdout)
        return Sample(measured["seconds"], measured["cpu_s"])

    return work


def torchnpy_small(port: int, keys: list[str]) -> Work:
    import torchnpy

    client = torchnpy.Client(endpoint=f"http://127.0.0.1:{port}")
    urls = [f"s3://{BUCKET}/{key}" for key in keys]
    return lambda: torchnpy.load_many(urls, client=client)


def torchnpy_large(port: int) -> Work:
    import torchnpy

    client = torchnpy.Client(endpoint=f"http://127.0.0.1:{port}")
    return lambda: torchnpy.load(f"s3://{BUCKET}/{LARGE_KEY}", client=client)


def decode(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.load(io.BytesIO(data)))


def tensor_over(data: object) -> torch.Tensor:
    """Of a peer's large object: without another copy, and without parsing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that bytes are not writable
        return torch.frombuffer(data, dtype=torch.uint8, offset=NPY_HEADER_NBYTES)


def tensorstore_small(port: int, keys: list[str]) -> Work:
    store = tensorstore_store(port)

    def work() -> list[torch.Tensor]:
        reads = [store.read(key) for key in keys]
        return [decode(read.result().value) for read in reads]

    return work


def tensorstore_large(port: int) -> Work:
    store = tensorstore_store(port)
    return lambda: tensor_over(store.read(LARGE_KEY).result().value)


def tensorstore_store(port: int) -> Any:
    import tensorstore

    spec = {"driver": "http", "base_url": f"http://127.0.0.1:{port}/{BUCKET}/"}
    return tensorstore.KvStore.open(spec).result()


def obstore_small(port: int, keys: list[str]) -> Work:
    store = obstore_store(port)

    async def fetch_all() -> list[torch.Tensor]:
        permits = asyncio.Semaphore(64)

        async def fetch(key: str) -> torch.Tensor:
            async with permits:
                answer = await store.get_async(key)
                return decode(memoryview(await answer.bytes_async()))

        return await asyncio.gather(*map(fetch, keys))

    return lambda: asyncio.run(fetch_all())


def obstore_large(port: int) -> Work:
    store = obstore_store(port)
    return lambda: tensor_over(store.get(LARGE_KEY).bytes())


def obstore_store(port: int) -> Any:
    from obstore.store import S3Store

    return S3Store(
        BUCKET,
        endpoint=f"http://127.0.0.1:{port}",
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


def s3torchconnector_small(port: int, keys: list[str]) -> Work:
    client = s3torchconnector_client(port)
    pool = ThreadPoolExecutor(THREADS)

    def fetch(key: str) -> torch.Tensor:
        return decode(client.get_object(BUCKET, key).read())

    return lambda: list(pool.map(fetch, keys))


def s3torchconnector_large(port: int) -> Work:
    client = s3torchconnector_client(port)
    return lambda: tensor_over(client.get_object(BUCKET, LARGE_KEY).read())


def s3torchconnector_client(port: int) -> Any:
    from s3torchconnector import S3ClientConfig
    from s3torchconnector._s3client import S3Client

    config = S3ClientConfig(force_path_style=True)
    return S3Client(region="us-east-1", endpoint=f"http://127.0.0.1:{port}", s3client_config=config)


def boto3_small(port: int, keys: list[str]) -> Work:
    client = boto3_client(port)
    pool = ThreadPoolExecutor(THREADS)

    def fetch(key: str) -> torch.Tensor:
        return decode(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    return lambda: list(pool.map(fetch, keys))


def boto3_large(port: int) -> Work:
    client = boto3_client(port)
    return lambda: tensor_over(client.get_object(Bucket=BUCKET, Key=LARGE_KEY)["Body"].read())


def boto3_client(port: int, scheme: str = "http", verify: str | bool = True) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(max_pool_connections=2 * THREADS, s3={"addressing_style": "path"})
    url = f"{scheme}://127.0.0.1:{port}"
    return boto3.client("s3", endpoint_url=url, config=config, verify=verify)


if __name__ == "__main__":
    main()
