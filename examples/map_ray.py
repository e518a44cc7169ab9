"""Map over a data set with Ray Data: images as .npy in S3, normalised, written back in .npz shards.

Ray reads the images in tasks, wherever it has CPUs, maps over them in batches, and each batch
becomes a shard. The images are the handwritten digits that ship with scikit-learn.

Usage:
    python examples/map_ray.py                                     # with a local S3 server
    python examples/map_ray.py --bucket my-bucket --prefix digits  # with a real store
"""

import argparse
import hashlib
import logging
import os
import time
from functools import partial

import numpy as np
import ray
from sklearn.datasets import load_digits
from store import add_store_options, open_store, parse_args, upload

import torchnpy as tnp
import torchnpy.ray

Batch = dict[str, np.ndarray]


def main() -> None:
    args = parse_args(make_parser())
    with open_store(args) as (store, folder):
        print(f"[1/4] Using the S3 store at {store}")

        urls = upload_digits(folder, args.limit)
        print(f"[2/4] Uploaded {len(urls)} arrays to {folder}/raw/")

        start_ray(args.cpus)
        start = time.perf_counter()
        dataset = torchnpy.ray.read_npy(f"{folder}/raw/", split_rows=False)
        shards = (
            dataset.map_batches(normalise, batch_size=args.shard)
            .map_batches(partial(write_shard, folder=folder), batch_size=args.shard)
            .take_all()
        )
        seconds = time.perf_counter() - start
        ray.shutdown()
        print(f"[3/4] Mapped them with Ray and wrote {len(shards)} shards in {seconds:.1f} s")

        shards.sort(key=lambda shard: shard["url"])
        with tnp.open_npz(shards[0]["url"]) as archive:
            print(f"[4/4] Read the first shard:\n{archive}")
        nbytes = sum(info.nbytes for info in tnp.default_client().list(f"{folder}/shards/"))
    count = sum(shard["count"] for shard in shards)
    print(f"\nimages   {count}, each normalised and in a shard")
    print(f"shards   {nbytes / 1e3:.0f} kB in {folder}/shards/")
    print(f"speed    {count / seconds:.0f} images/s, with the start of Ray's workers")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_store_options(parser, prefix="digits")
    parser.add_argument("--limit", type=int, default=1000, help="number of images [%(default)s]")
    parser.add_argument("--shard", type=int, default=250, help="images in a shard [%(default)s]")
    parser.add_argument("--cpus", type=int, default=2, help="that Ray may use [%(default)s]")
    return parser


def start_ray(cpus: int) -> None:
    """A Ray of this machine. Its workers find the store and its keys in the environment."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="error")
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def upload_digits(folder: str, limit: int) -> list[str]:
    images = load_digits().images[:limit].astype(np.uint8)  # [N, 8, 8]
    urls = [f"{folder}/raw/{i:04}.npy" for i in range(len(images))]
    upload(urls, list(images))
    return urls


def normalise(batch: Batch) -> Batch:
    images = batch["data"].astype(np.float32)  # uint8 [N, 8, 8] -> float32
    images -= images.mean((1, 2), keepdims=True)
    return {"image": images}


def write_shard(batch: Batch, folder: str) -> Batch:
    """Saves a batch in the store, and says where."""
    # Of the content: a task that Ray repeats writes the same object again.
    name = hashlib.sha256(batch["image"].tobytes()).hexdigest()[:16]
    url = f"{folder}/shards/{name}.npz"
    tnp.savez_compressed(url, **batch)
    return {"url": np.array([url]), "count": np.array([len(batch["image"])])}


if __name__ == "__main__":
    main()
