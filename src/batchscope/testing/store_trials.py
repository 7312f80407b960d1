"""Does a store keep trials and lease them as `batchscope.store.base` says? Part of `store_contract.StoreContract`."""

from __future__ import annotations

import dataclasses

import pytest

from batchscope.errors import StoreError
from batchscope.records import Evaluation, Measured, TrialResult
from batchscope.store.base import Store
from batchscope.store.owner import Owner
from batchscope.testing.examples import CONDITIONS, ODD_FLOATS, bits, make_result, make_settings, make_spec
from batchscope.testing.store_fixtures import StoreFixtures


class TrialContract(StoreFixtures):
    """Trials, leases and attempts, the machine to oneself."""

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
        noise = Measured(value, value, value, 2)
        result = TrialResult("diverged", "divergence", "", 1, 32, (line,), value, {"loss": value}, value, noise)
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
