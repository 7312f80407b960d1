"""What does a store answer where no record of a measurement is asked for? Summaries, leases, attempts."""

from __future__ import annotations

from dataclasses import dataclass

from batchscope.records import NoiseRun


@dataclass(frozen=True)
class StudySummary:
    """One line of `batchscope list`. Times are UTC, ISO 8601; `finished_at` is None while the study runs."""

    id: str
    task: str
    fingerprint: str
    created_at: str
    finished_at: str | None
    trials: int
    finished_trials: int


@dataclass(frozen=True)
class NoiseSummary:
    """A noise run without reading the thousands of lines that it may have: for `batchscope list`."""

    id: str
    measurements: int
    run: NoiseRun  # its measurements, trace, deviations, layers and proxies left out


@dataclass(frozen=True)
class SeenTask:
    """A task as the store has seen it before: its fingerprint, the hashes it was made of, its finished trials."""

    fingerprint: str
    components: dict[str, str]
    trials: int


@dataclass(frozen=True)
class Lease:
    """The answer to `lease`: "leased" with the number of the attempt (from 1), "done" or "busy" without."""

    state: str
    attempt: int | None = None


@dataclass(frozen=True)
class Attempt:
    """One start of a trial. `ended_at` and `how` are None while it runs."""

    number: int
    owner: str
    started_at: str
    ended_at: str | None
    how: str | None
    reason: str
