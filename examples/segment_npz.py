"""Learn to find handwriting on photographs: image and mask pairs in S3, one .npz archive each.

The digits are real, and so are the photographs that they are drawn on; both ship with scikit-learn.
The network is tested on digits and on parts of the photographs that it has never seen.

Usage:
    python examples/segment_npz.py                                     # with a local S3 server
    python examples/segment_npz.py --bucket my-bucket --prefix scenes  # with a real store
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits, load_sample_images
from store import add_store_options, open_store, parse_args, upload
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from torchnpy.data import NpzDataset

SIDE = 32  # of a scene, in pixels
MEMBERS = ["image", "mask"]


class MaskNet(nn.Module):
    """A small U-Net: what it saw at full resolution helps to draw the mask's edges."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = convolutions(3, 16)
        self.coarse = convolutions(16, 32)
        self.bottom = convolutions(32, 64)
        self.up_coarse = convolutions(64 + 32, 32)
        self.up_fine = convolutions(32 + 16, 16)
        self.logit = nn.Conv2d(16, 1, 1)
        self.shrink = nn.MaxPool2d(2)
        self.grow = nn.Upsample(scale_factor=2)

    def forward(self, images: Tensor) -> Tensor:  # uint8 [N, 3, H, W] -> float32 [N, H, W]
        fine = self.fine(images.float() / 127.5 - 1)  # [N, 16, H, W]
        coarse = self.coarse(self.shrink(fine))  # [N, 32, H/2, W/2]
        bottom = self.bottom(self.shrink(coarse))  # [N, 64, H/4, W/4]
        coarse = self.up_coarse(torch.cat([self.grow(bottom), coarse], 1))
        fine = self.up_fine(torch.cat([self.grow(coarse), fine], 1))
        return self.logit(fine).squeeze(1)


def convolutions(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def main() -> None:
    args = parse_args(make_parser())
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the workers have the other cores
    with open_store(args) as (store, folder):
        print(f"[1/4] Using the S3 store at {store}")

        start = time.perf_counter()
        nbytes = upload_scenes(folder, args.limit)
        seconds = time.perf_counter() - start
        print(f"[2/4] Uploaded {args.limit} archives to {folder}/ in {seconds:.1f} s")

        train = NpzDataset.from_prefix(f"{folder}/train/", members=MEMBERS)
        held_out = NpzDataset.from_prefix(f"{folder}/held_out/", members=MEMBERS)
        print(f"[3/4] Training on {len(train)} scenes, {len(held_out)} are held out to test it")
        scenes = next(iter(DataLoader(held_out, len(held_out))))  # fetched once, concurrently
        net = MaskNet()
        start = time.perf_counter()
        curve = list(train_net(net, train, scenes, args.epochs, nbytes // args.limit))
        speed = args.epochs * len(train) / (time.perf_counter() - start)

    args.output.mkdir(parents=True, exist_ok=True)
    plot_path = args.output / "segments.png"
    plot(net, scenes, curve, plot_path)
    print(f"[4/4] Drew what it marks on scenes that it has never seen: {plot_path}")

    score = curve[-1][1]
    print(f"\nheld-out overlap   {score:.1f} % (intersection over union)")
    print(f"speed              {speed:.0f} samples/s, from S3 in each of {args.epochs} epochs")
    print(f"files              {plot_path}")
    if score < args.min_overlap:
        sys.exit(f"The overlap should be at least {args.min_overlap} %; try more --epochs.")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_store_options(parser, prefix="scenes")
    parser.add_argument("--epochs", type=int, default=4, help="[%(default)s]")
    parser.add_argument("--limit", type=int, default=1000, help="number of scenes [%(default)s]")
    parser.add_argument("--min-overlap", type=float, default=70, help="in per cent [%(default)s]")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder [%(default)s]")
    return parser


@dataclass(frozen=True)
class Scene:
    image: np.ndarray  # uint8 [3, SIDE, SIDE]
    mask: np.ndarray  # bool [SIDE, SIDE]: where there is ink


def upload_scenes(folder: str, count: int) -> int:
    """Puts the archives, four fifths of them for training. Returns their bytes."""
    random = np.random.default_rng(0)
    train_count = count * 4 // 5
    inks = load_digits().images / 16  # float64 [1797, 8, 8], the ink between 0 and 1
    photos = np.stack(load_sample_images().images)  # uint8 [2, 427, 640, 3]
    edge = photos.shape[2] * 4 // 5
    digit_edge = len(inks) * 4 // 5
    urls, scenes = [], []
    for index in range(count):
        if index < train_count:
            name, ground, digits = "train", photos[:, :, :edge], inks[:digit_edge]
        else:
            name, ground, digits = "held_out", photos[:, :, edge:], inks[digit_edge:]
        urls.append(f"{folder}/{name}/{index:04}.npz")
        scenes.append(asdict(draw_scene(random, ground, digits)))
    return upload(urls, scenes)


def draw_scene(random: np.random.Generator, photos: np.ndarray, inks: np.ndarray) -> Scene:
    """A digit on a piece of a photograph, in an ink that stands out from its mean."""
    photo = photos[random.integers(len(photos))]
    top, left = (random.integers(extent - SIDE + 1) for extent in photo.shape[:2])
    image = photo[top : top + SIDE, left : left + SIDE].astype(np.float64)
    digit = enlarge(inks[random.integers(len(inks))], random.choice([16, 20, 24, 28]))
    top, left = random.integers(SIDE - len(digit) + 1, size=2)
    ink = np.zeros((SIDE, SIDE))
    ink[top : top + len(digit), left : left + len(digit)] = digit
    colours = random.integers(0, 256, (8, 3))
    colour = max(colours, key=lambda colour: np.abs(colour - image.mean((0, 1))).sum())
    image += ink[:, :, None] * (colour - image)
    return Scene(np.ascontiguousarray(image.astype(np.uint8).transpose(2, 0, 1)), ink > 0.5)


def enlarge(ink: np.ndarray, side: int) -> np.ndarray:
    pixels = torch.from_numpy(ink)[None, None]  # float64 [1, 1, 8, 8]
    return nn.functional.interpolate(pixels, size=side, mode="bilinear")[0, 0].numpy()


def train_net(
    net: MaskNet, train: NpzDataset, scenes: dict[str, Tensor], epochs: int, nbytes: int
) -> Iterator[tuple[float, float]]:
    """Yields (seconds, overlap in per cent on `scenes`). An archive has `nbytes` in the store."""
    loader = DataLoader(train, batch_size=32, shuffle=True, num_workers=2, persistent_workers=True)
    optimizer = torch.optim.AdamW(net.parameters())
    steps = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)

    start = time.perf_counter()
    with tqdm(total=epochs * len(train), desc="      train", unit="sample") as progress:
        for _ in range(epochs):
            for step, batch in enumerate(loader):
                images = batch["image"]  # uint8 [32, 3, 32, 32]
                masks = batch["mask"].float()  # bool -> float32 [32, 32, 32]
                loss = nn.functional.binary_cross_entropy_with_logits(net.train()(images), masks)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

                progress.update(len(images))
                seconds = time.perf_counter() - start
                rate = progress.n * nbytes / seconds / 1e3
                progress.set_postfix_str(f"{rate:.0f} kB/s, loss {loss:.3f}", refresh=False)
                if step % 10 == 9 or step == len(loader) - 1:
                    yield seconds, overlap_percent(find_ink(net, scenes["image"]), scenes["mask"])


@torch.no_grad()
def find_ink(net: MaskNet, images: Tensor) -> Tensor:
    return net.eval()(images) > 0  # bool [N, H, W]


def overlap_percent(found: Tensor, masks: Tensor) -> float:
    """Of the pixels that are marked in either, those that are in both."""
    return 100 * (found & masks).sum().item() / (found | masks).sum().item()


def plot(
    net: MaskNet, scenes: dict[str, Tensor], curve: list[tuple[float, float]], path: Path
) -> None:
    """Some of the held-out scenes, their masks and what the network marks; overlap over time."""
    images, masks = (
        scenes["image"][:6],
        scenes["mask"][:6],
    )  # uint8 [6, 3, 32, 32], bool [6, 32, 32]
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2, 1))
    rows = {"image": images.permute(0, 2, 3, 1), "mask": masks, "found": find_ink(net, images)}
    grid = left.subplots(len(rows), len(images), squeeze=False)
    for line, (name, pictures) in zip(grid, rows.items(), strict=True):
        for axes, picture in zip(line, pictures, strict=True):
            axes.imshow(picture, cmap="gray")
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    axes = right.subplots()
    axes.plot(*zip(*curve, strict=True), marker=".")
    axes.set(xlabel="seconds", ylabel="%", title="overlap on held-out scenes", ylim=(0, 100))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
