"""Train a small network on handwritten digits that live in S3, one .npy object each.

Usage:
    python examples/train_digits.py                                     # with a local S3 server
    python examples/train_digits.py --bucket my-bucket --prefix digits  # with a real store
"""

import argparse
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from store import add_store_options, open_store, parse_args, upload
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, random_split
from tqdm import tqdm

import torchnpy.data


class DigitNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 10),
        )

    def forward(self, images: Tensor) -> Tensor:  # uint8 [N, 8, 8] -> float32 [N, 10]
        return self.layers(images.unsqueeze(1).float() / 16)


class DigitReader(nn.Module):
    """What is deployed: takes a URL, and needs no Python to load what is there."""

    def __init__(self, net: DigitNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, url: str) -> Tensor:  # float32 [10], the probability of each digit
        image = torch.ops.npy.load(url)  # uint8 [8, 8]
        return self.net(image.unsqueeze(0)).softmax(1).squeeze(0)


def main() -> None:
    args = parse_args(make_parser())
    torch.manual_seed(0)
    with open_store(args) as (store, folder):
        print(f"[1/5] Using the S3 store at {store}")

        start = time.perf_counter()
        nbytes = upload_digits(folder, args.limit)
        seconds = time.perf_counter() - start
        print(f"[2/5] Uploaded {args.limit} digits to {folder}/images/ in {seconds:.1f} s")

        dataset = torchnpy.data.NpyDataset.from_prefix(
            f"{folder}/images/", labels=f"{folder}/labels.npy"
        )
        train, held_out = random_split(dataset, [0.8, 0.2], torch.Generator().manual_seed(0))
        print(f"[3/5] Training on {len(train)} digits, {len(held_out)} are held out to test it")

        net = DigitNet()
        start = time.perf_counter()
        curve = list(train_net(net, train, held_out, args.epochs, nbytes // args.limit))
        speed = args.epochs * len(train) / (time.perf_counter() - start)

        args.output.mkdir(parents=True, exist_ok=True)
        model_path, plot_path = args.output / "digit_reader.pt", args.output / "digits.png"
        with warnings.catch_warnings():  # TorchScript is deprecated, and still how C++ loads models
            warnings.filterwarnings("ignore", r".*torch\.jit\.")
            torch.jit.script(DigitReader(net).eval()).save(str(model_path))
            reader = torch.jit.load(str(model_path))
        print(f"[4/5] Saved a model that takes a URL and needs no Python: {model_path}")

        urls = [dataset.urls[i] for i in held_out.indices[:12]]
        probabilities = torch.stack([reader(url) for url in urls])
        digit = int(probabilities[0].argmax())
        print(f"[5/5] It looked at {urls[0]} and says: this is a {digit}")
        plot(urls, probabilities, curve, plot_path)

    accuracy = curve[-1][1]
    print(f"\nheld-out accuracy  {accuracy:.1f} %")
    print(f"speed              {speed:.0f} samples/s, from S3 in each of {args.epochs} epochs")
    print(f"files              {plot_path}, {model_path}")
    if accuracy < args.min_accuracy:
        sys.exit(f"The accuracy should be at least {args.min_accuracy} %; try more --epochs.")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_store_options(parser, prefix="digits")
    parser.add_argument("--epochs", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--limit", type=int, default=1797, help="number of digits [%(default)s]")
    parser.add_argument("--min-accuracy", type=float, default=95, help="in per cent [%(default)s]")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder [%(default)s]")
    return parser


def upload_digits(folder: str, count: int) -> int:
    """Puts the images, each an object, and the labels, one array. Returns the images' bytes."""
    digits = load_digits()
    images = digits.images.astype(np.uint8)[:count]
    upload([f"{folder}/labels.npy"], [digits.target[:count]])
    urls = [f"{folder}/images/{index:04}.npy" for index in range(count)]
    return upload(urls, list(images))


def train_net(
    net: DigitNet, train: Subset, held_out: Subset, epochs: int, nbytes: int
) -> Iterator[tuple[float, float]]:
    """Yields (seconds, accuracy in per cent on `held_out`). A sample has `nbytes` in the store."""
    loader = DataLoader(train, batch_size=32, shuffle=True, num_workers=2, persistent_workers=True)
    # uint8 [N, 8, 8], int64 [N]: fetched once, concurrently
    test_images, test_labels = next(iter(DataLoader(held_out, batch_size=len(held_out))))
    optimizer = torch.optim.AdamW(net.parameters())
    steps = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)

    start = time.perf_counter()
    with tqdm(total=epochs * len(train), desc="      train", unit="sample") as progress:
        for _ in range(epochs):
            for step, (images, labels) in enumerate(loader):  # uint8 [32, 8, 8], int64 [32]
                loss = nn.functional.cross_entropy(net(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

                progress.update(len(images))
                seconds = time.perf_counter() - start
                rate = progress.n * nbytes / seconds / 1e3
                progress.set_postfix_str(f"{rate:.0f} kB/s, loss {loss:.3f}", refresh=False)
                if step % 15 == 0 or step == len(loader) - 1:
                    yield seconds, accuracy_percent(net, test_images, test_labels)


@torch.no_grad()
def accuracy_percent(net: DigitNet, images: Tensor, labels: Tensor) -> float:
    return 100 * (net(images).argmax(1) == labels).float().mean().item()


def plot(
    urls: list[str], probabilities: Tensor, curve: list[tuple[float, float]], path: Path
) -> None:
    """The held-out digits at `urls` with what the model says of them; accuracy over time."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subfigures(1, 2)
    images = torchnpy.load_many(urls)  # a list of uint8 [8, 8]
    for axes, image, row in zip(left.subplots(3, 4).flat, images, probabilities, strict=False):
        axes.imshow(image, cmap="gray_r")
        axes.set_title(f"{int(row.argmax())}  ({row.max():.0%})", fontsize=10)
        axes.axis("off")
    axes = right.subplots()
    axes.plot(*zip(*curve, strict=True), marker=".")
    axes.set(xlabel="seconds", ylabel="%", title="accuracy on held-out digits", ylim=(0, 100))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
