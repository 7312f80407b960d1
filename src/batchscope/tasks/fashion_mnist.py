"""Where are the 70,000 images of Fashion-MNIST on this machine, and are they the right ones?

Four files in IDX format under Zalando's own names, packed (.gz) or not. A file is checked by the SHA-256 of its
*decompressed* bytes: Debian packed the files anew, so those of the packed files differ from place to place.

Source: H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST, arXiv 1708.07747. Licence: MIT.
"""

import functools
import gzip
import hashlib
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from batchscope.errors import TaskError

VARIABLE = "BATCHSCOPE_FASHION_MNIST"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # the package dataset-fashion-mnist
INSTALL = "sudo apt-get install dataset-fashion-mnist"

# SHA-256 of the decompressed files in Debian's dataset-fashion-mnist 0.0~git20200523.55506a9-1.
FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
IDX_HEADER = {1: 8, 3: 16}  # bytes before the data: a magic number and one 32-bit size for each dimension

MEAN, SD = 0.2860, 0.3530  # of the 60,000 images' pixels in [0, 1]
TRAIN = 49_152  # 3 x 2^14 of the 60,000: batch sizes up to 16,384 that are powers of two leave no short batch
SPLIT_SEED = 0

Examples = tuple[torch.Tensor, torch.Tensor]


class Split(NamedTuple):
    """Images (n, 28, 28) float32, standardised, and labels (n,) int64: 49,152, 10,848 and 10,000 of them."""

    train: Examples
    valid: Examples
    test: Examples


def load() -> Split:
    """Training and validation images, cut from the 60,000 by a fixed permutation, and the 10,000 test images.

    Every batch size that is a power of two divides the training set. With 50,000 images and batches of 64 each epoch
    ended in a batch of 16, whose noisy step at the full learning rate raised the validation loss by a tenth to a
    double (measured, SGD at 0.1), just where an evaluation at the end of the epoch reads it.
    """
    images, labels, test_images, test_labels = _arrays(find())
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED)).numpy()
    train, valid = order[:TRAIN], order[TRAIN:]
    return Split(
        _tensors(images[train], labels[train]),
        _tensors(images[valid], labels[valid]),
        _tensors(test_images, test_labels),
    )


def find() -> Path:
    """The first folder that holds all four files; TaskError naming every place looked at where none does."""
    places = _places()
    for folder in places:
        if all(_file(folder, name) is not None for name in FILES):
            return folder
    raise TaskError(
        "expected Fashion-MNIST's four files (train-images-idx3-ubyte.gz and so on) in one of "
        f"{', '.join(map(str, places))}, found them in none: run {INSTALL}, "
        f"or set {VARIABLE} to the folder that holds them"
    )


def _places() -> list[Path]:
    """Where to look, in order. A folder that the user names is the only place looked at."""
    named = os.environ.get(VARIABLE)
    if named:
        return [Path(named).expanduser()]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    torchvision = [root / "FashionMNIST" / "raw" for root in (Path("data"), Path.home() / "data")]
    return [cache / "batchscope" / "fashion-mnist", DEBIAN, *torchvision]


def _file(folder: Path, name: str) -> Path | None:
    """The file in this folder, unpacked or packed."""
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


@functools.cache
def _arrays(folder: Path) -> tuple[np.ndarray, ...]:
    """The four files as uint8 arrays, in the order of FILES; read once in a process."""
    return tuple(_array(folder, name, digest) for name, digest in FILES.items())


def _array(folder: Path, name: str, digest: str) -> np.ndarray:
    """One file: (n, 28, 28) images or (n,) labels; TaskError where its bytes are not the published ones."""
    path = _file(folder, name)
    assert path is not None, f"{folder} was searched for {name} just now"
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(
            f"expected {path} to be a readable file of Fashion-MNIST, got {error}: {_again(path)}"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise TaskError(
            f"expected the decompressed bytes of {path} to have SHA-256 {digest[:12]}..., got {found[:12]}... "
            f"({len(content):,} bytes): {_again(path)}"
        )
    rank = content[3]
    shape = tuple(np.frombuffer(content, ">i4", rank, offset=4))
    return np.frombuffer(content, np.uint8, offset=IDX_HEADER[rank]).reshape(shape)


def _again(path: Path) -> str:
    """What to do about a damaged file."""
    if path.parent == DEBIAN:
        return f"run {INSTALL} --reinstall"
    return f"remove it and fetch it again, or run {INSTALL} and unset {VARIABLE}"


def _tensors(images: np.ndarray, labels: np.ndarray) -> Examples:
    """Standardised float32 images and int64 labels."""
    pixels = torch.from_numpy(images.astype(np.float32)).div_(255).sub_(MEAN).div_(SD)
    return pixels, torch.from_numpy(labels.astype(np.int64))
