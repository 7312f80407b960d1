"""Does a store keep its contract (`batchscope.store.base`)? Subclass, say how to open one, and run pytest.

    class TestMyStore(StoreContract):
        def open(self, folder):
            return MyStore(folder / "store")

`open` is called more than once with the same folder: what was stored must be there again. Every test uses the
abstract methods only, from one process; what two processes may do to each other depends on the medium and is for the
store's own tests. Tasks and studies are here, trials in `store_trials.py`, profiles in `store_profiles.py`,
noise runs in `store_noise.py`, advices in `store_advice.py`, scalings in `store_scaling.py`, sharpnesses in
`store_sharpness.py`, matches in `store_match.py`, parts in `store_parts.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from batchscope.errors import StoreError
from batchscope.records import Goal
from batchscope.store.base import Store
from batchscope.store.owner import Owner
from batchscope.testing.examples import CHOICES, TIMING, bits, make_result, make_settings, make_spec
from batchscope.testing.store_advice import AdviceContract
from batchscope.testing.store_match import MatchContract
from batchscope.testing.store_noise import NoiseContract
from batchscope.testing.store_parts import PartContract
from batchscope.testing.store_profiles import ProfileContract
from batchscope.testing.store_scaling import ScalingContract
from batchscope.testing.store_sharpness import SharpnessContract
from batchscope.testing.store_trials import TrialContract


class StoreContract(
    TrialContract,
    ProfileContract,
    NoiseContract,
    AdviceContract,
    ScalingContract,
    SharpnessContract,
    MatchContract,
    PartContract,
):
    """All tests."""

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
