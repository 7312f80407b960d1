"""How does a half-done trial go on, bit for bit? A checkpoint holds all that the next step depends on.

Model, optimiser, schedule, random generators, position in the data order, trace. The initial weights are not in it:
they follow from the seed. What every rank has of its own is in it by rank: its generators, its model's buffers (batch
norm's statistics of its part of every batch, say), and its pieces of a sharded model.

Written to a temporary file and renamed, so that a kill leaves the old one or the new one; read with
`weights_only=True`, so that a checkpoint cannot run code. A file that cannot be read, or belongs to another trial,
counts as none: the trial starts again. So does one whose optimiser or schedule holds what cannot be written that way
(a function, say): it has no checkpoints, and its result is the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
import pickle
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from batchscope.errors import StoreError
from batchscope.records import Evaluation, TrialSpec, from_plain, to_plain
from batchscope.training.device import is_out_of_memory
from batchscope.training.distributed import Replicas
from batchscope.training.seeding import rng_state, set_rng_state
from batchscope.training.sharding import packed, root_of, unpacked


@dataclass
class Position:
    """How far a trial has come."""

    step: int = 0
    examples: int = 0
    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    trace: list[Evaluation] = field(default_factory=list)
    best_state: dict[str, Any] | None = None  # weights at the lowest validation loss, kept only where they are needed


class Checkpoint:
    """One trial's checkpoint file, written at most every `seconds` (a clock that decides no result).

    `at_cap`: written also where the trial ends by its cap, so that it can go on under a higher one. The cap is no part
    of what a checkpoint belongs to: it decides where a trial ends, not how it gets there.
    """

    def __init__(self, path: str | Path, seconds: float = 10.0, at_cap: bool = False) -> None:
        self.path, self.seconds, self.at_cap = Path(path), seconds, at_cap
        self._written = time.monotonic()

    def due(self, replicas: Replicas | None = None) -> bool:
        """Whether enough time has passed since the last one; with replicas, by the clock of rank 0."""
        due = time.monotonic() - self._written >= self.seconds
        return due if replicas is None else replicas.from_lead(due)

    def save(
        self, spec: TrialSpec, position: Position, parts: dict[str, Any], replicas: Replicas | None = None
    ) -> None:
        """Write everything; `parts` are named objects with a `state_dict`. With replicas all call it, rank 0 writes."""
        own = {"rng": rng_state(_device(parts)), "buffers": _buffers(parts)}
        shared = _held(position, parts)
        if root_of(parts["model"]) is not None:
            own, shared = own | shared, {}
        of_each = [own] if replicas is None else replicas.at_lead(packed(own))
        if of_each is None:
            return
        state = {
            "key": uncapped(spec).key(),
            "position": [position.step, position.examples, position.epoch, position.batch],
            "trace": json.dumps(to_plain(position.trace)),
            "own": of_each,
        }
        state |= shared
        with contextlib.suppress(AttributeError, TypeError, pickle.PicklingError):  # pickle's ways to say no
            write_state(self.path, state, "a checkpoint")
        self._written = time.monotonic()

    def load(
        self, spec: TrialSpec, parts: dict[str, Any], replicas: Replicas | None = None, best: bool = False
    ) -> Position | None:
        """Restore `parts` and the generators; None where there is no usable checkpoint of this trial.

        With replicas all call it: rank 0 reads, and the others get what it read, each with what is its own. `best`: one
        that was written without the weights at the lowest validation loss is of no use.
        """
        state = self._read(spec, best) if replicas is None or replicas.leads else None
        root = root_of(parts.get("model"))
        if state is not None and ("parts" in state) != (root is None):
            state = None
        of_each = state.pop("own") if state is not None else []
        if replicas is not None:
            state = replicas.from_lead(state)
        if state is None:
            return None
        state |= unpacked(of_each[0] if replicas is None else replicas.to_each(of_each), root)
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        for name, saved in state["buffers"].items():
            for key, buffer in _buffers(parts)[name].items():
                buffer.copy_(saved[key])
        set_rng_state(state["rng"], _device(parts))
        step, examples, epoch, batch = state["position"]
        trace = [from_plain(Evaluation, line) for line in json.loads(state["trace"])]
        return Position(step, examples, epoch, batch, trace, state["best_state"])

    def _read(self, spec: TrialSpec, best: bool) -> dict[str, Any] | None:
        """The file's content; None where there is none that can be used."""
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, weights_only=True, map_location="cpu")
        except Exception:  # a damaged file can make the unpickler fail in any way
            return None
        of_it = isinstance(state, dict) and state.get("key") == uncapped(spec).key()
        usable = of_it and isinstance(state.get("own"), list)
        if not usable or (best and all(held.get("best_state") is None for held in (state, *state["own"]))):
            return None
        return state

    def remove(self) -> None:
        """Delete the file, and what a kill left of unfinished ones: the trial is finished and stored."""
        self.path.unlink(missing_ok=True)
        for leftover in self.path.parent.glob(f"{glob.escape(self.path.stem)}.*.tmp"):
            leftover.unlink(missing_ok=True)


def uncapped(spec: TrialSpec) -> TrialSpec:
    """The same trial without a cap."""
    return dataclasses.replace(spec, stop=dataclasses.replace(spec.stop, cap_examples=None))


def write_state(path: Path, state: Any, what: str) -> None:
    """`torch.save` to a temporary file, which takes the place of `path` once it is whole.

    Raises StoreError where the medium fails (full, say), and whatever pickle raises where a state cannot be written.
    """
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, temporary)
        os.replace(temporary, path)
    except Exception as error:
        temporary.unlink(missing_ok=True)
        if not isinstance(error, (OSError, RuntimeError)) or is_out_of_memory(error):
            raise
        raise StoreError(  # torch reports a full disk as RuntimeError
            f"expected to write {what} at {path}, got {error}: free some space; finished trials are safe"
        ) from error


def _held(position: Position, parts: dict[str, Any]) -> dict[str, Any]:
    """What of a checkpoint holds the model and its optimiser; of a sharded model, this rank's pieces."""
    return {
        "best_state": position.best_state,
        "parts": {name: plain(part.state_dict()) for name, part in parts.items()},
    }


def _device(parts: dict[str, Any]) -> torch.device:
    """What the model is trained on."""
    return next(parts["model"].parameters()).device


def _buffers(parts: dict[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """Every module's buffers; those registered with persistent=False are not in its `state_dict`."""
    modules = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}
    return {name: dict(module.named_buffers()) for name, module in modules.items()}


def plain(state: Any) -> Any:
    """A state with numpy's numbers as Python's of the same value (a schedule that calls numpy leaves them there)."""
    if isinstance(state, np.generic):
        return state.item()
    if type(state) is dict:
        return {key: plain(value) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(plain(value) for value in state)
    return state
