"""How do planned trials become stored records? Lease, run, keep the lease, store, retry once; for any executor.

The runner alone writes the store. A trial that another process holds is waited for. A trial whose worker died is
tried once more, from its checkpoint; a second death makes it `failed`, with the reason.

Where weights are kept, a stored trial that lacks them is trained again. It has no lease: whoever has claimed the
machine trains it, so that nobody else does and nobody takes timings meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from batchscope import errors
from batchscope.records import Conditions, Goal, TrialRecord, TrialResult, TrialSpec, from_plain
from batchscope.store.base import Store
from batchscope.store.owner import Owner
from batchscope.sweep.executors.base import Died, Done, Event, Executor, Line, Refused
from batchscope.sweep.jobs import Job, trial_job
from batchscope.sweep.keeping import Keeping, trial_name
from batchscope.training.checkpoint import Checkpoint, uncapped

LEASE_SECONDS = 60.0  # a runner that stops renewing for so long is taken for dead
POLL_SECONDS = 0.5
DEATHS_ALLOWED = 1  # tried once more after the first
REPORTED = ("held", "tuned")  # the roles whose weights are kept, where any are

Listener = Callable[[str, dict], None]


class Runner:
    """Runs trials of one study on an executor. `listen(kind, details)` hears of progress."""

    def __init__(
        self,
        store: Store,
        study_id: str | None,
        fingerprint: str,
        conditions: Conditions,
        goal: Goal | None,
        executor: Executor,
        checkpoints: Path,
        checkpoint_seconds: float,
        listen: Listener,
        keeping: Keeping | None = None,
    ) -> None:
        self.store, self.study_id, self.fingerprint, self.conditions = store, study_id, fingerprint, conditions
        self.goal, self.executor, self.checkpoints = goal, executor, checkpoints
        self.checkpoint_seconds, self.listen = checkpoint_seconds, listen
        self.owner = Owner.here()
        self._waiting: dict[int, TrialSpec] = {}
        self._running: dict[int, TrialSpec] = {}
        self._renewed, self._watch, self._at_cap = 0.0, False, False
        self.keeping, self.notes = keeping, []
        self._kept: set[int] = set()  # trials whose weights are wanted
        self._again: set[int] = set()  # of those that run, the stored ones

    def run(
        self,
        wanted: Mapping[str, Sequence[TrialSpec]],
        watch: bool = False,
        keep: Collection[str] = REPORTED,
        at_cap: bool = False,
    ) -> dict[str, list[TrialRecord]]:
        """All of these trials, by role, finished: stored ones are read, the others run. In the order given.

        `watch`: their gradient noise is measured beside them. `keep`: roles whose weights are kept, with a `keeping`.
        `at_cap`: those that end by their cap leave a checkpoint, from which they go on under a higher one, until it is
        dropped (`drop_checkpoints`).
        """
        self._watch, self._at_cap = watch, at_cap
        ids = {role: self._add(role, specs) for role, specs in wanted.items()}
        self._kept = {i for role in keep for i in ids.get(role, [])} if self.keeping is not None else set()
        asked = {i: s for role, specs in wanted.items() for i, s in zip(ids[role], specs, strict=True)}
        self.listen("phase", {"roles": {role: len(specs) for role, specs in wanted.items()}, "trials": len(asked)})
        # most steps first, so that no long trial is left for the end; the order changes no result
        self._waiting = dict(sorted(asked.items(), key=lambda item: item[1].arm.batch_size))
        self._work()
        return {role: [r for i in ids[role] if (r := self.store.trial(i)) is not None] for role in wanted}

    def _add(self, role: str, specs: Sequence[TrialSpec]) -> list[int]:
        return self.store.add_trials(self.study_id, role, self.fingerprint, self.conditions, list(specs))

    def _work(self) -> None:
        """Until nothing waits and nothing runs; on any exception the leases are given back."""
        self.executor.meanwhile = self._line
        try:
            self._fill()
            while self._waiting or self._running:
                for event in self.executor.events(POLL_SECONDS):
                    self._take(event)
                self._renew()
                self._fill()
        except BaseException:
            for trial_id in self._running:
                self.store.release(trial_id, self.owner, "interrupted", "the command was stopped")
            raise
        finally:
            self._running = {}
            self._end_again(*self._again)

    def _renew(self) -> None:
        """The heartbeat."""
        if self._running and time.monotonic() - self._renewed > LEASE_SECONDS / 3:
            self.store.renew(list(self._running), self.owner, LEASE_SECONDS)
            if self._again:
                self.store.claim_machine(self.owner, LEASE_SECONDS)
            self._renewed = time.monotonic()

    def _fill(self) -> None:
        """Start waiting trials while there are slots and leases to be had."""
        for trial_id in list(self._waiting):
            if len(self._running) >= self.executor.slots:
                return
            state = self.store.lease(trial_id, self.owner, LEASE_SECONDS).state
            if state == "done" and self._lacks_weights(trial_id):
                if self.store.claim_machine(self.owner, LEASE_SECONDS) == "busy":
                    continue
                self._again.add(trial_id)
                state = "leased"
            if state == "done":
                self._skip(trial_id, self._waiting.pop(trial_id))
            elif state == "leased":
                spec = self._running[trial_id] = self._waiting.pop(trial_id)
                self.executor.start(self._job(trial_id, spec))
                self.listen("started", {"trial": trial_id, "spec": spec})

    def _lacks_weights(self, trial_id: int) -> bool:
        """Whether a stored trial is to be trained again for its weights. One that failed has none."""
        if (
            self.keeping is None
            or trial_id not in self._kept
            or not self.keeping.lacks(self._name(self._waiting[trial_id]))
        ):
            return False
        record = self.store.trial(trial_id)
        return record is not None and record.result.outcome != "failed"

    def _skip(self, trial_id: int, spec: TrialSpec) -> None:
        self._remove_checkpoint(spec)
        self.listen("stored", {"trial": trial_id, "spec": spec})

    def _job(self, trial_id: int, spec: TrialSpec) -> Job:
        path, where = str(self._checkpoint(spec).path), self.conditions
        seconds = self.checkpoint_seconds
        settings = where.threads, where.precision, path, seconds, where.engine
        keep = None
        if self.keeping is not None and trial_id in self._kept:
            keep = self.keeping.order(self._name(spec), self.fingerprint, again=trial_id in self._again)
        return trial_job(str(trial_id), spec, self.goal, *settings, self._watch, keep, self._at_cap)

    def _name(self, spec: TrialSpec) -> str:
        return trial_name(spec, self.fingerprint, self.conditions)

    def _checkpoint(self, spec: TrialSpec) -> Checkpoint:
        return Checkpoint(self.checkpoints / f"{self._name(uncapped(spec))}.pt")

    def drop_checkpoints(self, specs: Sequence[TrialSpec]) -> None:
        """These do not go on under a higher cap."""
        self._at_cap = False
        for spec in specs:
            self._remove_checkpoint(spec)

    def _remove_checkpoint(self, spec: TrialSpec) -> None:
        """The trial is stored: its checkpoint goes, with what workers killed while they wrote one have left."""
        if self._at_cap and spec.stop.cap_examples is not None:
            return
        checkpoint = self._checkpoint(spec)
        checkpoint.remove()
        for half in self.checkpoints.glob(f"{checkpoint.path.stem}.*"):
            half.unlink(missing_ok=True)

    def _take(self, event: Event) -> None:
        """Act on one event of the executor."""
        trial_id = int(event.job)
        if isinstance(event, Line):
            self._line(event)
            return
        if isinstance(event, Refused):
            raise as_error(event)
        spec = self._running.pop(trial_id)
        if isinstance(event, Done):
            self._finish(trial_id, spec, from_plain(TrialResult, event.result))
        elif isinstance(event, Died):
            self._died(trial_id, spec, event.reason)

    def _line(self, event: Line) -> None:
        trial_id = int(event.job)
        self._renew()
        self.listen("line", {"trial": trial_id, "spec": self._running[trial_id], **event.line})

    def _finish(self, trial_id: int, spec: TrialSpec, result: TrialResult) -> None:
        """Store it; if the lease ran out (a suspended laptop) and another process runs the trial, wait for that."""
        if trial_id in self._again:
            self._regained(trial_id, spec, result)
            return
        if not self.store.renew([trial_id], self.owner, LEASE_SECONDS) and self.store.trial(trial_id) is None:
            self._waiting[trial_id] = spec
            return
        self.store.finish(trial_id, self.owner, result)
        self._remove_checkpoint(spec)
        self.listen("finished", {"trial": trial_id, "spec": spec, "result": result})

    def _regained(self, trial_id: int, spec: TrialSpec, result: TrialResult | None, reason: str = "") -> None:
        """A stored trial was trained again; None: its worker died."""
        self._end_again(trial_id)
        stored = self.store.trial(trial_id)
        if self.keeping is None or stored is None:
            return
        if result is None:
            note = self.keeping.give_up(self._name(spec), f"{reason} (the same command tries it once more)")
        else:
            note = self.keeping.settle(self._name(spec), stored.result, result)
        self._remove_checkpoint(spec)
        if note:
            self.notes.append(note)
            self.listen("note", {"text": note})
        self.listen("finished", {"trial": trial_id, "spec": spec, "result": result or stored.result})

    def _end_again(self, *trial_ids: int) -> None:
        """These are no longer trained again; the last one gives the machine back."""
        if trial_ids:
            self._again -= set(trial_ids)
            if not self._again:
                self.store.free_machine(self.owner)

    def _died(self, trial_id: int, spec: TrialSpec, reason: str) -> None:
        """Try once more; after the second death the trial is failed, with the reason."""
        self.listen("died", {"trial": trial_id, "spec": spec, "reason": reason})
        if trial_id in self._again:
            self._regained(trial_id, spec, None, reason)
            return
        deaths = sum(attempt.how == "died" for attempt in self.store.attempts(trial_id))
        if deaths < DEATHS_ALLOWED:
            self.store.release(trial_id, self.owner, "died", reason)
            self._waiting[trial_id] = spec
            return
        self._finish(trial_id, spec, TrialResult("failed", "failure", reason, 0, 0, ()))


def as_error(event: Refused) -> errors.BatchscopeError:
    """A worker's refusal as the error it was raised as."""
    kind = getattr(errors, event.error, errors.CannotAnswer)
    return kind(event.sentence)
