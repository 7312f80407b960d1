"""Made-up noise runs, shared by the report's tests: what a noise run could say, drawn from closed forms.

    loss(e)    2.3 (1 + e / 9,000)^-0.7 after e examples
    |G|^2(e)   0.8 (loss / 2.3)^4
    tr(Sigma)  48 (loss / 2.3)^1.6, so that B_simple grows as the loss falls

Nothing here is a measurement.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from batchscope.records import (
    Conditions,
    Deviations,
    Evaluation,
    Goal,
    GradientNorms,
    Measured,
    NoiseAgainstSweep,
    NoisePoint,
    NoiseResult,
    NoiseRun,
    NoiseScale,
    Principle,
    PrinciplePoint,
)

HOSTILE = "</script><script>alert(1)</script>"
BATCH, EVERY, STEPS, TRAIN_SIZE, WINDOWS = 64, 4, 1536, 54_000, 12
CROSSED = 80_000.0
CONDITIONS = Conditions(
    device_name="Imaginary Processor 9",
    threads=2,
    platform="Linux x86_64",
    versions={"torch": "2.13.0", "python": "3.11.7", "batchscope": "0.3.0"},
)
FIELLER = "Fieller, 95 %, 32 blocks of 12 steps, 24 df"
NO_INTERVAL = "none: one draw has no spread"


def loss_at(examples: float) -> float:
    """Training loss."""
    return 2.3 * (1 + examples / 9000) ** -0.7


def squared_gradient_at(examples: float) -> float:
    """|G|^2."""
    return 0.8 * (loss_at(examples) / 2.3) ** 4


def trace_at(examples: float) -> float:
    """tr(Sigma) of one example."""
    return 48 * (loss_at(examples) / 2.3) ** 1.6


def around(value: float, factor: float = 1.2, n: int = 32, interval: str = FIELLER) -> Measured:
    """A value with an interval of a factor either way."""
    return Measured(value, value / factor, value * factor, n, 0, interval)


def scale(trace: float, gradient: float, factor: float = 1.2, n: int = 32, **changes: Any) -> NoiseScale:
    """A resolved noise scale."""
    made = NoiseScale(
        outcome="resolved",
        b_simple=around(trace / gradient, factor, n),
        trace=around(trace, 1.05, n),
        squared_gradient=around(gradient, factor, n),
        measurements=n,
        effective_measurements=0.61 * n,
        negative_share=0.21,
        needed=40,
    )
    return dataclasses.replace(made, **changes)


def bound(trace: float, gradient: float, n: int = 32, low: float | None = None) -> NoiseScale:
    """|G|^2 is not distinguishable from 0: B_simple is at least `low`; its estimate of |G|^2 is -gradient."""
    least = trace / gradient if low is None else low
    return scale(
        trace,
        gradient,
        n=n,
        outcome="at_least",
        b_simple=Measured(None, least, None, n, n, FIELLER),
        squared_gradient=Measured(-gradient, -3 * gradient, gradient, n, 0, "t on 32 blocks, 24 df"),
        negative_share=0.55,
        needed=None,
        reason="|G|² is not distinguishable from 0",
    )


def too_few(n: int = 3) -> NoiseScale:
    """No interval."""
    nothing = Measured(None, None, None, n, 0, "none: too few measurements")
    return NoiseScale(
        outcome="not_enough",
        b_simple=nothing,
        trace=nothing,
        squared_gradient=nothing,
        measurements=n,
        effective_measurements=float(n),
        negative_share=0.0,
        reason=f"{n} measurements are fewer than 8; measure more steps (every=1) or follow a longer run",
    )


def windows() -> tuple[NoisePoint, ...]:
    """Twelve windows, equally many steps each."""
    per = STEPS // WINDOWS
    middles = [BATCH * (k + 0.5) * per for k in range(WINDOWS)]
    return tuple(
        NoisePoint(
            k * per, (k + 1) * per - EVERY, e, loss_at(e), scale(trace_at(e), squared_gradient_at(e), 1.1 + 0.08 * k)
        )
        for k, e in enumerate(middles)
    )


def deviation(b_simple: float, batch_size: int, data_size: int = TRAIN_SIZE) -> float:
    """(B_simple / B) (N - B) / (N - 1)."""
    return b_simple / batch_size * (data_size - batch_size) / (data_size - 1)


def principle(step: int, made: NoiseScale | None = None) -> Principle:
    """One checkpoint, from B = 1 to the whole data set; the largest proper batch was drawn once."""
    e = step * BATCH
    truth = trace_at(e) / squared_gradient_at(e)
    made = made or scale(trace_at(e), squared_gradient_at(e), 1.15)
    points = []
    for b in (*(4**k for k in range(8)), 32_768, TRAIN_SIZE):
        value = deviation(truth * (1 + 0.05 * math.sin(b)), b)
        one = b in (32_768, TRAIN_SIZE)
        ends = (made.b_simple.estimate, made.b_simple.low, made.b_simple.high)
        estimate, low, high = (None if v is None else deviation(v, b) for v in ends)
        points.append(
            PrinciplePoint(
                b,
                Measured(value, None, None, 1, 0, NO_INTERVAL)
                if one
                else around(value, 1.12, 16, "t on 16 draws, 15 df"),
                Measured(estimate, low, high, made.measurements, 0, FIELLER),
            )
        )
    return Principle(step, e, loss_at(e), squared_gradient_at(e), made, tuple(points))


def run(**changes: Any) -> NoiseRun:
    """What was measured; the norms themselves are not drawn, so a few stand for all."""
    norms = tuple(
        GradientNorms(s, s * BATCH, BATCH, 1.0, float(BATCH), 0.9, 49.0, loss_at(s * BATCH), 0.1)
        for s in range(0, STEPS, EVERY)
    )
    trace = tuple(
        Evaluation(s, s * BATCH, {"loss": loss_at(s * BATCH)}, {"loss": loss_at(s * BATCH) + 0.02}, 1.0, 0.1)
        for s in range(0, STEPS + 1, 128)
    )
    made = NoiseRun(
        task="fashion-mnist-mlp",
        fingerprint="0123456789abcdef",
        train_size=TRAIN_SIZE,
        goal=Goal("loss", at_most=0.36),
        batch_size=BATCH,
        learning_rate=0.1,
        conditions=CONDITIONS,
        budget=1.0,
        every=EVERY,
        measurements=norms,
        trace=trace,
        outcome="reached",
        crossed_at=CROSSED,
        deviations=tuple(
            Deviations(s, s * BATCH, loss_at(s * BATCH), TRAIN_SIZE, squared_gradient_at(s * BATCH), (1,), ((1.0,),))
            for s in (0, 384, 1280)
        ),
        examples=345_678,
        steps=STEPS,
        seconds=12.3,
        measured_at="2026-03-01T12:00:00+00:00",
    )
    return dataclasses.replace(made, **changes)


def against(factor: Measured | None = None, critical: Measured | None = None) -> NoiseAgainstSweep:
    """A study that measured B_crit = 120 [95-150]."""
    crit = critical or Measured(120, 95, 150, 15, 0, "profile likelihood, 95 %")
    return NoiseAgainstSweep("abc123def456", crit, factor or Measured(2.3, 1.8, 2.9, 0, 0, "MOVER on the log scale"))


def noise(**changes: Any) -> NoiseResult:
    """A noise run's answer; `changes` are fields of the result."""
    data = run()
    layers = {
        "embedding": scale(1.2, 0.002, 1.4),
        "hidden.weight": scale(9.0, 0.05),
        "hidden.bias": scale(0.3, 0.001),
        "head.weight": bound(0.9, 0.0006),
    }
    proxies = {"adam": scale(820.0, 1.9, metric="adam"), "sign": scale(5400.0, 9.0, metric="sign")}
    made = NoiseResult(
        task=data.task,
        fingerprint=data.fingerprint,
        unit="examples",
        source="examples",
        every=EVERY,
        run_average=scale(14.0, 14.0 / 276, 1.3, 312),
        points=windows(),
        layers=layers,
        proxies=proxies,
        principles=(principle(0), principle(384), principle(1280)),
        against_sweep=against(),
        data=data,
        notes=("The learning rate was the task's own",),
    )
    return dataclasses.replace(made, **changes)


def unswept() -> NoiseResult:
    """No study of the task, no layers, no proxies, no checkpoints."""
    return noise(against_sweep=None, layers={}, proxies={}, principles=())


def mixed_windows() -> NoiseResult:
    """Windows whose |G|^2 is not told from 0, one of them certainly below 0, one with too few measurements."""
    points = list(windows())
    for k in (7, 9, 10):
        e = points[k].examples
        points[k] = dataclasses.replace(points[k], scale=bound(trace_at(e), squared_gradient_at(e)))
    below = Measured(-0.01, -0.02, -0.004, 32, 0, "t on 32 blocks, 24 df")
    points[9] = dataclasses.replace(points[9], scale=dataclasses.replace(points[9].scale, squared_gradient=below))
    points[11] = dataclasses.replace(points[11], scale=too_few(), loss=None)
    wide = dataclasses.replace(points[8].scale, b_simple=Measured(900.0, 200.0, 4e7, 32, 0, FIELLER))
    points[8] = dataclasses.replace(points[8], scale=wide)
    return noise(points=tuple(points))


def at_least() -> NoiseResult:
    """The run average is a bound, and so are the predictions of a checkpoint; the run never crossed."""
    made = bound(14.0, 0.007, 312)
    data = run(crossed_at=None, outcome="not_reached", discarded=3, every=1)
    points = tuple(dataclasses.replace(p, scale=bound(14.0, 0.007)) for p in windows())
    missed = Measured(None, 13.3, None, 0, 0, "MOVER on the log scale")
    return noise(
        run_average=made,
        points=points,
        principles=(principle(384, bound(14.0, 0.14)),),
        against_sweep=against(missed),
        data=data,
        every=1,
        source="micro-batches",
    )


def not_enough() -> NoiseResult:
    """Three measurements: nothing but the reason."""
    data = run(goal=None, crossed_at=None, outcome="not_reached", measurements=run().measurements[:3])
    return noise(run_average=too_few(), points=(), layers={}, proxies={}, principles=(), against_sweep=None, data=data)


def nothing_measured() -> NoiseResult:
    """No step was measured before the run diverged."""
    data = run(measurements=(), trace=(), crossed_at=None, outcome="diverged", deviations=())
    return dataclasses.replace(not_enough(), run_average=too_few(0), data=data)


def open_critical() -> NoiseResult:
    """B_crit is only a bound, so the factor has only an upper end."""
    crit = Measured(None, 4096.0, None, 9, 9, "none: no bend was seen")
    return noise(against_sweep=against(Measured(None, None, 0.08, 0, 0, "MOVER on the log scale"), crit))


def tokens() -> NoiseResult:
    """A noise scale in tokens: batch sizes in examples have no place on its axis."""
    return noise(unit="tokens", source="replicas", against_sweep=None)


def hostile() -> NoiseResult:
    """A noise run whose task, unit, source, layers, device and notes are named like an attack on the page."""
    conditions = dataclasses.replace(CONDITIONS, device_name=HOSTILE, platform=HOSTILE, versions={HOSTILE: HOSTILE})
    base = noise()
    named = dataclasses.replace(
        base.run_average, b_simple=dataclasses.replace(base.run_average.b_simple, interval=HOSTILE)
    )
    return dataclasses.replace(
        base,
        task=HOSTILE,
        unit=HOSTILE,
        source=HOSTILE,
        run_average=named,
        layers={HOSTILE: scale(9.0, 0.05)},
        proxies={HOSTILE: scale(9.0, 0.05)},
        against_sweep=dataclasses.replace(against(), study=HOSTILE),
        data=run(task=HOSTILE, conditions=conditions, goal=Goal(HOSTILE, at_most=0.36), measured_at=HOSTILE),
        notes=(f"a note on {HOSTILE}",),
        report=f"/tmp/{HOSTILE}.html",
    )


ALL = {
    "whole": noise,
    "unswept": unswept,
    "mixed windows": mixed_windows,
    "at least": at_least,
    "not enough": not_enough,
    "nothing measured": nothing_measured,
    "open critical": open_critical,
    "tokens": tokens,
    "hostile": hostile,
}
