"""Which weights did a trial end with? A file for each trial whose weights are kept, so that they can be measured later.

In it: the model's state at the lowest validation loss and at the end, the trainable parameters as the trial began (they
follow from the seed, but not under every version of torch), the specification, the task's fingerprint, and where the
task is found again. Tensors are on the host.

Written to a temporary file and renamed, so that it is whole or not there; read with `weights_only=True`, so that it
cannot run code.
"""

from __future__ import annotations

import glob
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from batchscope.errors import StoreError
from batchscope.records import TrialSpec, from_plain, to_plain
from batchscope.task import Task
from batchscope.training.batches import mapped, nbytes
from batchscope.training.checkpoint import plain, write_state
from batchscope.training.seeding import drawing_from


@dataclass(frozen=True)
class Snapshot:
    """A model at one moment of its training: its `state_dict`, parameters and buffers."""

    step: int
    examples: int
    state: dict[str, Any]


@dataclass(frozen=True)
class Weights:
    """What a trial's training went through."""

    initial: dict[str, torch.Tensor]  # the trainable parameters as it began, by name
    best: Snapshot  # at the lowest validation loss, the first of equals
    last: Snapshot


@dataclass(frozen=True)
class KeptWeights(Weights):
    """The same with whose they are."""

    spec: TrialSpec
    fingerprint: str
    task: dict[str, Any] | None  # reference, folder, path: how the task is found again; None: it came as an object

    @property
    def key(self) -> str:
        """The specification's."""
        return self.spec.key()


def on_host(state: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a `state_dict`, which later steps do not change."""
    return mapped(dict(state), lambda tensor: tensor.detach().cpu().clone())


def save_weights(path: Path, kept: KeptWeights) -> None:
    """Write the file; raises StoreError where that fails."""
    content = {
        "spec": to_plain(kept.spec),
        "fingerprint": kept.fingerprint,
        "task": kept.task,
        "initial": kept.initial,
        "best": plain(vars(kept.best)),
        "last": plain(vars(kept.last)),
    }
    try:
        write_state(path, content, "a trial's weights")
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise StoreError(
            f"expected a model whose state can be written, got {type(error).__name__}: {error}: keep tensors and "
            "numbers in its extra state, or leave --keep-weights out"
        ) from error
    remove_halves(path)


def load_weights(path: str | Path) -> KeptWeights | None:
    """What is in a file; None where there is none that can be read."""
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        return KeptWeights(
            initial=content["initial"],
            best=Snapshot(**content["best"]),
            last=Snapshot(**content["last"]),
            spec=from_plain(TrialSpec, content["spec"]),
            fingerprint=content["fingerprint"],
            task=content["task"],
        )
    except Exception:  # a damaged file can make the unpickler fail in any way
        return None


def remove_halves(path: Path) -> None:
    """Delete what a kill left of unfinished files."""
    for leftover in path.parent.glob(f"{glob.escape(path.stem)}.*.tmp"):
        leftover.unlink(missing_ok=True)


def bytes_kept(task: Task) -> int:
    """Of a trial's file: two states and the trainable parameters."""
    with drawing_from(0):
        model = task.model()
    return 2 * nbytes(dict(model.state_dict())) + sum(p.nbytes for p in model.parameters() if p.requires_grad)
