"""Made-up answers of `scale`, shared by the report's tests: windows from closed forms, joined with a made-up study."""

from __future__ import annotations

import dataclasses
import functools

from made_up import HOSTILE, synthetic_study

from batchscope.analysis.scaling_answer import analyse_scaling
from batchscope.records import Measured, Network, ScalingQuestion, ScalingResult
from batchscope.testing.example_scaling import BATCH_SIZES, make_scaling_data

B_CRIT = 60.0


@functools.cache
def joined() -> ScalingResult:
    """Three device counts measured, and a study whose critical batch size is about B_CRIT."""
    study = synthetic_study(n_batch=len(BATCH_SIZES), b_crit=B_CRIT, budget_epochs=90)
    return analyse_scaling(make_scaling_data(study_id="abc123"), study)


@functools.cache
def described() -> ScalingResult:
    """Two device counts, and a faster link that is only described."""
    question = ScalingQuestion((1, 2), BATCH_SIZES, Network(5e-6, 2e10), 64)
    study = synthetic_study(n_batch=len(BATCH_SIZES), b_crit=B_CRIT, budget_epochs=90)
    return analyse_scaling(make_scaling_data(counts=(1, 2), question=question, study_id="abc123"), study)


def unstudied() -> ScalingResult:
    """No study in the store: nothing is known of the goal."""
    return dataclasses.replace(unreached(), data=dataclasses.replace(joined().data, study_id=None))


def unreached() -> ScalingResult:
    """A study that gives no steps to the goal."""
    claims = tuple(c for c in joined().claims if c.number == 8)
    return dataclasses.replace(joined(), choices=(), most_useful=None, critical_batch_size=None, claims=claims)


@functools.cache
def alone() -> ScalingResult:
    """One device, and no link described: there is little to say."""
    return analyse_scaling(make_scaling_data(counts=(1,)))


def coupled() -> ScalingResult:
    """Batch norm, a device with memory of its own."""
    conditions = dataclasses.replace(joined().data.conditions, device="cuda", device_name="Imaginary 9")
    return dataclasses.replace(joined(), data=dataclasses.replace(joined().data, coupled=True, conditions=conditions))


def nothing_hidden() -> ScalingResult:
    """Averaging that adds nothing to be seen at any batch size, and a law that is not resolved."""
    none = Measured(0.0, 0.0, 1e-5, 5, 0, "t on 5 rounds, 4 df, about the median, cut off at 0")
    rows = tuple(dataclasses.replace(r, exposed=none) if r.devices > 1 else r for r in joined().rows)
    return dataclasses.replace(joined(), rows=rows, critical_batch_size=Measured(60.0, 0.0, None, 3), most_useful=1)


def hostile() -> ScalingResult:
    """A result whose task, device, notes, reasons and claims are named like an attack on the page."""
    result = joined()
    conditions = dataclasses.replace(
        result.data.conditions, device_name=HOSTILE, platform=HOSTILE, versions={HOSTILE: HOSTILE}
    )
    data = dataclasses.replace(
        result.data, task=HOSTILE, conditions=conditions, notes=(f"a note on {HOSTILE}",), study_id=HOSTILE
    )
    return dataclasses.replace(
        result,
        task=HOSTILE,
        data=data,
        claims=tuple(dataclasses.replace(c, why=HOSTILE) for c in result.claims),
        fit=dataclasses.replace(result.fit, reason=HOSTILE),
        network=dataclasses.replace(result.network, reason=HOSTILE),
        predictions=tuple(dataclasses.replace(p, how=HOSTILE) for p in result.predictions),
        notes=(HOSTILE,),
        report=f"/tmp/{HOSTILE}.html",
    )


ALL = {
    "joined": joined,
    "described": described,
    "unstudied": unstudied,
    "unreached": unreached,
    "alone": alone,
    "coupled": coupled,
    "nothing hidden": nothing_hidden,
    "hostile": hostile,
}
