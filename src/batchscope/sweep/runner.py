"""How do planned trials become stored records? Lease, run, keep the lease, store, retry once; for any executor.

The runner alone writes the store. A trial that another process holds is waited for. A trial whose worker died is
tried once more, from its checkpoint; a second death makes it `failed`, with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from batchscope import errors
from batchscope.records import Conditions, Goal, TrialRecord, TrialResult, TrialSpec, from_plain
from batchscope.store.base import Store
from batchscope.store.owner import Owner
from batchscope.sweep.executors.base import Died, Done, Event, Executor, Line, Refused
from batchscope.sweep.jobs import Job, trial_job
from batchscope.training.checkpoint import Checkpoint

LEASE_SECONDS = 60.0  # a runner that stops renewing for so long is taken for dead
POLL_SECONDS = 0.5
DEATHS_ALLOWED = 1  # tried once more after the first

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
    ) -> None:
        self.store, self.study_id, self.fingerprint, self.conditions = store, study_id, fingerprint, conditions
        self.goal, self.executor, self.checkpoints = goal, executor, checkpoints
        self.checkpoint_seconds, self.listen = checkpoint_seconds, listen
        self.owner = Owner.here()

    def run(self, wanted: Mapping[str, Sequence[TrialSpec]]) -> dict[str, list[TrialRecord]]:
        """All of these trials, by role, finished: stored ones are read, the others run. In the order given."""
        ids = {role: self._add(role, specs) for role, specs in wanted.items()}
        waiting = {i: s for role, specs in wanted.items() for i, s in zip(ids[role], specs, strict=True)}
        self.listen("phase", {"roles": {role: len(specs) for role, specs in wanted.items()}, "trials": len(waiting)})
        self._work(self._largest_first(waiting))
        return {role: [r for i in ids[role] if (r := self.store.trial(i)) is not None] for role in wanted}

    def _add(self, role: str, specs: Sequence[TrialSpec]) -> list[int]:
        return self.store.add_trials(self.study_id, role, self.fingerprint, self.conditions, list(specs))

    def _work(self, waiting: dict[int, TrialSpec]) -> None:
        """Until nothing waits and nothing runs; on any exception the leases are given back."""
        running: dict[int, TrialSpec] = {}
        renewed = time.monotonic()
        try:
            while waiting or running:
                self._fill(waiting, running)
                for event in self.executor.events(POLL_SECONDS):
                    self._take(event, waiting, running)
                if running and time.monotonic() - renewed > LEASE_SECONDS / 3:
                    self.store.renew(list(running), self.owner, LEASE_SECONDS)
                    renewed = time.monotonic()
        except BaseException:
            for trial_id in running:
                self.store.release(trial_id, self.owner, "interrupted", "the command was stopped")
            raise

    def _largest_first(self, specs: dict[int, TrialSpec]) -> dict[int, TrialSpec]:
        """Most steps first, so that no long trial is left for the end; the order changes no result."""
        return dict(sorted(specs.items(), key=lambda item: item[1].arm.batch_size))

    def _fill(self, waiting: dict[int, TrialSpec], running: dict[int, TrialSpec]) -> None:
        """Start waiting trials while there are slots and leases to be had."""
        for trial_id in list(waiting):
            if len(running) >= self.executor.slots:
                return
            state = self.store.lease(trial_id, self.owner, LEASE_SECONDS).state
            if state == "done":
                self._skip(trial_id, waiting.pop(trial_id))
            elif state == "leased":
                running[trial_id] = waiting.pop(trial_id)
                self.executor.start(self._job(trial_id, running[trial_id]))
                self.listen("started", {"trial": trial_id, "spec": running[trial_id]})

    def _skip(self, trial_id: int, spec: TrialSpec) -> None:
        self._checkpoint(trial_id).remove()
        self.listen("stored", {"trial": trial_id, "spec": spec})

    def _job(self, trial_id: int, spec: TrialSpec) -> Job:
        path = str(self._checkpoint(trial_id).path)
        where = self.conditions
        return trial_job(str(trial_id), spec, self.goal, where.threads, where.precision, path, self.checkpoint_seconds)

    def _checkpoint(self, trial_id: int) -> Checkpoint:
        return Checkpoint(self.checkpoints / f"{trial_id}.pt")

    def _take(self, event: Event, waiting: dict[int, TrialSpec], running: dict[int, TrialSpec]) -> None:
        """Act on one event of the executor."""
        trial_id = int(event.job)
        spec = running.get(trial_id)
        if spec is None:
            return
        if isinstance(event, Line):
            self.listen("line", {"trial": trial_id, "spec": spec, **event.line})
        elif isinstance(event, Refused):
            raise as_error(event)
        elif isinstance(event, Done):
            del running[trial_id]
            self._finish(trial_id, spec, from_plain(TrialResult, event.result))
        elif isinstance(event, Died):
            del running[trial_id]
            self._died(trial_id, spec, event.reason, waiting)

    def _finish(self, trial_id: int, spec: TrialSpec, result: TrialResult) -> None:
        self.store.finish(trial_id, self.owner, result)
        self._checkpoint(trial_id).remove()
        self.listen("finished", {"trial": trial_id, "spec": spec, "result": result})

    def _died(self, trial_id: int, spec: TrialSpec, reason: str, waiting: dict[int, TrialSpec]) -> None:
        """Try once more; after the second death the trial is failed, with the reason."""
        self.listen("died", {"trial": trial_id, "spec": spec, "reason": reason})
        deaths = sum(attempt.how == "died" for attempt in self.store.attempts(trial_id))
        if deaths < DEATHS_ALLOWED:
            self.store.release(trial_id, self.owner, "died", reason)
            waiting[trial_id] = spec
            return
        self._finish(trial_id, spec, TrialResult("failed", "failure", reason, 0, 0, ()))


def as_error(event: Refused) -> errors.BatchscopeError:
    """A worker's refusal as the error it was raised as."""
    kind = getattr(errors, event.error, errors.CannotAnswer)
    return kind(event.sentence)
