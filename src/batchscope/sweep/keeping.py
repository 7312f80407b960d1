"""Where do the weights of reported trials go, and which of them are still to be had?

`<store>.weights/`, beside the store, a file for each trial (`training/weights.py`), named by all that decides its bits.

A trial that was stored without its weights is trained again: it is deterministic. Its weights count as the stored
trial's if the result is the stored one, bit for bit; readings of clocks apart, and apart from what was measured beside
it and from whether it reached a goal, which follows from the trace and the goal asked about.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from batchscope.records import Conditions, TrialResult, TrialSpec
from batchscope.store.exact import same_result
from batchscope.sweep.messages import TaskReference


def trial_name(spec: TrialSpec, fingerprint: str, conditions: Conditions) -> str:
    """What the files of a trial are called: no other trial's, even left beside a deleted store."""
    made = json.dumps([fingerprint, dataclasses.asdict(conditions)], sort_keys=True)
    return f"{spec.key()}-{hashlib.sha256(made.encode()).hexdigest()[:12]}"


def weights_folder(store: str | Path) -> Path:
    """The folder of kept weights that belongs to a store."""
    path = Path(store)
    return path.resolve().parent / f"{path.name}.weights"


def weights_file(store: str | Path, spec: TrialSpec, fingerprint: str, conditions: Conditions) -> Path:
    """Where a trial's weights lie, if they were kept."""
    return weights_folder(store) / f"{trial_name(spec, fingerprint, conditions)}.pt"


class Keeping:
    """The weights of one study's trials. `task`: how it is found again; None for a task in memory."""

    def __init__(self, folder: Path, task: TaskReference | None) -> None:
        self.folder = folder
        self.task = dataclasses.asdict(task) if task is not None else None
        self._other: set[str] = set()  # trials whose weights cannot be had here

    def lacks(self, name: str) -> bool:
        """Whether a trial's weights are not there, and have not been tried in vain by this command."""
        return name not in self._other and not self._path(name).exists()

    def order(self, name: str, fingerprint: str, again: bool) -> dict[str, Any]:
        """What a job is told: where to write, and whose weights they are."""
        path = self._path(name, again)
        return {"path": str(path), "fingerprint": fingerprint, "task": self.task}

    def settle(self, name: str, stored: TrialResult, result: TrialResult) -> str:
        """Take the weights of a trial that was trained again, or drop them; returns why, in a sentence, or nothing."""
        new = self._path(name, again=True)
        if same_result(_compared(stored), _compared(result)) and new.exists():
            os.replace(new, self._path(name))
            return ""
        new.unlink(missing_ok=True)
        return self.give_up(name, "it ended otherwise than the stored one: its bits are not those of this machine")

    def give_up(self, name: str, why: str) -> str:
        """A sentence on weights that are not kept, and will not be tried again by this command."""
        self._other.add(name)
        return f"The weights of trial {name.partition('-')[0]} are not kept, for which it was trained again: {why}."

    def _path(self, name: str, again: bool = False) -> Path:
        return self.folder / f"{name}{'.again' if again else '.pt'}"


def _compared(result: TrialResult) -> TrialResult:
    return dataclasses.replace(result, outcome="", noise_scale=None)
