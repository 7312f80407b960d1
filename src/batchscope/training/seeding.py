"""Where does randomness come from? From the trial's seed alone, so that a trial can be repeated bit for bit.

- The model's initialisation and its dropout draw from torch's global generator, seeded once per trial.
- The order of examples in epoch e is a permutation drawn from (seed, e) alone: the same for every batch size.
- Random augmentation of example i in epoch e draws from (seed, e, i) alone: the same for every batch size,
  for any number of loader workers, and after a resume in mid-epoch.
- A loss that draws at random (diffusion, sampling) draws the same numbers at every evaluation, and leaves the
  training's generators as they were: see `training/step.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Generator
from typing import Any

import numpy as np
import torch


def mix(*parts: int) -> int:
    """One 63-bit seed from several integers; streams of different parts are unrelated."""
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed torch (all devices), Python's and numpy's global generators."""
    torch.manual_seed(seed % 2**64)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def seed_rank(seed: int, rank: int) -> None:
    """Another stream for every replica but the first, once the model is made: masks of dropout differ between them."""
    if rank > 0:
        seed_everything(mix(seed, rank))


def seed_host(seed: int) -> None:
    """Seed the host's global generators: what a loader's worker process may touch."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def permutation(seed: int, epoch: int, size: int) -> torch.Tensor:
    """The order of the examples in one epoch: int64 of shape (size,), a function of its arguments alone."""
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    return torch.randperm(size, generator=generator)


def rng_state(device: torch.device) -> dict[str, Any]:
    """The global generators' states as tensors, numbers and strings, which `torch.load(weights_only=True)` reads.

    `device`: what is trained on. Of the cards it is the only one whose generator is drawn from, and the only one that
    counts: it may have another number when the trial goes on.
    """
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "card": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": [version, list(internal), gauss_next],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
    }


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """The inverse of `rng_state`, for the device that is trained on now."""
    torch.set_rng_state(state["torch"])
    if state["card"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["card"], device)
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))


@contextlib.contextmanager
def drawing_from(seed: int) -> Generator[None]:
    """Inside, the host's global generators are seeded with `seed`; afterwards they are as they were."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    seed_host(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])


@contextlib.contextmanager
def torch_drawing_from(seed: int, device: torch.device) -> Generator[None]:
    """Inside, torch's generators on the host and the device are seeded; afterwards they are as they were.

    A few microseconds on the CPU: `torch.manual_seed` and `fork_rng` record a stack trace where CUDA is not in use.
    """
    host = torch.get_rng_state()
    card = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    torch.default_generator.manual_seed(seed)
    if card is not None:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(host)
        if card is not None:
            torch.cuda.set_rng_state(card, device)
