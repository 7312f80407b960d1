"""Does a store keep its contract (`batchscope.store.base`)? Subclass, say how to open one, and run pytest.

    class TestMyStore(StoreContract):
        def open(self, folder):
            return MyStore(folder / "store")

`open` is called more than once with the same folder: what was stored must be there again. Every test here uses the
abstract methods only, from one process; what two processes may do to each other depends on the medium and is for the
store's own tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchscope.errors import StoreError
from batchscope.records import Evaluation, Goal, TrialResult, TrialSpec
from batchscope.store.base import Store
from batchscope.store.owner import Owner
from batchscope.testing.examples import (
    CHOICES,
    CONDITIONS,
    ODD_FLOATS,
    TIMING,
    bits,
    make_result,
    make_settings,
    make_spec,
)


class StoreContract:
    """The tests. `open` is the one method to write."""

    def open(self, folder: Path) -> Store:
        """A store that keeps its things in this folder; called again with the same folder it opens the same store."""
        raise NotImplementedError("a subclass of StoreContract says how to open its store")

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        with self.open(tmp_path) as store:
            yield store

    @pytest.fixture
    def me(self) -> Owner:
        return Owner.here("me")

    @pytest.fixture
    def other(self) -> Owner:
        """Another runner, alive: it is in this very process."""
        return Owner.here("other")

    @pytest.fixture
    def trial(self, store: Store) -> int:
        """An unfinished trial."""
        return self.add(store, make_spec())[0]

    def add(self, store: Store, *specs: TrialSpec, role: str = "held", study: str | None = None) -> list[int]:
        """Link trials to a study, by default the usual one."""
        return store.add_trials(study or store.save_study(make_settings()), role, "f" * 16, CONDITIONS, specs)

    def run(self, store: Store, trial: int, owner: Owner, result: TrialResult) -> None:
        """Lease and finish."""
        assert store.lease(trial, owner, 60).state == "leased"
        store.finish(trial, owner, result)

    # --- tasks seen ---

    def test_a_changed_task_is_noticed_and_what_changed_can_be_named(self, store: Store, me: Owner) -> None:
        store.remember_task("a task", "f" * 16, {"data": "d1", "gradient": "g1"})
        store.remember_task("another task", "0" * 16, {"data": "d0"})
        self.run(store, self.add(store, make_spec(0), make_spec(1))[0], me, make_result())
        store.remember_task("a task", "e" * 16, {"data": "d2", "gradient": "g1"})
        (before,) = store.other_fingerprints("a task", "e" * 16)
        assert (before.fingerprint, before.components, before.trials) == ("f" * 16, {"data": "d1", "gradient": "g1"}, 1)
        assert store.other_fingerprints("a new task", "e" * 16) == ()

    def test_the_fingerprint_seen_last_comes_first(self, store: Store) -> None:
        for fingerprint in ("a", "b", "a"):
            store.remember_task("a task", fingerprint, {"data": fingerprint})
        assert [seen.fingerprint for seen in store.other_fingerprints("a task", "c")] == ["a", "b"]

    # --- studies ---

    def test_equal_settings_are_the_same_study(self, store: Store) -> None:
        first = store.save_study(make_settings())
        assert store.save_study(make_settings()) == first == store.find_study(make_settings())
        assert store.save_study(make_settings(seeds=(0, 1))) != first
        assert store.find_study(make_settings(seeds=(5,))) is None
        assert len(store.studies()) == 2
        assert store.studies()[0].id == first

    def test_a_whole_number_names_the_same_study_as_its_float(self, store: Store) -> None:
        one = store.save_study(make_settings(own_learning_rate=1, goal=Goal("loss", at_most=2)))
        assert store.save_study(make_settings(own_learning_rate=1.0, goal=Goal("loss", at_most=2.0))) == one

    def test_settings_come_back_equal(self, store: Store) -> None:
        settings = make_settings(task="<script>alert(1)</script> \N{SNOWMAN} \x00 end")
        assert store.study(store.save_study(settings)) == settings

    def test_a_study_is_found_by_the_beginning_of_its_id(self, store: Store) -> None:
        ids = [store.save_study(make_settings(workers=w)) for w in range(1, 18)]  # 17 ids: two begin alike
        assert store.resolve(ids[3]) == ids[3]
        assert all(store.resolve(i[:11]) == i for i in ids)
        with pytest.raises(StoreError, match=r"no study .* begins with 'xyz'"):
            store.study("xyz")
        with pytest.raises(StoreError, match=r"17 studies .* begin with ''"):
            store.study("")

    def test_what_belongs_to_a_study_comes_back_equal(self, store: Store) -> None:
        study = store.save_study(make_settings())
        assert (store.timing(study), store.choices(study), store.reference(study), store.notes(study)) == (
            None,
            (),
            None,
            (),
        )
        store.set_timing(study, TIMING)
        store.set_choices(study, CHOICES[:1])
        store.set_choices(study, CHOICES)
        store.set_reference(study, 1 / 3, True)
        assert store.timing(study) == TIMING
        assert store.choices(study) == CHOICES
        assert store.reference(study) == (1 / 3, True)

    def test_notes_keep_their_order_and_come_once(self, store: Store) -> None:
        study = store.save_study(make_settings())
        for note in ("b", "a", "b", "bad bytes \udcff"):
            store.add_note(study, note)
        assert store.notes(study) == ("b", "a", "bad bytes \\udcff")

    def test_a_summary_counts_trials_once_and_keeps_the_first_end(self, store: Store, me: Owner) -> None:
        study = store.save_study(make_settings())
        first, _ = self.add(store, make_spec(0), make_spec(1))
        self.add(store, make_spec(0), role="tuned")
        self.run(store, first, me, make_result())
        (summary,) = store.studies()
        assert (summary.id, summary.trials, summary.finished_trials, summary.finished_at) == (study, 2, 1, None)
        store.finish_study(study)
        ended = store.studies()[0].finished_at
        store.finish_study(study)
        assert ended is not None
        assert store.studies()[0].finished_at == ended

    # --- trials ---

    def test_adding_twice_changes_nothing_and_keeps_the_order(self, store: Store) -> None:
        specs = [make_spec(seed) for seed in (2, 0, 1)]
        ids = self.add(store, *specs)
        assert self.add(store, *reversed(specs)) == ids[::-1]
        assert self.add(store, specs[0], specs[0], make_spec(7))[:2] == [ids[0], ids[0]]
        study = store.save_study(make_settings())
        assert store.trial_ids(study, "held")[:3] == tuple(ids)
        assert len(store.trial_ids(study, "held")) == 4
        assert store.trial_ids(study, "tuned") == store.trials(study, "held") == ()

    def test_an_equal_trial_is_shared_between_studies(self, store: Store, me: Owner) -> None:
        (trial,) = self.add(store, make_spec())
        self.run(store, trial, me, make_result())
        second = store.save_study(make_settings(seeds=(0,)))
        assert self.add(store, make_spec(), study=second) == [trial]
        assert len(store.trials(second, "held")) == 1

    def test_other_conditions_or_another_fingerprint_are_another_trial(self, store: Store) -> None:
        (trial,) = self.add(store, make_spec())
        study = store.save_study(make_settings())
        elsewhere = dataclasses.replace(CONDITIONS, threads=1)
        assert store.add_trials(study, "held", "f" * 16, elsewhere, [make_spec()]) != [trial]
        assert store.add_trials(study, "held", "e" * 16, CONDITIONS, [make_spec()]) != [trial]

    def test_a_role_must_be_one_of_the_known(self, store: Store) -> None:
        with pytest.raises(ValueError, match="'best'"):
            self.add(store, make_spec(), role="best")

    def test_trials_belong_to_a_study_that_is_stored(self, store: Store) -> None:
        with pytest.raises(StoreError, match="no study"):
            self.add(store, make_spec(), study="0123456789ab")

    def test_a_record_comes_back_equal(self, store: Store, me: Owner, trial: int) -> None:
        assert store.trial(trial) is None
        self.run(store, trial, me, make_result())
        record = store.trial(trial)
        assert record is not None
        assert (record.spec, record.conditions, record.attempts) == (make_spec(), CONDITIONS, 1)
        assert bits(record.result) == bits(make_result())

    @pytest.mark.parametrize("value", ODD_FLOATS, ids=repr)
    def test_floats_keep_their_bits(self, store: Store, me: Owner, trial: int, value: float) -> None:
        line = Evaluation(1, 32, {"loss": value}, {"loss": value, "accuracy": value}, value, value)
        result = TrialResult("diverged", "divergence", "", 1, 32, (line,), value, {"loss": value}, value)
        self.run(store, trial, me, result)
        record = store.trial(trial)
        assert record is not None
        assert bits(record.result) == bits(result)

    def test_an_empty_trace_and_every_outcome_are_results(self, store: Store, me: Owner) -> None:
        for seed, outcome in enumerate(("reached", "not_reached", "diverged", "failed")):
            (trial,) = self.add(store, make_spec(seed))
            self.run(store, trial, me, make_result(evaluations=0, outcome=outcome))
        records = store.trials(store.save_study(make_settings()), "held")
        assert [r.result.outcome for r in records] == ["reached", "not_reached", "diverged", "failed"]
        assert all(r.result.trace == () for r in records)

    def test_an_unknown_outcome_is_refused(self, store: Store, me: Owner, trial: int) -> None:
        store.lease(trial, me, 60)
        with pytest.raises(ValueError, match="splendid"):
            store.finish(trial, me, make_result(outcome="splendid"))

    def test_an_unknown_trial_is_one_sentence(self, store: Store, me: Owner) -> None:
        for call in (
            lambda: store.trial(10**6),
            lambda: store.lease(10**6, me, 60),
            lambda: store.finish(10**6, me, make_result()),
        ):
            with pytest.raises(StoreError, match="no trial"):
                call()

    # --- leases and attempts ---

    def test_a_leased_trial_is_busy_and_a_finished_one_done(
        self, store: Store, me: Owner, other: Owner, trial: int
    ) -> None:
        first = store.lease(trial, me, 60)
        assert (first.state, first.attempt) == ("leased", 1)
        busy = store.lease(trial, other, 60)
        assert (busy.state, busy.attempt) == ("busy", None)
        store.finish(trial, me, make_result())
        assert store.lease(trial, other, 60).state == store.lease(trial, me, 60).state == "done"

    def test_every_way_an_attempt_ends_is_kept(self, store: Store, me: Owner, other: Owner, trial: int) -> None:
        store.lease(trial, me, 60)
        store.release(trial, me, "died", "killed by signal 9")
        store.lease(trial, me, 60)
        store.release(trial, me, "interrupted")
        assert store.lease(trial, other, 0.0).attempt == 3
        assert store.lease(trial, me, 60).attempt == 4  # the third has run out
        assert store.lease(trial, me, 60).attempt == 5  # begun anew by its own owner
        assert [a.how for a in store.attempts(trial)] == ["died", *["interrupted"] * 3, None]
        store.finish(trial, me, make_result())
        attempts = store.attempts(trial)
        assert [a.number for a in attempts] == [1, 2, 3, 4, 5]
        assert attempts[0].reason == "killed by signal 9"
        assert "ran out" in attempts[2].reason
        assert attempts[4].how == "finished"
        assert all(a.started_at <= (a.ended_at or "") for a in attempts)
        record = store.trial(trial)
        assert record is not None
        assert record.attempts == 5

    def test_renewing_says_what_is_still_held(self, store: Store, me: Owner, other: Owner) -> None:
        mine, lost, free = self.add(store, *(make_spec(seed) for seed in range(3)))
        store.lease(mine, me, 0.0)
        store.lease(lost, me, 0.0)
        store.lease(lost, other, 60)
        assert store.renew([free, lost, mine], me, 60) == (mine,)
        assert store.lease(mine, other, 60).state == "busy"  # ran out, and was renewed before anybody took it

    def test_a_lost_lease_cannot_finish_or_release(self, store: Store, me: Owner, other: Owner, trial: int) -> None:
        store.lease(trial, me, 0.0)
        store.lease(trial, other, 60)
        store.release(trial, me, "died", "not mine to say")
        with pytest.raises(StoreError, match=r"lease .* lost"):
            store.finish(trial, me, make_result())
        assert store.trial(trial) is None
        assert store.lease(trial, me, 60).state == "busy"
        store.finish(trial, other, make_result())
        assert [a.how for a in store.attempts(trial)] == ["interrupted", "finished"]

    def test_an_equal_result_may_be_handed_in_twice_and_another_may_not(
        self, store: Store, me: Owner, other: Owner, trial: int
    ) -> None:
        self.run(store, trial, me, make_result())
        store.finish(trial, other, dataclasses.replace(make_result(), seconds=99.0))
        with pytest.raises(StoreError, match="another result"):
            store.finish(trial, me, make_result(seed=1))
        record = store.trial(trial)
        assert record is not None
        assert bits(record.result) == bits(make_result())
        assert len(store.attempts(trial)) == 1

    def test_a_lease_that_ran_out_can_still_finish_while_nobody_took_it(
        self, store: Store, me: Owner, trial: int
    ) -> None:
        store.lease(trial, me, 0.0)
        store.finish(trial, me, make_result())
        assert store.lease(trial, me, 60).state == "done"

    def test_an_attempt_is_not_released_as_finished(self, store: Store, me: Owner, trial: int) -> None:
        store.lease(trial, me, 60)
        with pytest.raises(ValueError, match="'finished'"):
            store.release(trial, me, "finished")

    # --- the machine to oneself ---

    def test_a_claimed_machine_gives_no_other_owner_a_trial(
        self, store: Store, me: Owner, other: Owner, trial: int
    ) -> None:
        assert store.claim_machine(me, 60) == "alone"
        assert store.claim_machine(other, 60) == "busy"
        assert store.lease(trial, other, 60).state == "busy"
        assert store.claim_machine(me, 60) == "alone"  # the heartbeat
        store.free_machine(other)  # not its own to free
        assert store.claim_machine(other, 60) == "busy"
        assert store.lease(trial, me, 60).state == "leased"
        store.free_machine(me)
        assert store.claim_machine(other, 60) == "shared"
        store.finish(trial, me, make_result())
        assert store.claim_machine(other, 60) == "alone"
        assert store.lease(trial, me, 60).state == "done"

    def test_a_claim_or_a_lease_that_ran_out_keeps_nobody_waiting(
        self, store: Store, me: Owner, other: Owner, trial: int
    ) -> None:
        store.lease(trial, other, 0.0)
        assert store.claim_machine(me, 0.0) == "alone"
        assert store.claim_machine(other, 60) == "alone"

    # --- everything about a study, and the end ---

    def test_study_data_gathers_what_was_stored(self, store: Store, me: Owner) -> None:
        study = store.save_study(make_settings())
        for seed, role in enumerate(("held", "tuned", "tuning", "reference")):
            (trial,) = self.add(store, make_spec(seed), role=role)
            self.run(store, trial, me, make_result(seed))
        assert (store.study_data(study).reference_examples, store.study_data(study).reference_reached) == (
            10_000,
            False,
        )
        store.set_timing(study, TIMING)
        store.set_choices(study, CHOICES)
        store.set_reference(study, 2048.5, True)
        store.add_note(study, "the validation set is small")
        data = store.study_data(study[:6])
        assert (data.settings, data.timing, data.choices) == (make_settings(), TIMING, CHOICES)
        assert [r.spec.seed for r in (*data.held, *data.tuned, *data.tuning)] == [0, 1, 2]
        assert (data.reference_examples, data.reference_reached) == (2048.5, True)
        assert data.notes == ("the validation set is small",)

    def test_everything_is_there_after_reopening(self, tmp_path: Path, me: Owner) -> None:
        with self.open(tmp_path) as store:
            done, half_done = self.add(store, make_spec(0), make_spec(1))
            self.run(store, done, me, make_result())
            store.lease(half_done, me, 60)
            study = store.save_study(make_settings())
            store.set_timing(study, TIMING)
            before = bits(store.study_data(study))
        with self.open(tmp_path) as store:
            assert bits(store.study_data(study)) == before
            assert self.add(store, make_spec(0), make_spec(1)) == [done, half_done]
            assert store.lease(done, me, 60).state == "done"
            assert store.lease(half_done, me, 60).attempt == 2

    def test_a_closed_store_says_so(self, tmp_path: Path) -> None:
        store = self.open(tmp_path)
        store.close()
        store.close()
        with pytest.raises(StoreError, match="closed"):
            store.studies()
