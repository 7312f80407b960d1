"""Does a store keep advices as `batchscope.store.base` says? Part of `store_contract.StoreContract`.

`make_advice_data` is the small advice that a test of a store, or of what reads one, can begin with; nothing was
measured for it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from batchscope.errors import StoreError
from batchscope.records import AdviceData, AdviceQuestion, Goal, Measured, Tried
from batchscope.store.base import Store
from batchscope.testing.example_noise import make_noise_run
from batchscope.testing.example_profiles import at, make_profile
from batchscope.testing.examples import CONDITIONS, ODD_FLOATS, bits, make_settings
from batchscope.testing.store_fixtures import StoreFixtures
from batchscope.testing.store_profiles import of_one_number as profile_of_one_number

QUESTION = AdviceQuestion(budget=10.0)
REACHED = Tried(
    role="reference",
    batch_size=32,
    learning_rate=0.1,
    seed=0,
    reached=3000.5,
    bound=3000.0,
    provisional=1 / 3,
    lowest_loss=0.1 + 0.2,
    outcome="reached",
    examples=3520,
    steps=110,
)
TRIED = (
    REACHED,
    dataclasses.replace(REACHED, role="search", batch_size=64, reached=None, outcome="not_reached", provisional=None),
    dataclasses.replace(REACHED, role="search", learning_rate=0.8, reached=None, lowest_loss=None, outcome="diverged"),
    dataclasses.replace(REACHED, role="verification", seed=1),
)


def make_advice_data(**changes: object) -> AdviceData:
    """A small advice on the examples' task, under the conditions of `make_settings`; `changes` makes it another."""
    data = AdviceData(
        task="a task",
        fingerprint="f" * 16,
        train_size=1000,
        goal=Goal("loss", at_most=0.36),
        own_batch_size=32,
        own_learning_rate=0.1,
        unit="examples",
        conditions=CONDITIONS,
        question=QUESTION,
        profile=make_profile(),
        trials=TRIED,
        reference_examples=3000.5,
        reference_reached=True,
        budget_examples=10_000,
        cadence_examples=500,
        noise=Measured(None, 12.5, None, 3, interval="Fieller, 2 df"),
        provisional_goal=Goal("loss", at_most=0.5),
        ended="firm",
        examples=14_080,
        steps=440,
        seconds=12.25,
        notes=("one trial diverged",),
        measured_at="2026-03-01T12:00:00.000001+00:00",
    )
    return dataclasses.replace(data, **changes)


def of_one_number(value: float) -> AdviceData:
    """An advice whose every float is this one; a goal must be finite, so it has none."""
    tried = dataclasses.replace(
        REACHED, learning_rate=value, reached=value, bound=value, provisional=value, lowest_loss=value
    )
    return make_advice_data(
        goal=None,
        provisional_goal=None,
        own_learning_rate=value,
        question=AdviceQuestion(budget=value, price=value, best_in_seconds=value),
        profile=profile_of_one_number(value),
        trials=(tried,),
        reference_examples=value,
        noise=Measured(value, value, value, 2),
        seconds=value,
    )


def asking(**changes: object) -> AdviceData:
    """An advice on another question."""
    return make_advice_data(question=dataclasses.replace(QUESTION, **changes))


class AdviceContract(StoreFixtures):
    """What one `recommend` was asked and measured, kept measurement by measurement."""

    def test_an_advice_comes_back_equal(self, store: Store) -> None:
        for data in (
            make_advice_data(),
            make_advice_data(goal=None, noise=None, provisional_goal=None, trials=(), notes=(), measured_at=at(1)),
            make_advice_data(task="<script>alert(1)</script> \N{SNOWMAN} \x00 end", fingerprint="e" * 16),
            make_advice_data(
                notes=("bad bytes \udcff",), coupled=True, question=AdviceQuestion(3.0, best_in_examples=10**12)
            ),
        ):
            advice_id = store.save_advice(data)
            assert len(advice_id) == 12
            assert set(advice_id) <= set("0123456789abcdef")
            assert store.advice(advice_id) == data

    @pytest.mark.parametrize("value", ODD_FLOATS, ids=repr)
    def test_the_floats_of_an_advice_keep_their_bits(self, store: Store, value: float) -> None:
        data = of_one_number(value)
        assert bits(store.advice(store.save_advice(data))) == bits(data)
        assert store.save_advice(data) == store.advices()[0][0]  # the same again, nan included

    def test_each_advice_is_kept_and_the_same_one_is_one(self, store: Store) -> None:
        different = [
            make_advice_data(),
            make_advice_data(fingerprint="e" * 16),
            make_advice_data(conditions=dataclasses.replace(CONDITIONS, threads=1)),
            make_advice_data(measured_at=at(3)),
            asking(budget=20.0),
            asking(objective="cost"),
            asking(objective="cost", price=2.5),
            asking(memory_limit=2**30),
            asking(devices=2),
            asking(seed=1),
            asking(best_in_seconds=60.0),
            asking(best_in_examples=60),
        ]
        ids = [store.save_advice(data) for data in different]
        assert [store.save_advice(data) for data in reversed(different)] == ids[::-1]
        assert len(set(ids)) == len(store.advices()) == len(different)
        assert [store.advice(advice_id) for advice_id in ids] == different

    def test_a_whole_number_names_the_same_advice_as_its_float(self, store: Store) -> None:
        one = store.save_advice(asking(budget=10, price=2))
        assert store.save_advice(asking(budget=10.0, price=2.0)) == one
        assert len(store.advices()) == 1

    def test_an_advice_is_not_replaced_by_other_numbers(self, store: Store) -> None:
        advice_id = store.save_advice(make_advice_data())
        with pytest.raises(StoreError, match=rf"advice {advice_id} .* other numbers: the first stays"):
            store.save_advice(make_advice_data(trials=TRIED[:3]))
        assert store.advices() == ((advice_id, make_advice_data()),)

    @pytest.mark.parametrize("time", ["", "yesterday", "2026-13-01T00:00:00"])
    def test_an_advice_without_a_time_is_refused(self, store: Store, time: str) -> None:
        with pytest.raises(ValueError, match=f"advice needs `measured_at`.* got '{time}'"):
            store.save_advice(make_advice_data(measured_at=time))
        assert store.advices() == ()

    def test_the_newest_advice_comes_first(self, store: Store) -> None:
        """By the time of measurement, not of storing; equal times: the one stored last."""
        times = ("2026-03-01T12:00:00Z", "2026-03-01T14:30:00+02:30", "2026-02-28T23:59:59", at(13))
        stored = [make_advice_data(measured_at=time, fingerprint=str(k % 2) * 16) for k, time in enumerate(times)]
        ids = [store.save_advice(data) for data in stored]
        assert store.advices() == tuple((ids[k], stored[k]) for k in (3, 1, 0, 2))
        assert store.advices("1" * 16) == tuple((ids[k], stored[k]) for k in (3, 1))
        assert store.advices("d" * 16) == ()

    def test_an_advice_is_found_by_the_beginning_of_its_id(self, store: Store) -> None:
        ids = [store.save_advice(asking(seed=seed)) for seed in range(17)]  # 17 ids: two begin alike
        assert store.resolve_advice(ids[3]) == ids[3]
        assert all(store.resolve_advice(i[:11]) == i for i in ids)
        assert store.advice(ids[5][:11]).question.seed == 5
        for ask in (store.advice, store.resolve_advice):
            with pytest.raises(StoreError, match=r"no advice .* begins with 'xyz': `batchscope list`"):
                ask("xyz")
            with pytest.raises(StoreError, match=rf"17 advices .* begin with '': give more of {ids[0]}"):
                ask("")

    def test_an_advice_is_told_from_all_else(self, store: Store) -> None:
        advice = store.save_advice(make_advice_data())
        assert store.resolve_any("") == ("advice", advice)
        study, noise = store.save_study(make_settings()), store.save_noise_run(make_noise_run())
        profile = store.save_profile(make_profile())
        assert store.resolve_any(advice[:11]) == ("advice", advice)
        assert (store.resolve(""), store.resolve_noise_run(""), store.resolve_advice("")) == (study, noise, advice)
        with pytest.raises(StoreError, match="no advice"):
            store.resolve_advice(profile)
        with pytest.raises(StoreError, match=rf"1 noise run and 1 advice .*, noise run {noise}, advice {advice}$"):
            store.resolve_any("")

    def test_the_profile_inside_an_advice_is_not_one_of_the_stores(self, store: Store) -> None:
        advice_id = store.save_advice(make_advice_data())
        assert store.profiles() == ()
        profile_id = store.save_profile(make_profile())
        assert store.advice(advice_id).profile == store.profile(profile_id)

    def test_advices_are_there_after_reopening(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as store:
            ids = [store.save_advice(make_advice_data(measured_at=at(hour))) for hour in (1, 2)]
            before = bits([data for _, data in store.advices()])
        with self.open(tmp_path) as store:
            assert [advice_id for advice_id, _ in store.advices()] == ids[::-1]
            assert bits([data for _, data in store.advices()]) == before
            assert store.save_advice(make_advice_data(measured_at=at(1))) == ids[0]
