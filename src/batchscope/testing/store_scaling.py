"""Does a store keep scalings as `batchscope.store.base` says? Part of `store_contract.StoreContract`.

The small one to begin with is `example_scaling.make_scaling_data`; nothing was measured for it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from batchscope.errors import StoreError
from batchscope.records import (
    AllReduceTiming,
    Network,
    ScalingData,
    ScalingPass,
    ScalingQuestion,
    StepTiming,
    TimingPass,
)
from batchscope.store.base import Store
from batchscope.testing.example_noise import make_noise_run
from batchscope.testing.example_profiles import at, make_profile
from batchscope.testing.example_scaling import make_scaling_data
from batchscope.testing.examples import CONDITIONS, ODD_FLOATS, bits, make_settings
from batchscope.testing.store_advice import make_advice_data
from batchscope.testing.store_fixtures import StoreFixtures

LINK = Network(latency=1e-5, bandwidth=1e9)


def of_one_number(value: float) -> ScalingData:
    """A scaling whose every float is this one."""
    twice = (value, value)
    timing = StepTiming(16, 10, twice, twice, {"alone": twice}, joules_per_step=twice)
    places = [dataclasses.replace(CONDITIONS, world_size=n) for n in (1, 2)]
    passes = tuple(TimingPass(32, (timing,), place, drift=value) for place in places)
    measured = ScalingPass(passes, (AllReduceTiming(2, 4096, twice),), gradient_bytes=400, buckets=(300, 100))
    return make_scaling_data(
        own_learning_rate=value,
        question=ScalingQuestion((1, 2), (16,), network=Network(value, value)),
        timing=measured,
        seconds=value,
    )


def asking(**changes: object) -> ScalingData:
    """A scaling on another question."""
    return make_scaling_data(question=dataclasses.replace(make_scaling_data().question, **changes))


class ScalingContract(StoreFixtures):
    """What one `scale` measured over device counts and batch sizes, kept measurement by measurement."""

    def test_a_scaling_comes_back_equal(self, store: Store) -> None:
        bare = ScalingPass((), (), gradient_bytes=0, buckets=())
        for data in (
            make_scaling_data(study_id="0123456789ab", coupled=True),
            make_scaling_data(timing=bare, notes=(), measured_at=at(1)),
            make_scaling_data(task="<script>alert(1)</script> \N{SNOWMAN} \x00 end", fingerprint="e" * 16),
            make_scaling_data(notes=("bad bytes \udcff",), question=ScalingQuestion((1, 2**20), (10**12,), LINK)),
        ):
            scaling_id = store.save_scaling(data)
            assert len(scaling_id) == 12
            assert set(scaling_id) <= set("0123456789abcdef")
            assert store.scaling(scaling_id) == data

    @pytest.mark.parametrize("value", ODD_FLOATS, ids=repr)
    def test_the_floats_of_a_scaling_keep_their_bits(self, store: Store, value: float) -> None:
        data = of_one_number(value)
        assert bits(store.scaling(store.save_scaling(data))) == bits(data)
        assert store.save_scaling(data) == store.scalings()[0][0]  # the same again, nan included

    def test_each_scaling_is_kept_and_the_same_one_is_one(self, store: Store) -> None:
        different = [
            make_scaling_data(),
            make_scaling_data(fingerprint="e" * 16),
            make_scaling_data(conditions=dataclasses.replace(CONDITIONS, threads=7)),
            make_scaling_data(measured_at=at(3)),
            asking(device_counts=(1, 2, 4, 8)),
            asking(batch_sizes=(8, 16)),
            asking(network=LINK),
            asking(network=dataclasses.replace(LINK, latency=2e-5)),
            asking(largest=64),
            asking(seed=1),
        ]
        ids = [store.save_scaling(data) for data in different]
        assert [store.save_scaling(data) for data in reversed(different)] == ids[::-1]
        assert len(set(ids)) == len(store.scalings()) == len(different)
        assert [store.scaling(scaling_id) for scaling_id in ids] == different

    def test_a_whole_number_names_the_same_scaling_as_its_float(self, store: Store) -> None:
        one = store.save_scaling(asking(network=Network(latency=1, bandwidth=10**9)))
        assert store.save_scaling(asking(network=Network(latency=1.0, bandwidth=1e9))) == one
        assert len(store.scalings()) == 1

    def test_a_scaling_is_not_replaced_by_other_numbers(self, store: Store) -> None:
        scaling_id = store.save_scaling(make_scaling_data())
        with pytest.raises(StoreError, match=rf"scaling {scaling_id} .* other numbers: the first stays"):
            store.save_scaling(make_scaling_data(seconds=99.0))
        assert store.scalings() == ((scaling_id, make_scaling_data()),)

    @pytest.mark.parametrize("time", ["", "yesterday", "2026-13-01T00:00:00"])
    def test_a_scaling_without_a_time_is_refused(self, store: Store, time: str) -> None:
        with pytest.raises(ValueError, match=f"scaling needs `measured_at`.* got '{time}'"):
            store.save_scaling(make_scaling_data(measured_at=time))
        assert store.scalings() == ()

    def test_the_newest_scaling_comes_first(self, store: Store) -> None:
        """By the time of measurement, not of storing; equal times: the one stored last."""
        times = ("2026-03-01T12:00:00Z", "2026-03-01T14:30:00+02:30", "2026-02-28T23:59:59", at(13))
        stored = [make_scaling_data(measured_at=time, fingerprint=str(k % 2) * 16) for k, time in enumerate(times)]
        ids = [store.save_scaling(data) for data in stored]
        assert store.scalings() == tuple((ids[k], stored[k]) for k in (3, 1, 0, 2))
        assert store.scalings("1" * 16) == tuple((ids[k], stored[k]) for k in (3, 1))
        assert store.scalings("d" * 16) == ()

    def test_a_scaling_is_found_by_the_beginning_of_its_id(self, store: Store) -> None:
        ids = [store.save_scaling(asking(seed=seed)) for seed in range(17)]  # 17 ids: two begin alike
        assert store.resolve_scaling(ids[3]) == ids[3]
        assert all(store.resolve_scaling(i[:11]) == i for i in ids)
        assert store.scaling(ids[5][:11]).question.seed == 5
        for ask in (store.scaling, store.resolve_scaling):
            with pytest.raises(StoreError, match=r"no scaling .* begins with 'xyz': `batchscope list`"):
                ask("xyz")
            with pytest.raises(StoreError, match=rf"17 scalings .* begin with '': give more of {ids[0]}"):
                ask("")

    def test_a_scaling_is_told_from_all_else(self, store: Store) -> None:
        scaling = store.save_scaling(make_scaling_data())
        assert store.resolve_any("") == ("scaling", scaling)
        advice, study = store.save_advice(make_advice_data()), store.save_study(make_settings())
        noise, profile = store.save_noise_run(make_noise_run()), store.save_profile(make_profile())
        assert store.resolve_any(scaling[:11]) == ("scaling", scaling)
        assert (store.resolve(""), store.resolve_profile(""), store.resolve_noise_run("")) == (study, profile, noise)
        assert (store.resolve_advice(""), store.resolve_scaling("")) == (advice, scaling)
        with pytest.raises(StoreError, match="no scaling"):
            store.resolve_scaling(advice)
        with pytest.raises(StoreError, match=rf"1 advice and 1 scaling .*, advice {advice}, scaling {scaling}$"):
            store.resolve_any("")

    def test_a_scaling_may_name_a_study_that_is_not_there(self, store: Store) -> None:
        scaling_id = store.save_scaling(make_scaling_data(study_id="0123456789ab"))
        assert store.studies() == ()
        assert store.scaling(scaling_id).study_id == "0123456789ab"

    def test_a_study_comes_with_the_newest_scaling_of_its_task(self, store: Store) -> None:
        study = store.save_study(make_settings())
        assert store.study_data(study).scaling is None
        fingerprint = make_settings().fingerprint
        for hour, of in ((1, fingerprint), (2, fingerprint), (3, "d" * 16)):
            store.save_scaling(make_scaling_data(measured_at=at(hour), fingerprint=of))
        assert store.study_data(study).scaling == make_scaling_data(measured_at=at(2), fingerprint=fingerprint)

    def test_scalings_are_there_after_reopening(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as store:
            ids = [store.save_scaling(make_scaling_data(measured_at=at(hour))) for hour in (1, 2)]
            before = bits([data for _, data in store.scalings()])
        with self.open(tmp_path) as store:
            assert [scaling_id for scaling_id, _ in store.scalings()] == ids[::-1]
            assert bits([data for _, data in store.scalings()]) == before
            assert store.save_scaling(make_scaling_data(measured_at=at(1))) == ids[0]
