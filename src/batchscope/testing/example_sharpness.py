"""Which sharpness can a test begin with? Numbers that are drawn from closed forms; nothing was measured.

    curvature  4 sqrt(B / 32): largest eigenvalue; trace and boxes follow it
    distance   5 (B / 32)^-0.2 from initial weights of norm 10
    loss       0.2 + 0.02 log2(B / 32), and 0.1 more on validation data

Each is multiplied by e^(5 % times a normal number), the same ones for the same batch size, policy and seed.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence

from batchscope.records import (
    BoxSharpness,
    Continued,
    Density,
    LayerDistance,
    Line,
    Measured,
    PointSharpness,
    SharpnessData,
    SharpnessQuestion,
    Slice,
)
from batchscope.testing.examples import CONDITIONS

BATCH_SIZES, POLICIES, SEEDS = (32, 512), ("held", "tuned"), (0, 1, 2)
NOISE = 0.05
EXAMPLES = 1000
OWN_LEARNING_RATE = 0.1
PLACES = (-1.0, 0.0, 0.5, 1.0, 2.0)


def label_of(batch_size: int, policy: str, seed: int) -> str:
    """What the point of a trial is called."""
    return f"batch size {batch_size}, {policy}, seed {seed}"


def make_point(batch_size: int = 32, policy: str = "held", seed: int = 0, **changes: object) -> PointSharpness:
    """Everything at the weights of one trial; `changes` makes it another."""
    rng = random.Random(f"{batch_size} {policy} {seed}")

    def drawn(value: float) -> float:
        return value * math.exp(NOISE * rng.gauss(0.0, 1.0))

    ratio = batch_size / 32
    curvature, distance = drawn(4 * math.sqrt(ratio)), drawn(5 * ratio**-0.2)
    loss = drawn(0.2 + 0.02 * math.log2(ratio))
    boxes = [BoxSharpness("full", 1e-3, 10 * curvature, 10, 13, False, EXAMPLES)]
    boxes += [BoxSharpness("full", 5e-4, 4 * curvature, 10, 12, False, EXAMPLES)]
    boxes += [BoxSharpness("subspace", 1e-3, curvature, 7, 9, True, EXAMPLES)]
    few = [BoxSharpness("full", 1e-3, 11 * curvature, 10, 13, False, 256)]
    few += [BoxSharpness("full", 1e-3, 15 * curvature, 31, 40, True, 256)]
    point = PointSharpness(
        label=label_of(batch_size, policy, seed),
        batch_size=batch_size,
        policy=policy,
        seed=seed,
        learning_rate=OWN_LEARNING_RATE * (ratio if policy == "tuned" else 1.0),
        trial_key=f"{batch_size:08x}{policy.encode().hex()[:7]}{seed:x}",
        step=16 * 512 // batch_size,
        examples=16 * 512,
        loss=loss,
        metrics={"loss": loss, "accuracy": 1 - loss / 4},
        validation={"loss": loss + 0.1, "accuracy": 1 - loss / 3},
        test=None if seed else {"loss": loss + 0.11, "accuracy": 1 - loss / 2.9},
        gradient_norm=drawn(0.01),
        boxes=tuple(boxes),
        subset_boxes=tuple(few),
        largest_eigenvalue=around(curvature, "Lanczos, residual norm"),
        smallest_eigenvalue=around(-0.1 * curvature, "Lanczos, residual norm"),
        trace=around(20 * curvature, "t on 30 probes"),
        density=Density(((-0.1, 0.1 + 0.2, curvature), (0.0, 1 / 3)), ((0.1, 0.7, 0.2), (0.5, 0.5))),
        adaptive_sharpness=drawn(0.5),
        adaptive_eigenvalue=around(drawn(2.0), "Lanczos, residual norm"),
        batch_sharpness=around(2 * curvature, f"t on 64 batches of {batch_size}"),
        distance=distance,
        initial_norm=10.0,
        layers=(LayerDistance("0.weight", 0.8 * distance, 9.0, 9.5), LayerDistance("0.bias", 0.6 * distance, 0.0, 1.5)),
        seconds=1.25,
    )
    return dataclasses.replace(point, **changes)


def around(estimate: float, interval: str) -> Measured:
    """A value with 5 % on either side."""
    half = 0.05 * abs(estimate)
    return Measured(estimate, estimate - half, estimate + half, 30, interval=interval)


def make_file_point(label: str = "best.pt") -> PointSharpness:
    """Weights that came as a file: little is known of them, and not all could be measured."""
    return PointSharpness(
        label=label,
        loss=0.25,
        metrics={"loss": 0.25},
        largest_eigenvalue=Measured(None, 3.5, None, 1, 1, "none: 60 steps did not converge"),
        adaptive_sharpness=math.nan,  # where the loss is not finite near by
        notes=("no trial's initial weights are known: no distance",),
    )


def make_lines(one: str, other: str) -> tuple[Line, ...]:
    """Between two points, and around the first; far out the loss overflows."""

    def parabola(scale: float) -> tuple[float, ...]:
        return tuple(0.2 + scale * (a * (1 - a)) ** 2 for a in PLACES[:-1])

    def line(kind: str, labels: tuple[str, ...], scale: float) -> Line:
        train = {"loss": (*parabola(scale), math.inf), "accuracy": (0.1, 0.9, 0.6, 0.95, math.nan)}
        return Line(kind, labels, PLACES, train, {"loss": (*parabola(1.2 * scale), math.inf)})

    return line("straight", (one, other), 8.0), line("curved", (one, other), 0.5), line("slice", (one,), 4.0)


def make_sharpness_data(
    batch_sizes: Sequence[int] = BATCH_SIZES,
    policies: Sequence[str] = POLICIES,
    seeds: Sequence[int] = SEEDS,
    **changes: object,
) -> SharpnessData:
    """One `sharpness` of the examples' task: of every trial, and of a file; `changes` makes it another."""
    points = [make_point(b, policy, seed) for b in batch_sizes for policy in policies for seed in seeds]
    points.append(make_file_point())
    one, other = points[0].label, points[-2 if len(points) > 1 else -1].label
    warm = Continued("warm start", 512, 32, 2.0, 0, make_point(512, label="warm start"), reached_loss=0.31, share=0.5)
    noisy = Continued("noise injected", 512, 32, 0.0, 0, make_point(512, label="noise injected"), reached_loss=math.inf)
    data = SharpnessData(
        task="a task",
        fingerprint="f" * 16,
        question=SharpnessQuestion(None, tuple(p.label for p in points), causes=True, seed=3),
        conditions=CONDITIONS,
        points=tuple(points),
        parameters=7850,
        examples=EXAMPLES,
        chunk=256,
        normed=("1",),
        lines=make_lines(one, other),
        slices=(Slice(one, (-1.0, 0.0, 1.0), ((math.inf, 0.9, math.nan), (0.8, 0.2, 0.7), (1.5, 0.6, 2.5))),),
        continued=(warm, noisy),
        sample_sizes=((250, Measured(4.5, 4.4, 4.6, 1)), (1000, Measured(4.0, 4.0, 4.0, 1))),
        settings={"probes": 30.0, "radius": 0.5},
        notes=("the points were made up",),
        seconds=12.25,
        measured_at="2026-03-01T12:00:00.000001+00:00",
    )
    return dataclasses.replace(data, **changes)


def make_small_sharpness(**changes: object) -> SharpnessData:
    """Of one point, without anything beside it; every number is finite, so that equal ones are equal."""
    data = dataclasses.replace(make_sharpness_data(), points=(make_point(),), lines=(), slices=(), continued=())
    return dataclasses.replace(data, **changes)
