"""Which measurements does a store keep as documents, each read as one record? The part of `base.Store` on them.

*Profiles*, *noise runs*, *advices*, *scalings*, *sharpnesses* and *matches* have an id, and are never changed and never
replaced: each measurement is kept. *Parts* are what a long measurement has finished so far, so that a stopped one goes
on. What holds for every method of a store is said in `base.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from batchscope.records import AdviceData, Conditions, MatchData, NoiseRun, ProfileData, ScalingData, SharpnessData
from batchscope.store.replies import NoiseSummary


class DocumentStore(ABC):
    """The contract for documents. An id may be any unambiguous beginning of one; an unknown one raises `StoreError`."""

    # --- profiles ---

    @abstractmethod
    def save_profile(self, profile: ProfileData) -> str:
        """Store what one `profile` measured and return its id.

        The id is 12 hex digits, a digest of task fingerprint, conditions, what was asked for (batch sizes, memory
        limit, seed) and `measured_at`. So each measurement is kept, and the same one handed in twice is one.
        Raises `ValueError` where `measured_at` is no time, `StoreError` where another profile has that id.
        """

    @abstractmethod
    def profiles(self, fingerprint: str | None = None) -> tuple[tuple[str, ProfileData], ...]:
        """(id, profile) of all profiles, or of those of one task fingerprint: newest `measured_at` first, and of
        equal times the one stored last."""

    @abstractmethod
    def newest_profile(self, fingerprint: str, conditions: Conditions) -> ProfileData | None:
        """The first of `profiles(fingerprint)` that was measured under these very conditions, or None."""

    @abstractmethod
    def profile(self, profile_id: str) -> ProfileData:
        """A profile."""

    @abstractmethod
    def resolve_profile(self, profile_id: str) -> str:
        """The full id that begins like this. Raises `StoreError` where none or several do."""

    # --- noise runs ---

    @abstractmethod
    def save_noise_run(self, run: NoiseRun) -> str:
        """Store what one `noise` measured and return its id.

        The id is 12 hex digits, a digest of task fingerprint, conditions, what was run (batch size, learning rate,
        seed, budget, source, every) and `measured_at`. So each measurement is kept, and the same one handed in twice
        is one. Raises `ValueError` where `measured_at` is no time, `StoreError` where another noise run has that id.
        """

    @abstractmethod
    def noise_runs(self, fingerprint: str | None = None) -> tuple[tuple[str, NoiseRun], ...]:
        """(id, noise run) of all noise runs, or of those of one task fingerprint, in the order of `profiles`."""

    @abstractmethod
    def noise_summaries(self) -> tuple[NoiseSummary, ...]:
        """All noise runs in short, oldest first: the order of `noise_runs` reversed."""

    @abstractmethod
    def noise_run(self, noise_id: str) -> NoiseRun:
        """A noise run."""

    @abstractmethod
    def resolve_noise_run(self, noise_id: str) -> str:
        """The full id that begins like this. Raises `StoreError` where none or several do."""

    # --- advices ---

    @abstractmethod
    def save_advice(self, data: AdviceData) -> str:
        """Store what one `recommend` was asked and measured, and return its id.

        The id is 12 hex digits, a digest of task fingerprint, conditions, question and `measured_at`. So each
        measurement is kept, and the same one handed in twice is one. Raises `ValueError` where `measured_at` is no
        time, `StoreError` where another advice has that id.
        """

    @abstractmethod
    def advices(self, fingerprint: str | None = None) -> tuple[tuple[str, AdviceData], ...]:
        """(id, advice) of all advices, or of those of one task fingerprint, in the order of `profiles`."""

    @abstractmethod
    def advice(self, advice_id: str) -> AdviceData:
        """An advice, as it was measured: the answer is computed from it."""

    @abstractmethod
    def resolve_advice(self, advice_id: str) -> str:
        """The full id that begins like this. Raises `StoreError` where none or several do."""

    # --- scalings ---

    @abstractmethod
    def save_scaling(self, data: ScalingData) -> str:
        """Store what one `scale` measured and return its id.

        The id is 12 hex digits, a digest of task fingerprint, conditions, question and `measured_at`. So each
        measurement is kept, and the same one handed in twice is one. Raises `ValueError` where `measured_at` is no
        time, `StoreError` where another scaling has that id.
        """

    @abstractmethod
    def scalings(self, fingerprint: str | None = None) -> tuple[tuple[str, ScalingData], ...]:
        """(id, scaling) of all scalings, or of those of one task fingerprint, in the order of `profiles`."""

    @abstractmethod
    def scaling(self, scaling_id: str) -> ScalingData:
        """A scaling, as it was measured: the answer is computed from it, and from a study's steps where it names one.

        The study that it names need not be in this store.
        """

    @abstractmethod
    def resolve_scaling(self, scaling_id: str) -> str:
        """The full id that begins like this. Raises `StoreError` where none or several do."""

    # --- sharpnesses ---

    @abstractmethod
    def save_sharpness(self, data: SharpnessData) -> str:
        """Store what one `sharpness` measured and return its id.

        The id is 12 hex digits, a digest of task fingerprint, conditions, question and `measured_at`. So each
        measurement is kept, and the same one handed in twice is one. Raises `ValueError` where `measured_at` is no
        time, `StoreError` where another sharpness has that id.
        """

    @abstractmethod
    def sharpnesses(self, fingerprint: str | None = None) -> tuple[tuple[str, SharpnessData], ...]:
        """(id, sharpness) of all sharpnesses, or of those of one task fingerprint, in the order of `profiles`."""

    @abstractmethod
    def sharpness(self, sharpness_id: str) -> SharpnessData:
        """A sharpness, as it was measured: the answer is computed from it, and from the traces of the study it names.

        The study that it names need not be in this store.
        """

    @abstractmethod
    def resolve_sharpness(self, sharpness_id: str) -> str:
        """The full id that begins like this. Raises `StoreError` where none or several do."""

    # --- matches ---

    @abstractmethod
    def save_match(self, data: MatchData) -> str:
        """Store what one `match` ran and timed, and return its id.

        The id is 12 hex digits, a digest of task fingerprint, conditions, question and `measured_at`. So each
        measurement is kept, and the same one handed in twice is one. Raises `ValueError` where `measured_at` is no
        time, `StoreError` where another match has that id.
        """

    @abstractmethod
    def matches(self, fingerprint: str | None = None) -> tuple[tuple[str, MatchData], ...]:
        """(id, match) of all matches, or of those of one task fingerprint, in the order of `profiles`."""

    @abstractmethod
    def match(self, match_id: str) -> MatchData:
        """A match, as it was measured: the answer is computed from it.

        The trials that its runs name need not be in this store.
        """

    @abstractmethod
    def resolve_match(self, match_id: str) -> str:
        """The full id that begins like this. Raises `StoreError` where none or several do."""

    # --- parts ---

    @abstractmethod
    def save_part(self, key: str, fingerprint: str, kind: str, content: Any) -> None:
        """Keep what a long measurement has finished, so that it need not be measured again when it is stopped.

        Args:
            key: names this part and all it depends on (task, weights, settings): whoever asks again makes the same one.
                Where a part of this key is stored already, the first is kept.
            fingerprint: of the task.
            kind: what it is part of, in a word or two.
            content: a record, or plain data as `to_plain` gives it. Raises `ValueError` for None.
        """

    @abstractmethod
    def part(self, key: str) -> Any | None:
        """The content of the part with exactly this key, as plain data (dict, list, text, number); None: there is none.

        `from_plain` makes records of it again, with the same bits. A number that is not finite is one of the texts
        "nan", "-nan", "inf" and "-inf", which `from_plain` and `float` read.
        """

    # --- anything with an id ---

    @abstractmethod
    def resolve_any(self, beginning: str) -> tuple[str, str]:
        """(kind, full id) of the one thing whose id begins like this: for commands that take any of them.

        The kind is "study", "profile", "noise run", "advice", "scaling", "sharpness" or "match".

        Raises `StoreError` where none or several do, of whichever kind; the sentence names them.
        """
