"""Which S3 store an example uses, and how its data gets there."""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import boto3
import numpy as np
from local_s3 import local_s3
from tqdm import tqdm

import torchnpy as tnp


def add_store_options(parser: argparse.ArgumentParser, prefix: str) -> None:
    parser.add_argument("--endpoint", help="a real store's, such as https://minio.example:9000")
    parser.add_argument("--bucket", help="an existing bucket; without it a local server is started")
    parser.add_argument("--prefix", default=prefix, help="where in the bucket [%(default)s]")


def parse_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
    args = parser.parse_args()
    if args.endpoint and not args.bucket:
        parser.error("--endpoint needs --bucket")
    return args


@contextmanager
def open_store(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yields the store in words, and the folder in it: s3://bucket/prefix."""
    local = not args.bucket
    if args.endpoint:
        os.environ["AWS_ENDPOINT_URL_S3"] = args.endpoint
    with local_s3() if local else nullcontext(args.endpoint or "AWS") as endpoint:
        bucket = args.bucket or "demo"
        if local:
            boto3.client("s3").create_bucket(Bucket=bucket)
        words = f"{endpoint} (moto, local)" if local else endpoint
        yield words, f"s3://{bucket}/{args.prefix.strip('/')}"


def upload(
    urls: Sequence[str],
    arrays: Sequence[np.ndarray | Mapping[str, np.ndarray]],
    client: tnp.Client | None = None,
) -> int:
    """Saves each array as a .npy, or each dict of arrays as a .npz. Returns the bytes in all."""
    client = client or tnp.default_client()
    before = client.metrics()["bytes_sent"]

    def put(url: str, array: np.ndarray | Mapping[str, np.ndarray]) -> None:
        if isinstance(array, Mapping):
            tnp.savez_compressed(url, **array)
        else:
            tnp.save(url, array, client=client)

    with ThreadPoolExecutor(16) as pool:
        puts = pool.map(put, urls, arrays)
        for _ in tqdm(puts, "      upload", len(urls), unit="object", leave=False):
            pass
    return int(client.metrics()["bytes_sent"] - before)
