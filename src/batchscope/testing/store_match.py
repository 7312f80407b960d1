"""Does a store keep matches as `batchscope.store.base_documents` says? Part of `store_contract.StoreContract`.

The one to begin with is `example_match.make_match_data`; nothing was measured for it. Some hold a nan,
so they are compared by their `bits`.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from batchscope.errors import StoreError
from batchscope.records import MatchData, from_plain, to_plain
from batchscope.store.base import Store
from batchscope.testing.example_match import make_match_data, make_run, make_small_match
from batchscope.testing.example_profiles import at, make_profile
from batchscope.testing.example_scaling import make_scaling_data
from batchscope.testing.examples import CONDITIONS, ODD_FLOATS, bits, make_settings
from batchscope.testing.store_fixtures import StoreFixtures

DIVERGED = (
    make_run(outcome="diverged", ended_by="divergence", losses=((0, 2.3), (64, math.nan)), validation={}, test=None),
    make_run(outcome="failed", ended_by="failure", steps=0, losses=(), reason="out of memory", steps_to_goal=None),
)


def of_one_number(value: float) -> MatchData:
    """A match whose every float is this one, but for the goal, which has to be finite."""

    def put(plain: Any) -> Any:
        if isinstance(plain, float):
            return value
        if isinstance(plain, dict):
            return {k: put(v) for k, v in plain.items()}
        return [put(v) for v in plain] if isinstance(plain, list) else plain

    made = make_match_data((512,), (1,), scaling=make_scaling_data())
    return from_plain(MatchData, put(to_plain(made)) | {"goal": to_plain(made.goal)})


def asking(**changes: object) -> MatchData:
    """A match on another question."""
    return make_small_match(question=dataclasses.replace(make_small_match().question, **changes))


class MatchContract(StoreFixtures):
    """What one `match` ran and timed, kept measurement by measurement."""

    def test_a_match_comes_back_equal(self, store: Store) -> None:
        for data in (
            make_match_data(),
            make_match_data(runs=(), rounds=(), measured_at=at(1), timings=(), chosen=(), scaling=make_scaling_data()),
            make_match_data(runs=DIVERGED, measured_at=at(2), costs={}, titles={}, sources={}),
            make_match_data(task="<script>alert(1)</script> \N{SNOWMAN} \x00 end", fingerprint="e" * 16),
            make_match_data(notes=("bad bytes \udcff",), unit="tokens", measured_at=at(4)),
        ):
            match_id = store.save_match(data)
            assert len(match_id) == 12
            assert set(match_id) <= set("0123456789abcdef")
            assert bits(store.match(match_id)) == bits(data)
        data = make_small_match(measured_at=at(3))
        assert store.match(store.save_match(data)) == data

    @pytest.mark.parametrize("value", ODD_FLOATS, ids=repr)
    def test_the_floats_of_a_match_keep_their_bits(self, store: Store, value: float) -> None:
        data = of_one_number(value)
        assert bits(store.match(store.save_match(data))) == bits(data)
        assert store.save_match(data) == store.matches()[0][0]  # the same again, nan included

    def test_each_match_is_kept_and_the_same_one_is_one(self, store: Store) -> None:
        different = [
            make_small_match(),
            make_small_match(fingerprint="e" * 16),
            make_small_match(conditions=dataclasses.replace(CONDITIONS, threads=7)),
            make_small_match(measured_at=at(3)),
            asking(batch_sizes=(256, 512)),
            asking(own_batch_size=16),
            asking(own_learning_rate=0.2),
            asking(remedies=("none",)),
            asking(seeds=(7,)),
            asking(race_seeds=(7,)),
            asking(budget_examples=500),
            asking(cadence_examples=64),
            asking(confirm=2),
            asking(ladder=False),
            asking(devices=(1, 4)),
            asking(budget=10.0),
        ]
        ids = [store.save_match(data) for data in different]
        assert [store.save_match(data) for data in reversed(different)] == ids[::-1]
        assert len(set(ids)) == len(store.matches()) == len(different)
        assert [store.match(match_id) for match_id in ids] == different

    def test_a_whole_number_names_the_same_match_as_its_float(self, store: Store) -> None:
        one = store.save_match(asking(budget=1, own_learning_rate=1))
        assert store.save_match(asking(budget=1.0, own_learning_rate=1.0)) == one
        assert len(store.matches()) == 1

    def test_a_match_is_not_replaced_by_other_numbers(self, store: Store) -> None:
        match_id = store.save_match(make_small_match())
        with pytest.raises(StoreError, match=rf"match {match_id} .* other numbers: the first stays"):
            store.save_match(make_small_match(seconds=99.0))
        assert store.matches() == ((match_id, make_small_match()),)

    @pytest.mark.parametrize("time", ["", "yesterday", "2026-13-01T00:00:00"])
    def test_a_match_without_a_time_is_refused(self, store: Store, time: str) -> None:
        with pytest.raises(ValueError, match=f"match needs `measured_at`.* got '{time}'"):
            store.save_match(make_small_match(measured_at=time))
        assert store.matches() == ()

    def test_the_newest_match_comes_first(self, store: Store) -> None:
        """By the time of measurement, not of storing; equal times: the one stored last."""
        times = ("2026-03-01T12:00:00Z", "2026-03-01T14:30:00+02:30", "2026-02-28T23:59:59", at(13))
        stored = [make_small_match(measured_at=time, fingerprint=str(k % 2) * 16) for k, time in enumerate(times)]
        ids = [store.save_match(data) for data in stored]
        assert store.matches() == tuple((ids[k], stored[k]) for k in (3, 1, 0, 2))
        assert store.matches("1" * 16) == tuple((ids[k], stored[k]) for k in (3, 1))
        assert store.matches("d" * 16) == ()

    def test_a_match_is_found_by_the_beginning_of_its_id(self, store: Store) -> None:
        ids = [store.save_match(asking(seeds=(seed,))) for seed in range(17)]  # 17 ids: two begin alike
        assert store.resolve_match(ids[3]) == ids[3]
        assert all(store.resolve_match(i[:11]) == i for i in ids)
        assert store.match(ids[5][:11]).question.seeds == (5,)
        for ask in (store.match, store.resolve_match):
            with pytest.raises(StoreError, match=r"no match .* begins with 'xyz': `batchscope list`"):
                ask("xyz")
            with pytest.raises(StoreError, match=rf"17 matches .* begin with '': give more of {ids[0]}"):
                ask("")

    def test_a_match_is_told_from_all_else(self, store: Store) -> None:
        match = store.save_match(make_small_match())
        assert store.resolve_any("") == ("match", match)
        scaling, study = store.save_scaling(make_scaling_data()), store.save_study(make_settings())
        profile = store.save_profile(make_profile())
        assert store.resolve_any(match[:11]) == ("match", match)
        assert (store.resolve(""), store.resolve_profile(""), store.resolve_scaling("")) == (study, profile, scaling)
        assert store.resolve_match("") == match
        with pytest.raises(StoreError, match="no match"):
            store.resolve_match(scaling)
        named = rf"scaling {scaling}, match {match}$"
        with pytest.raises(StoreError, match=rf"1 scaling and 1 match .*, {named}"):
            store.resolve_any("")

    def test_a_match_may_name_trials_that_are_not_there(self, store: Store) -> None:
        match_id = store.save_match(make_small_match())
        assert store.studies() == ()
        assert all(run.trial_key for run in store.match(match_id).runs)

    def test_matches_are_there_after_reopening(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as store:
            ids = [store.save_match(make_match_data(measured_at=at(hour))) for hour in (1, 2)]
            before = bits([data for _, data in store.matches()])
        with self.open(tmp_path) as store:
            assert [match_id for match_id, _ in store.matches()] == ids[::-1]
            assert bits([data for _, data in store.matches()]) == before
            assert store.save_match(make_match_data(measured_at=at(1))) == ids[0]
