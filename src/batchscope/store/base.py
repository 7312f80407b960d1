"""What does a store keep, who may write it, and what may a caller rely on?

A store keeps *studies* (settings, timing, choices, notes), the *trials* that belong to them, every *attempt* at a
trial, *profiles* (seconds and bytes against batch size), *noise runs* (gradient norms along a run), *advices* (what one
`recommend` was asked and measured), *scalings* (what one `scale` measured over device counts), *sharpnesses* (what one
`sharpness` measured at a study's weights), *matches* (what one `match` ran and timed), *parts* of a long measurement
that is not done, and the *tasks* it has seen. Anything that passes `batchscope.testing.store_contract.StoreContract` is
a store. Studies and trials are in this file, what is read whole in `base_documents.py`.

Ownership and concurrency:

- Records go in and come out frozen; floats come back with the same bits, nan and inf included.
- A trial is identified by (task fingerprint, conditions, specification). It is stored once and linked to as many
  studies as ask for it; a finished trial is never changed.
- A profile, a noise run, an advice, a scaling, a sharpness or a match is never changed and never replaced: each
  measurement is kept. `study_data` takes the newest profile that applies.
- A part belongs to its key: whoever saves one first is believed, also by another process; parts have no id, are not
  listed, and stay when the measurement is done, so that the next one with the same keys finds them.
- Several processes may use one store at once. A trial is run by the one that holds its *lease*: `lease` is atomic,
  `renew` is the heartbeat, `finish` and `release` end it. A lease whose process has died on this host, or whose time
  has run out, may be taken at once. A runner must renew well within the lease: a third of its seconds is a good beat.
- Every method is one transaction: killing the process at any moment leaves it done or not begun, never half.
- One owner at a time may claim the machine to itself (`claim_machine`): nobody else is leased a trial meanwhile.
- `finish` stores a result only for the holder. Whoever lost the lease is refused, unless the result equals the stored.
- A store object belongs to the process and the thread that opened it; another process or thread opens its own.
- Every failure of the medium (full, read-only, not ours, newer) is a `StoreError` of one sentence; what was
  stored before stays.

How an attempt ended:

    finished       its result is stored
    died           its owner says that the worker was lost (killed, out of memory, segfault): counts against the trial
    interrupted    its owner stopped, vanished or let the lease run out: says nothing about the trial
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from batchscope.records import (
    Conditions,
    StudyData,
    StudySettings,
    TimingPass,
    TrialRecord,
    TrialResult,
    TrialSpec,
    TunedChoice,
)
from batchscope.store.base_documents import DocumentStore
from batchscope.store.owner import Owner
from batchscope.store.replies import Attempt, Lease, SeenTask, StudySummary

ROLES = ("held", "tuned", "tuning", "reference")
UNFINISHED_WAYS = ("interrupted", "died")  # the ways to `release`; the third way to end is `finish`


class Store(DocumentStore):
    """The contract. A `study_id`, `profile_id`, `noise_id`, `advice_id`, `scaling_id`, `sharpness_id` or `match_id` may
    be any unambiguous beginning of one; an unknown one raises `StoreError`."""

    # --- tasks seen ---

    @abstractmethod
    def remember_task(self, name: str, fingerprint: str, components: Mapping[str, str]) -> None:
        """Note that a task of this name has this fingerprint, made of these named hashes."""

    @abstractmethod
    def other_fingerprints(self, name: str, fingerprint: str) -> tuple[SeenTask, ...]:
        """The other fingerprints seen under this name, the latest first."""

    # --- studies ---

    @abstractmethod
    def save_study(self, settings: StudySettings) -> str:
        """The id of the study with these settings, stored if it is new. Equal settings are the same study."""

    @abstractmethod
    def find_study(self, settings: StudySettings) -> str | None:
        """The id of the study with these settings, or None."""

    @abstractmethod
    def resolve(self, study_id: str) -> str:
        """The full id that begins like this. Raises `StoreError` where none or several do."""

    @abstractmethod
    def study(self, study_id: str) -> StudySettings:
        """The settings of a study."""

    @abstractmethod
    def studies(self) -> tuple[StudySummary, ...]:
        """All studies, oldest first."""

    @abstractmethod
    def newest_tuned_study(self, fingerprint: str) -> str | None:
        """The id of the study of this task fingerprint that was finished last and has the policy "tuned", or None.

        Under whatever conditions: steps are a fact of the task, not of the machine.
        """

    @abstractmethod
    def finish_study(self, study_id: str) -> None:
        """Note that the study has its answer; the first time counts."""

    @abstractmethod
    def set_timing(self, study_id: str, timing: TimingPass) -> None:
        """Store the timing pass, replacing an earlier one."""

    @abstractmethod
    def timing(self, study_id: str) -> TimingPass | None:
        """The timing pass, or None."""

    @abstractmethod
    def set_choices(self, study_id: str, choices: Sequence[TunedChoice]) -> None:
        """Store the tuned learning rates, replacing earlier ones."""

    @abstractmethod
    def choices(self, study_id: str) -> tuple[TunedChoice, ...]:
        """The tuned learning rates; empty before they are chosen."""

    @abstractmethod
    def set_reference(self, study_id: str, examples: float, reached: bool) -> None:
        """Store the price of the reference run, in examples, and whether it reached the goal."""

    @abstractmethod
    def reference(self, study_id: str) -> tuple[float, bool] | None:
        """(examples, reached) of the reference run, or None."""

    @abstractmethod
    def add_note(self, study_id: str, note: str) -> None:
        """Add a sentence that the report must show. The same sentence twice is kept once."""

    @abstractmethod
    def notes(self, study_id: str) -> tuple[str, ...]:
        """The notes, in the order they were added."""

    # --- trials ---

    @abstractmethod
    def add_trials(
        self, study_id: str | None, role: str, fingerprint: str, conditions: Conditions, specs: Sequence[TrialSpec]
    ) -> list[int]:
        """Link trials to a study in a role and return their ids, in the order of `specs`; no study: only add them.

        A trial that is stored already, from this study or another, is linked and not added again. Adding twice
        changes nothing.
        """

    @abstractmethod
    def trial_ids(self, study_id: str, role: str) -> tuple[int, ...]:
        """All trials of a role, finished or not, in the order they were added."""

    @abstractmethod
    def trial(self, trial_id: int) -> TrialRecord | None:
        """A finished trial; None while it is not."""

    @abstractmethod
    def trials(self, study_id: str, role: str) -> tuple[TrialRecord, ...]:
        """The finished trials of a role, in the order they were added."""

    # --- leases and attempts ---

    @abstractmethod
    def lease(self, trial_id: int, owner: Owner, seconds: float) -> Lease:
        """Ask to run a trial: "leased" (a new attempt has begun), "done" (it has a result) or "busy" (another
        runs it, or has claimed the machine).

        An owner that leases again what it holds begins a new attempt: it has lost track of the old one.
        """

    @abstractmethod
    def renew(self, trial_ids: Sequence[int], owner: Owner, seconds: float) -> tuple[int, ...]:
        """The heartbeat: extends the leases to `seconds` from now and returns those that the owner still holds."""

    @abstractmethod
    def release(self, trial_id: int, owner: Owner, how: str, reason: str = "") -> None:
        """End the attempt without a result: `how` is "interrupted" or "died". Does nothing for a lease not held."""

    @abstractmethod
    def finish(self, trial_id: int, owner: Owner, result: TrialResult) -> None:
        """Store the result and end lease and attempt. Refused with `StoreError` where the lease was lost,
        unless the stored result is the same, clock readings apart."""

    @abstractmethod
    def claim_machine(self, owner: Owner, seconds: float) -> str:
        """Ask to have the machine to oneself, for a timing: "busy", "shared" or "alone". Ask again as a heartbeat.

        "busy": another owner has claimed it. Else it is claimed until `free_machine`, or for so many seconds from now,
        and `lease` tells every other owner "busy": "shared" while trials that others leased before still run,
        "alone" when none does.
        """

    @abstractmethod
    def free_machine(self, owner: Owner) -> None:
        """Give the machine back. Does nothing for a claim not held."""

    @abstractmethod
    def attempts(self, trial_id: int) -> tuple[Attempt, ...]:
        """Every start of a trial, first to last."""

    # --- everything about a study, and the end ---

    def study_data(self, study_id: str) -> StudyData:
        """All that was measured so far: what analysis and report read.

        Before `set_reference`, the reference run is priced at the budget of one trial, not reached (design, section 2).
        `profile` is the newest of the same task fingerprint under the very conditions of the study, or None; `scaling`
        the newest of the fingerprint on several devices, under whatever conditions (it has device counts of its own).
        """
        settings = self.study(study_id)
        examples, reached = self.reference(study_id) or (float(settings.budget_examples), False)
        return StudyData(
            settings=settings,
            held=self.trials(study_id, "held"),
            tuned=self.trials(study_id, "tuned"),
            tuning=self.trials(study_id, "tuning"),
            reference=self.trials(study_id, "reference"),
            choices=self.choices(study_id),
            timing=self.timing(study_id),
            reference_examples=examples,
            reference_reached=reached,
            notes=self.notes(study_id),
            profile=self.newest_profile(settings.fingerprint, settings.conditions),
            scaling=next((d for _, d in self.scalings(settings.fingerprint) if len(d.timing.passes) > 1), None),
        )

    @abstractmethod
    def close(self) -> None:
        """Let go of the medium. Closing twice is allowed; using a closed store raises `StoreError`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
