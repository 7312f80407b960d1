"""Does a store keep profiles as `batchscope.store.base` says? Part of `store_contract.StoreContract`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from batchscope.errors import StoreError
from batchscope.records import (
    Engine,
    FlopCount,
    Measured,
    MemoryFit,
    ProfileData,
    SplitTiming,
    StepTiming,
    TimingPass,
)
from batchscope.store.base import Store
from batchscope.testing.example_profiles import MEMORY, at, make_profile
from batchscope.testing.examples import CONDITIONS, ODD_FLOATS, bits, make_settings
from batchscope.testing.store_fixtures import StoreFixtures

ELSEWHERE = dataclasses.replace(CONDITIONS, engine=Engine(compiled=True))


def of_one_number(value: float) -> ProfileData:
    """A profile whose every float is this one."""
    step = StepTiming(32, 10, (value, value), (value, value), {"data": (value, value)}, (value, value))
    measured = Measured(value, value, value, 2)
    probes = tuple(dataclasses.replace(p, saved_bytes_per_example=value, seconds=value) for p in MEMORY.probes)
    return make_profile(
        units_per_example=value,
        timing=TimingPass(32, (step,), CONDITIONS, value),
        splits=(SplitTiming(64, 32, (value, value), (value, value)),),
        memory=dataclasses.replace(MEMORY, probes=probes, fit=MemoryFit(measured, measured, value, (32, 64))),
        flops=FlopCount(value, 32, value),
        seconds=value,
    )


class ProfileContract(StoreFixtures):
    """What was measured of seconds and bytes, kept measurement by measurement."""

    def test_a_profile_comes_back_equal(self, store: Store) -> None:
        for profile in (
            make_profile(),
            ProfileData("bare", "e" * 16, 10, 1, CONDITIONS, measured_at=at(1)),
            make_profile(task="<script>alert(1)</script> \N{SNOWMAN} \x00 end", notes=("bad bytes \udcff",), seed=4),
        ):
            profile_id = store.save_profile(profile)
            assert len(profile_id) == 12
            assert set(profile_id) <= set("0123456789abcdef")
            assert store.profile(profile_id) == profile

    @pytest.mark.parametrize("value", ODD_FLOATS, ids=repr)
    def test_the_floats_of_a_profile_keep_their_bits(self, store: Store, value: float) -> None:
        profile = of_one_number(value)
        assert bits(store.profile(store.save_profile(profile))) == bits(profile)
        assert store.save_profile(profile) == store.profiles()[0][0]  # the same again, nan included

    def test_each_measurement_is_kept_and_the_same_one_is_one(self, store: Store) -> None:
        different = [
            make_profile(),
            make_profile(measured_at=at(3)),
            make_profile(seed=4),
            make_profile(batch_sizes=None),
            make_profile(memory_limit=None),
            make_profile(fingerprint="e" * 16),
            make_profile(conditions=ELSEWHERE),
        ]
        ids = [store.save_profile(profile) for profile in different]
        assert [store.save_profile(profile) for profile in reversed(different)] == ids[::-1]
        assert len(set(ids)) == len(store.profiles()) == len(different)

    def test_a_whole_number_is_the_same_profile_as_its_float(self, store: Store) -> None:
        one = store.save_profile(make_profile(units_per_example=16, seconds=12))
        assert store.save_profile(make_profile(units_per_example=16.0, seconds=12.0)) == one

    def test_a_profile_is_not_replaced_by_other_numbers(self, store: Store) -> None:
        profile_id = store.save_profile(make_profile())
        with pytest.raises(StoreError, match=f"{profile_id} .* is stored with other numbers: the first stays"):
            store.save_profile(make_profile(seconds=13.0))
        assert store.profiles() == ((profile_id, make_profile()),)

    @pytest.mark.parametrize("time", ["", "yesterday", "2026-13-01T00:00:00"])
    def test_a_profile_without_a_time_is_refused(self, store: Store, time: str) -> None:
        with pytest.raises(ValueError, match=f"measured_at.* got '{time}'"):
            store.save_profile(make_profile(measured_at=time))
        assert store.profiles() == ()

    def test_the_newest_profile_comes_first(self, store: Store) -> None:
        """By the time of measurement, not of storing; equal times: the one stored last."""
        times = (
            "2026-03-01T12:00:00Z",
            "2026-03-01T12:00:00.000001",  # without an offset: UTC
            "2026-03-01T14:30:00+02:30",  # 12:00 UTC
            "2026-02-28T23:59:59.999999+00:00",
            "2026-03-01T12:00:00.5+00:00",
        )
        ids = [store.save_profile(make_profile(measured_at=time)) for time in times]
        assert [profile_id for profile_id, _ in store.profiles()] == [ids[k] for k in (4, 1, 2, 0, 3)]
        assert [profile.measured_at for _, profile in store.profiles()] == [times[k] for k in (4, 1, 2, 0, 3)]

    def test_profiles_of_one_task_only(self, store: Store) -> None:
        mine, later = (store.save_profile(make_profile(measured_at=at(hour))) for hour in (1, 3))
        other = store.save_profile(make_profile(fingerprint="e" * 16, measured_at=at(2)))
        assert [profile_id for profile_id, _ in store.profiles("f" * 16)] == [later, mine]
        assert store.profiles("e" * 16) == ((other, make_profile(fingerprint="e" * 16, measured_at=at(2))),)
        assert store.profiles("d" * 16) == ()

    def test_a_profile_is_found_by_the_beginning_of_its_id(self, store: Store) -> None:
        ids = [store.save_profile(make_profile(seed=seed)) for seed in range(17)]  # 17 ids: two begin alike
        assert store.resolve_profile(ids[3]) == ids[3]
        assert all(store.resolve_profile(i[:11]) == i for i in ids)
        assert store.profile(ids[5][:11]).seed == 5
        for ask in (store.profile, store.resolve_profile):
            with pytest.raises(StoreError, match=r"no profile .* begins with 'xyz': `batchscope list`"):
                ask("xyz")
            with pytest.raises(StoreError, match=rf"17 profiles .* begin with '': give more of {ids[0]}"):
                ask("")

    def test_a_study_is_no_profile(self, store: Store) -> None:
        study, profile = store.save_study(make_settings()), store.save_profile(make_profile())
        with pytest.raises(StoreError, match="no study"):
            store.resolve(profile)
        with pytest.raises(StoreError, match="no profile"):
            store.resolve_profile(study)
        assert (store.resolve(""), store.resolve_profile("")) == (study, profile)  # each the only one of its kind
        with pytest.raises(StoreError, match=rf"1 study and 1 profile .* more of study {study}, profile {profile}"):
            store.resolve_any("")

    def test_the_newest_profile_under_some_conditions(self, store: Store) -> None:
        assert store.newest_profile("f" * 16, CONDITIONS) is None
        for hour in (1, 4, 2):
            store.save_profile(make_profile(measured_at=at(hour)))
        store.save_profile(make_profile(measured_at=at(7), conditions=ELSEWHERE))
        assert store.newest_profile("f" * 16, CONDITIONS) == make_profile(measured_at=at(4))
        assert store.newest_profile("f" * 16, ELSEWHERE) == make_profile(measured_at=at(7), conditions=ELSEWHERE)
        assert store.newest_profile("e" * 16, CONDITIONS) is None
        assert store.newest_profile("f" * 16, dataclasses.replace(CONDITIONS, versions={})) is None

    def test_study_data_takes_the_newest_profile_under_the_studys_conditions(self, store: Store) -> None:
        study = store.save_study(make_settings())
        assert store.study_data(study).profile is None
        store.save_profile(make_profile(fingerprint="e" * 16, measured_at=at(9)))
        store.save_profile(make_profile(conditions=ELSEWHERE, measured_at=at(9)))
        assert store.study_data(study).profile is None
        for hour in (2, 5, 1):
            store.save_profile(make_profile(measured_at=at(hour)))
        assert store.study_data(study).profile == make_profile(measured_at=at(5))
        store.save_profile(make_profile(measured_at=at(6), batch_sizes=None))
        assert store.study_data(study).profile == make_profile(measured_at=at(6), batch_sizes=None)

    def test_profiles_are_there_after_reopening(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as store:
            ids = [store.save_profile(make_profile(measured_at=at(hour))) for hour in (1, 2)]
            before = bits([profile for _, profile in store.profiles()])
        with self.open(tmp_path) as store:
            assert [profile_id for profile_id, _ in store.profiles()] == ids[::-1]
            assert bits([profile for _, profile in store.profiles()]) == before
            assert store.save_profile(make_profile(measured_at=at(1))) == ids[0]
