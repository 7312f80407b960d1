"""Is nothing lost between a reading on the device and the report: sums, layers, groups, scales, what is dropped?"""

from __future__ import annotations

import math

import pytest
import torch

from batchscope.analysis.noise_scale import noise_scale
from batchscope.measure import readings as module
from batchscope.measure.gradients import Reading
from batchscope.measure.readings import Readings
from batchscope.records import GradientNorms, NoiseReport

NAMES = ["body.weight", "body.bias", "head.weight", "scale"]
BATCH = 8


def reading(seed: int, *, proxies: bool = False) -> Reading:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.rand(len(NAMES), generator=generator) + 0.5
    more = {"sign": (mean.sum() + 3, mean.sum()), "adam": (mean.sum() + 2, mean.sum())} if proxies else {}
    return Reading(BATCH, 1.0, float(BATCH), mean + 2 + torch.rand(len(NAMES), generator=generator), mean, more)


def filled(n: int, *, proxies: bool = False) -> tuple[Readings, list[Reading]]:
    given = [reading(i, proxies=proxies) for i in range(n)]
    kept = Readings(data_size=1000)
    for i, each in enumerate(given):
        kept.add(i, BATCH * i, each, torch.tensor(float(i)), 0.1 * i)
    return kept, given


def report(kept: Readings, last: int | None = None) -> NoiseReport:
    groups = {"group 0": ["body.weight", "head.weight"], "group 1": ["body.bias"], "group 2": ["unknown"]}
    return kept.report(
        names=NAMES,
        groups=groups,
        source="examples",
        every=3,
        overhead=0.01,
        steps=99,
        precision=0.2,
        last=last,
        notes=("a note",),
    )


def test_sums_over_parameters() -> None:
    kept, given = filled(12)
    for i, (norms, each) in enumerate(zip(kept.totals(), given, strict=True)):
        assert norms.parts_squared == pytest.approx(float(each.parts_squared.double().sum()), rel=1e-12)
        assert norms.mean_squared == pytest.approx(float(each.mean_squared.double().sum()), rel=1e-12)
        assert (norms.step, norms.examples, norms.parts) == (i, BATCH * i, BATCH)
        assert (norms.part_size, norms.batch_size) == (1.0, BATCH)
        assert (norms.loss, norms.learning_rate) == (float(i), pytest.approx(0.1 * i))
    for norms, each in zip(kept.of([0, 2]), given, strict=True):
        assert norms.parts_squared == pytest.approx(float(each.parts_squared.double()[[0, 2]].sum()), rel=1e-12)


@pytest.mark.parametrize("together", [1, 5, 64])
def test_fetching_a_few_at_a_time_changes_nothing(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = filled(12)[0].totals()
    monkeypatch.setattr(module, "TOGETHER", together)
    assert filled(12)[0].totals() == expected


def test_the_loss_scale_is_divided_out() -> None:
    plain, scaled, scale = Readings(), Readings(), 2.0**10
    for i in range(3):
        each = reading(i, proxies=True)
        proxies = {k: (a * scale**2, b * scale**2) for k, (a, b) in each.proxies.items()}
        big = Reading(BATCH, 1.0, BATCH, each.parts_squared * scale**2, each.mean_squared * scale**2, proxies)
        plain.add(i, 0, each, None, None)
        scaled.add(i, 0, big, None, None, scale)
    assert scaled.totals() == plain.totals()
    assert scaled.of_proxy("sign") == plain.of_proxy("sign")


def test_what_is_not_finite_is_dropped_and_counted() -> None:
    kept, _ = filled(10)
    good = reading(0)
    infinite = torch.tensor([1.0, math.inf, 1.0, 1.0])
    kept.add(10, 0, Reading(BATCH, 1.0, BATCH, good.parts_squared, infinite), None, None)
    kept.add(11, 0, Reading(BATCH, 1.0, BATCH, infinite * math.nan, good.mean_squared), None, None)
    kept.add(12, 0, Reading(BATCH, torch.tensor(math.nan), BATCH, good.parts_squared, good.mean_squared), None, None)
    kept.add(13, 0, reading(13), 0.5, None)
    assert [norms.step for norms in kept.totals()] == [*range(10), 13]
    assert kept.totals()[-1].loss == 0.5
    assert (kept.count, kept.discarded) == (14, 3)
    assert report(kept).scale.discarded == 3


def test_the_report() -> None:
    kept, _ = filled(40, proxies=True)
    found, totals = report(kept), kept.totals()
    assert found.scale == noise_scale(totals, data_size=1000)
    assert found.latest == noise_scale(totals[-10:], data_size=1000)
    assert found.measurements == tuple(totals)
    assert found.layers == {
        "body": noise_scale(kept.of([0, 1]), data_size=1000),
        "head": noise_scale(kept.of([2]), data_size=1000),
        "scale": noise_scale(kept.of([3]), data_size=1000),
    }
    assert found.groups == {
        "group 0": noise_scale(kept.of([0, 2]), data_size=1000),
        "group 1": noise_scale(kept.of([1]), data_size=1000),
    }
    assert set(found.proxies) == {"sign", "adam"}
    assert found.proxies["adam"] == noise_scale(kept.of_proxy("adam"), data_size=1000, metric="adam")
    assert (found.source, found.parts, found.batch_size, found.every) == ("examples", BATCH, BATCH, 3)
    assert (found.overhead, found.steps, found.notes) == (0.01, 99, ("a note",))


def test_the_traces_of_layers_add_up() -> None:
    kept, _ = filled(40)
    found = report(kept)
    traces = [scale.trace.estimate for scale in found.layers.values()]
    assert sum(t for t in traces if t is not None) == pytest.approx(found.scale.trace.estimate)


def test_the_last_so_many() -> None:
    kept, _ = filled(40)
    found = report(kept, last=20)
    assert found.scale == noise_scale(kept.totals()[-20:], data_size=1000)
    assert found.measurements == tuple(kept.totals()[-20:])
    assert found.latest == noise_scale(kept.totals()[-5:], data_size=1000)


def test_layers_and_proxies_up_to_a_measurement() -> None:
    kept, _ = filled(40, proxies=True)

    def early(norms: GradientNorms) -> bool:
        return norms.step < kept.totals()[12].step

    assert kept.layers(NAMES, early)["head"] == noise_scale(kept.of([2])[:12], data_size=1000)
    assert kept.proxies(early)["sign"] == noise_scale(kept.of_proxy("sign")[:12], data_size=1000, metric="sign")


def test_one_layer_is_no_layers() -> None:
    kept = Readings()
    kept.add(0, 0, Reading(2, 4.0, 8.0, torch.ones(1) * 2, torch.ones(1)), None, None)
    assert kept.layers(["all parameters"]) == {}


def test_a_small_data_set_is_said() -> None:
    """Batches of an epoch remember what was drawn before, the more so the larger B_simple is beside the data."""
    for data_size, said in ((BATCH * 5, True), (10**9, False), (None, False)):
        kept = Readings(data_size)
        for i in range(40):
            kept.add(i, 0, reading(i), None, None)
        assert any("without replacement" in note for note in report(kept).notes) is said


def test_nothing_that_could_be_kept_is_said() -> None:
    kept = Readings()
    kept.add(0, 0, Reading(2, 4.0, 8.0, torch.full((4,), math.nan), torch.ones(4)), None, None)
    found = report(kept)
    assert found.scale.outcome == "not_enough"
    assert (found.measurements, found.parts, found.batch_size) == ((), 0, 0.0)
