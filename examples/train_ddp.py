"""Train on several processes with DistributedDataParallel, and show that each sample was seen once.

A map-style dataset (NpyDataset: one object a digit) is divided by torch's DistributedSampler, an
iterable one (NpyStream: the rows of shards) divides itself.

Usage:
    torchrun --nproc-per-node 2 examples/train_ddp.py                 # with a local S3 server
    torchrun --nproc-per-node 2 examples/train_ddp.py --style map --bucket my-bucket
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from store import add_store_options, open_store, parse_args, upload
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from torchnpy.data import NpyDataset, NpyStream

SHARD_ROWS = 100
# What a sample is: a digit of 8 x 8 pixels, what it shows, and its number in the data set.
RECORD = np.dtype([("image", np.uint8, (8, 8)), ("label", np.int64), ("index", np.int64)])


def main() -> None:
    args = parse_args(make_parser())
    dist.init_process_group("gloo")
    torch.set_num_threads(1)  # the other ranks have the other cores
    torch.manual_seed(0)
    with shared_store(args) as folder:
        for style in ["map", "stream"] if args.style == "both" else [args.style]:
            train(style, folder, args.epochs, args.limit)
    dist.destroy_process_group()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_store_options(parser, prefix="ddp")
    styles = ["map", "stream", "both"]
    parser.add_argument("--style", choices=styles, default="both", help="[%(default)s]")
    parser.add_argument("--epochs", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--limit", type=int, default=1797, help="number of digits [%(default)s]")
    return parser


@contextmanager
def shared_store(args: argparse.Namespace) -> Iterator[str]:
    """Rank 0 opens the store and fills it; the others learn where it is. Yields the folder."""
    if dist.get_rank() == 0:
        with open_store(args) as (store, folder):
            upload_digits(folder, args.limit)
            print(f"Training on {args.limit} digits in {store}, {dist.get_world_size()} ranks")
            dist.broadcast_object_list([folder, store_environment()])
            yield folder
            dist.barrier()  # the others read until here
    else:
        found: list = [None, None]
        dist.broadcast_object_list(found)
        folder, environment = found
        for name in store_environment():
            del os.environ[name]
        os.environ |= environment
        yield folder
        dist.barrier()


def store_environment() -> dict[str, str]:
    """The variables that say where the store is, and as whom to use it."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("AWS_") or name.lower() == "no_proxy"
    }


def upload_digits(folder: str, count: int) -> None:
    """Puts the digits twice: each an object, and as rows of shards."""
    digits = load_digits()
    records = np.zeros(len(digits.target), RECORD)
    records["image"], records["label"] = digits.images, digits.target
    records["index"] = np.arange(len(records))
    records = records[:count]
    shards = [records[i : i + SHARD_ROWS] for i in range(0, len(records), SHARD_ROWS)]
    urls = [f"{folder}/digits/{index:04}.npy" for index in range(len(records))]
    urls += [f"{folder}/shards/{index:03}.npy" for index in range(len(shards))]
    upload(urls, [*records, *shards])


def train(style: str, folder: str, epochs: int, count: int) -> None:
    if style == "map":
        dataset: Dataset = NpyDataset.from_prefix(f"{folder}/digits/")
        sampler = DistributedSampler(dataset)
    else:
        dataset = NpyStream.from_prefix(f"{folder}/shards/", shuffle=True, shuffle_rows=500)
        sampler = None
    loader = DataLoader(dataset, batch_size=32, sampler=sampler, num_workers=1)
    net = DistributedDataParallel(make_net())
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.003)
    for epoch in range(epochs):
        # Else each epoch would have the same order. Both pad: all ranks take as many steps.
        (sampler or dataset).set_epoch(epoch)
        seen, loss = train_epoch(net, optimizer, loader)
        report(f"{style}, epoch {epoch}", seen, loss, count)


def make_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def train_epoch(
    net: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader
) -> tuple[Tensor, float]:
    """The numbers of the samples that this rank saw, int64 [N], and its last loss."""
    seen = []
    for batch in loader:  # a dict: uint8 [B, 8, 8], int64 [B], int64 [B]
        loss = nn.functional.cross_entropy(net(batch["image"].float() / 16), batch["label"])
        optimizer.zero_grad()
        loss.backward()  # gradients are averaged over the ranks here
        optimizer.step()
        seen.append(batch["index"])
    return torch.cat(seen), loss.item()


def report(title: str, seen: Tensor, loss: float, count: int) -> None:
    """Checks on rank 0 that the ranks saw all samples, each once but for the padding."""
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, seen.tolist())
    if dist.get_rank() != 0:
        return
    lengths = [len(one) for one in gathered]
    union = set().union(*gathered)
    repeats = sum(lengths) - count
    print(
        f"{title}: ranks saw {lengths} samples, together {len(union)} of {count}, "
        f"{repeats} of them twice; loss {loss:.3f}"
    )
    if union != set(range(count)) or repeats != -count % len(lengths):
        sys.exit("The ranks should see each sample once, and repeat only what makes them equal.")


if __name__ == "__main__":
    main()
