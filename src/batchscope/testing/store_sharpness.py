"""Does a store keep sharpnesses as `batchscope.store.base_documents` says? Part of `store_contract.StoreContract`.

The one to begin with is `example_sharpness.make_sharpness_data`; nothing was measured for it. It holds a nan, so it is
compared by its `bits`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from batchscope.errors import StoreError
from batchscope.records import PointSharpness, SharpnessData, SharpnessQuestion, from_plain, to_plain
from batchscope.store.base import Store
from batchscope.testing.example_profiles import at, make_profile
from batchscope.testing.example_scaling import make_scaling_data
from batchscope.testing.example_sharpness import make_file_point, make_sharpness_data, make_small_sharpness
from batchscope.testing.examples import CONDITIONS, ODD_FLOATS, bits, make_settings
from batchscope.testing.store_fixtures import StoreFixtures


def of_one_number(value: float) -> SharpnessData:
    """A sharpness whose every float is this one."""

    def put(plain: Any) -> Any:
        if isinstance(plain, float):
            return value
        if isinstance(plain, dict):
            return {k: put(v) for k, v in plain.items()}
        return [put(v) for v in plain] if isinstance(plain, list) else plain

    return from_plain(SharpnessData, put(to_plain(make_sharpness_data((32,), ("held",), (0,)))))


def asking(**changes: object) -> SharpnessData:
    """A sharpness on another question."""
    return make_small_sharpness(question=dataclasses.replace(make_small_sharpness().question, **changes))


class SharpnessContract(StoreFixtures):
    """What one `sharpness` measured at stored weights, kept measurement by measurement."""

    def test_a_sharpness_comes_back_equal(self, store: Store) -> None:
        for data in (
            make_sharpness_data(study_id="0123456789ab", double=True),
            make_sharpness_data(points=(), lines=(), measured_at=at(1), settings={}, sample_sizes=(), normed=()),
            make_sharpness_data(points=(PointSharpness("bare"), make_file_point()), measured_at=at(2)),
            make_sharpness_data(task="<script>alert(1)</script> \N{SNOWMAN} \x00 end", fingerprint="e" * 16),
            make_sharpness_data(notes=("bad bytes \udcff",), question=SharpnessQuestion("0123456789ab", ())),
        ):
            sharpness_id = store.save_sharpness(data)
            assert len(sharpness_id) == 12
            assert set(sharpness_id) <= set("0123456789abcdef")
            assert bits(store.sharpness(sharpness_id)) == bits(data)
        data = make_small_sharpness(measured_at=at(3))
        assert store.sharpness(store.save_sharpness(data)) == data

    @pytest.mark.parametrize("value", ODD_FLOATS, ids=repr)
    def test_the_floats_of_a_sharpness_keep_their_bits(self, store: Store, value: float) -> None:
        data = of_one_number(value)
        assert bits(store.sharpness(store.save_sharpness(data))) == bits(data)
        assert store.save_sharpness(data) == store.sharpnesses()[0][0]  # the same again, nan included

    def test_each_sharpness_is_kept_and_the_same_one_is_one(self, store: Store) -> None:
        different = [
            make_small_sharpness(),
            make_small_sharpness(fingerprint="e" * 16),
            make_small_sharpness(conditions=dataclasses.replace(CONDITIONS, threads=7)),
            make_small_sharpness(measured_at=at(3)),
            asking(study_id="0123456789ab"),
            asking(labels=("best.pt", "last.pt")),
            asking(at="last"),
            asking(examples=500),
            asking(epsilons=(1e-3,)),
            asking(pictures=False),
            asking(causes=False),
            asking(seed=1),
        ]
        ids = [store.save_sharpness(data) for data in different]
        assert [store.save_sharpness(data) for data in reversed(different)] == ids[::-1]
        assert len(set(ids)) == len(store.sharpnesses()) == len(different)
        assert [store.sharpness(sharpness_id) for sharpness_id in ids] == different

    def test_a_whole_number_names_the_same_sharpness_as_its_float(self, store: Store) -> None:
        one = store.save_sharpness(asking(epsilons=(1,)))
        assert store.save_sharpness(asking(epsilons=(1.0,))) == one
        assert len(store.sharpnesses()) == 1

    def test_a_sharpness_is_not_replaced_by_other_numbers(self, store: Store) -> None:
        sharpness_id = store.save_sharpness(make_small_sharpness())
        with pytest.raises(StoreError, match=rf"sharpness {sharpness_id} .* other numbers: the first stays"):
            store.save_sharpness(make_small_sharpness(seconds=99.0))
        assert store.sharpnesses() == ((sharpness_id, make_small_sharpness()),)

    @pytest.mark.parametrize("time", ["", "yesterday", "2026-13-01T00:00:00"])
    def test_a_sharpness_without_a_time_is_refused(self, store: Store, time: str) -> None:
        with pytest.raises(ValueError, match=f"sharpness needs `measured_at`.* got '{time}'"):
            store.save_sharpness(make_small_sharpness(measured_at=time))
        assert store.sharpnesses() == ()

    def test_the_newest_sharpness_comes_first(self, store: Store) -> None:
        """By the time of measurement, not of storing; equal times: the one stored last."""
        times = ("2026-03-01T12:00:00Z", "2026-03-01T14:30:00+02:30", "2026-02-28T23:59:59", at(13))
        stored = [make_small_sharpness(measured_at=time, fingerprint=str(k % 2) * 16) for k, time in enumerate(times)]
        ids = [store.save_sharpness(data) for data in stored]
        assert store.sharpnesses() == tuple((ids[k], stored[k]) for k in (3, 1, 0, 2))
        assert store.sharpnesses("1" * 16) == tuple((ids[k], stored[k]) for k in (3, 1))
        assert store.sharpnesses("d" * 16) == ()

    def test_a_sharpness_is_found_by_the_beginning_of_its_id(self, store: Store) -> None:
        ids = [store.save_sharpness(asking(seed=seed)) for seed in range(17)]  # 17 ids: two begin alike
        assert store.resolve_sharpness(ids[3]) == ids[3]
        assert all(store.resolve_sharpness(i[:11]) == i for i in ids)
        assert store.sharpness(ids[5][:11]).question.seed == 5
        for ask in (store.sharpness, store.resolve_sharpness):
            with pytest.raises(StoreError, match=r"no sharpness .* begins with 'xyz': `batchscope list`"):
                ask("xyz")
            with pytest.raises(StoreError, match=rf"17 sharpnesses .* begin with '': give more of {ids[0]}"):
                ask("")

    def test_a_sharpness_is_told_from_all_else(self, store: Store) -> None:
        sharpness = store.save_sharpness(make_small_sharpness())
        assert store.resolve_any("") == ("sharpness", sharpness)
        scaling, study = store.save_scaling(make_scaling_data()), store.save_study(make_settings())
        profile = store.save_profile(make_profile())
        assert store.resolve_any(sharpness[:11]) == ("sharpness", sharpness)
        assert (store.resolve(""), store.resolve_profile(""), store.resolve_scaling("")) == (study, profile, scaling)
        assert store.resolve_sharpness("") == sharpness
        with pytest.raises(StoreError, match="no sharpness"):
            store.resolve_sharpness(scaling)
        named = rf"scaling {scaling}, sharpness {sharpness}$"
        with pytest.raises(StoreError, match=rf"1 scaling and 1 sharpness .*, {named}"):
            store.resolve_any("")

    def test_a_sharpness_may_name_a_study_that_is_not_there(self, store: Store) -> None:
        sharpness_id = store.save_sharpness(make_small_sharpness(study_id="0123456789ab"))
        assert store.studies() == ()
        assert store.sharpness(sharpness_id).study_id == "0123456789ab"

    def test_sharpnesses_are_there_after_reopening(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as store:
            ids = [store.save_sharpness(make_sharpness_data(measured_at=at(hour))) for hour in (1, 2)]
            before = bits([data for _, data in store.sharpnesses()])
        with self.open(tmp_path) as store:
            assert [sharpness_id for sharpness_id, _ in store.sharpnesses()] == ids[::-1]
            assert bits([data for _, data in store.sharpnesses()]) == before
            assert store.save_sharpness(make_sharpness_data(measured_at=at(1))) == ids[0]
