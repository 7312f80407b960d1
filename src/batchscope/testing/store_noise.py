"""Does a store keep noise runs as `batchscope.store.base` says? Part of `store_contract.StoreContract`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from batchscope.errors import StoreError
from batchscope.records import Deviations, Evaluation, GradientNorms, Measured, NoiseRun
from batchscope.store.base import Store
from batchscope.testing.example_noise import SCALE, make_noise_run
from batchscope.testing.example_profiles import at, make_profile
from batchscope.testing.examples import CONDITIONS, ODD_FLOATS, bits, make_settings
from batchscope.testing.store_fixtures import StoreFixtures


def of_one_number(value: float) -> NoiseRun:
    """A noise run whose every float is this one."""
    measured = Measured(value, value, value, 2)
    scale = dataclasses.replace(
        SCALE,
        b_simple=measured,
        trace=measured,
        squared_gradient=measured,
        effective_measurements=value,
        negative_share=value,
        precision=value,
    )
    return make_noise_run(
        learning_rate=value,
        budget=value,
        measurements=(GradientNorms(0, 0, 32, value, value, value, value, value, value),),
        layers={"a layer": scale},
        proxies={"sign": scale},
        trace=(Evaluation(0, 0, {"loss": value}, {"loss": value}, value, value),),
        crossed_at=value,
        deviations=(Deviations(8, 256, value, 1000, value, (1,), ((value, value),)),),
        seconds=value,
    )


def in_short(run: NoiseRun) -> NoiseRun:
    """A noise run as its summary has it."""
    return dataclasses.replace(run, measurements=(), trace=(), deviations=(), layers={}, proxies={})


class NoiseContract(StoreFixtures):
    """What was measured of gradient norms, kept measurement by measurement; which study it is set beside."""

    def test_a_noise_run_comes_back_equal(self, store: Store) -> None:
        for run in (
            make_noise_run(),
            NoiseRun("bare", "e" * 16, 10, None, 1, 0.1, CONDITIONS, measured_at=at(1)),
            make_noise_run(task="<script>alert(1)</script> \N{SNOWMAN} \x00 end", notes=("bad bytes \udcff",), seed=4),
        ):
            noise_id = store.save_noise_run(run)
            assert len(noise_id) == 12
            assert set(noise_id) <= set("0123456789abcdef")
            assert store.noise_run(noise_id) == run

    @pytest.mark.parametrize("value", ODD_FLOATS, ids=repr)
    def test_the_floats_of_a_noise_run_keep_their_bits(self, store: Store, value: float) -> None:
        run = of_one_number(value)
        assert bits(store.noise_run(store.save_noise_run(run))) == bits(run)
        assert store.save_noise_run(run) == store.noise_runs()[0][0]  # the same again, nan included
        assert bits(store.noise_summaries()[0].run) == bits(in_short(run))

    def test_each_noise_run_is_kept_and_the_same_one_is_one(self, store: Store) -> None:
        different = [
            make_noise_run(),
            make_noise_run(fingerprint="e" * 16),
            make_noise_run(conditions=dataclasses.replace(CONDITIONS, threads=1)),
            make_noise_run(batch_size=64),
            make_noise_run(learning_rate=0.2),
            make_noise_run(seed=4),
            make_noise_run(budget=None),
            make_noise_run(source="replicas"),
            make_noise_run(every=1),
            make_noise_run(measured_at=at(3)),
        ]
        ids = [store.save_noise_run(run) for run in different]
        assert [store.save_noise_run(run) for run in reversed(different)] == ids[::-1]
        assert len(set(ids)) == len(store.noise_runs()) == len(different)
        assert [store.noise_run(noise_id) for noise_id in ids] == different

    def test_a_whole_number_names_the_same_noise_run_as_its_float(self, store: Store) -> None:
        one = store.save_noise_run(make_noise_run(learning_rate=1, budget=2))
        assert store.save_noise_run(make_noise_run(learning_rate=1.0, budget=2.0)) == one

    def test_other_numbers_under_the_same_identity_are_refused(self, store: Store) -> None:
        noise_id = store.save_noise_run(make_noise_run())
        with pytest.raises(StoreError, match=rf"noise run {noise_id} .* other numbers: the first stays"):
            store.save_noise_run(make_noise_run(seconds=99.0))
        assert store.noise_runs() == ((noise_id, make_noise_run()),)

    @pytest.mark.parametrize("time", ["", "yesterday", "2026-13-01T00:00:00"])
    def test_a_noise_run_without_a_time_is_refused(self, store: Store, time: str) -> None:
        with pytest.raises(ValueError, match=f"noise run needs `measured_at`.* got '{time}'"):
            store.save_noise_run(make_noise_run(measured_at=time))
        assert store.noise_runs() == ()

    def test_the_newest_noise_run_comes_first_and_the_oldest_summary(self, store: Store) -> None:
        """By the time of measurement, not of storing; equal times: the one stored last."""
        times = ("2026-03-01T12:00:00Z", "2026-03-01T14:30:00+02:30", "2026-02-28T23:59:59", at(13))
        runs = [make_noise_run(measured_at=time, fingerprint=str(k % 2) * 16) for k, time in enumerate(times)]
        ids = [store.save_noise_run(run) for run in runs]
        newest_first = [3, 1, 0, 2]
        assert store.noise_runs() == tuple((ids[k], runs[k]) for k in newest_first)
        assert store.noise_runs("1" * 16) == tuple((ids[k], runs[k]) for k in (3, 1))
        assert store.noise_runs("d" * 16) == ()
        summaries = [(s.id, s.measurements, s.run) for s in store.noise_summaries()]
        assert summaries == [(ids[k], 3, in_short(runs[k])) for k in reversed(newest_first)]

    def test_a_noise_run_is_found_by_the_beginning_of_its_id(self, store: Store) -> None:
        ids = [store.save_noise_run(make_noise_run(seed=seed)) for seed in range(17)]  # 17 ids: two begin alike
        assert store.resolve_noise_run(ids[3]) == ids[3]
        assert all(store.resolve_noise_run(i[:11]) == i for i in ids)
        assert store.noise_run(ids[5][:11]).seed == 5
        for ask in (store.noise_run, store.resolve_noise_run):
            with pytest.raises(StoreError, match=r"no noise run .* begins with 'xyz': `batchscope list`"):
                ask("xyz")
            with pytest.raises(StoreError, match=rf"17 noise runs .* begin with '': give more of {ids[0]}"):
                ask("")

    def test_studies_profiles_and_noise_runs_are_told_apart(self, store: Store) -> None:
        kinds = "study, profile, noise run, advice, scaling, sharpness or match"
        with pytest.raises(StoreError, match=rf"no {kinds} .* begins with ''"):
            store.resolve_any("")
        noise = store.save_noise_run(make_noise_run())
        assert store.resolve_any("") == ("noise run", noise)
        study, profile = store.save_study(make_settings()), store.save_profile(make_profile())
        for kind, full_id in (("study", study), ("profile", profile), ("noise run", noise)):
            assert store.resolve_any(full_id[:11]) == (kind, full_id)
        assert (store.resolve(""), store.resolve_profile(""), store.resolve_noise_run("")) == (study, profile, noise)
        with pytest.raises(StoreError, match="no noise run"):
            store.resolve_noise_run(profile)
        counted = "1 study, 1 profile and 1 noise run"
        with pytest.raises(StoreError, match=rf"{counted} .* study {study}, profile {profile}, noise run {noise}"):
            store.resolve_any("")

    def test_the_tuned_study_finished_last_is_the_newest(self, store: Store) -> None:
        """Of this fingerprint, under any conditions; one that only held, or still runs, is passed over."""
        ask = store.newest_tuned_study
        assert ask("f" * 16) is None
        conditions = dataclasses.replace(CONDITIONS, device="cuda", threads=9)
        elsewhere = store.save_study(make_settings(conditions=conditions))
        here, held, other = (
            store.save_study(make_settings(**changes))
            for changes in ({"policies": ("tuned",)}, {"policies": ("held",)}, {"fingerprint": "e" * 16})
        )
        store.save_study(make_settings(workers=7))  # never finished
        assert ask("f" * 16) is None
        for finished, newest in ((here, here), (elsewhere, elsewhere), (held, elsewhere), (other, elsewhere)):
            store.finish_study(finished)
            assert ask("f" * 16) == newest
        store.finish_study(here)  # the first end counts
        assert (ask("f" * 16), ask("e" * 16), ask("d" * 16)) == (elsewhere, other, None)

    def test_noise_runs_are_there_after_reopening(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as store:
            ids = [store.save_noise_run(make_noise_run(measured_at=at(hour))) for hour in (1, 2)]
            before = bits([run for _, run in store.noise_runs()])
        with self.open(tmp_path) as store:
            assert [noise_id for noise_id, _ in store.noise_runs()] == ids[::-1]
            assert bits([run for _, run in store.noise_runs()]) == before
            assert store.save_noise_run(make_noise_run(measured_at=at(1))) == ids[0]
