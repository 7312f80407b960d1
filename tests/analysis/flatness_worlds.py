"""What would `sharpness` have measured if every truth were known? Closed forms of the batch size B and learning rate.

    largest eigenvalue   2 sqrt(B) held, 1.6 / rate tuned         trace   40 times that
    boxes                30 (eps / 0.001) B held, 200 tuned, a tenth in a subspace; adaptive measures B^0.1
    distance             9 B^-0.25 rate^0.5 at the measured weights, from weights of norm 10

Each is multiplied by e^(SIGMA z), z shared by the batch sizes of a seed but for a tenth; nothing here is measured.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from batchscope.records import (
    BoxSharpness,
    Conditions,
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

SIGMA, OWN_RATE = 0.1, 0.05
SAMPLED = ((128, 9.0), (256, 7.5), (512, 6.6), (1024, 6.1))  # examples, largest eigenvalue
RESIDUAL = "residual norm"
EPSILONS = (1e-3, 5e-4)
PLACES = tuple(-1 + 3 * k / 24 for k in range(25))
LAYERS = ("features.0.weight", "features.0.bias", "classifier.weight")
CONDITIONS = Conditions(device_name="made up", versions={"torch": "0", "python": "3", "batchscope": "0"})


def eigenvalue(size: int, rate: float, policy: str) -> float:
    """The true largest eigenvalue."""
    return 2 * math.sqrt(size) if policy == "held" else 1.6 / rate


def tuned_rate(size: int) -> float:
    """As the made-up study has it."""
    return OWN_RATE * 2 * size / (size + 40.0)


def measured(value: float, relative: float, text: str) -> Measured:
    """A value with its estimator's interval."""
    return Measured(value, value * (1 - relative), value * (1 + relative), 1, 0, text)


def point(size: int, policy: str, seed: int, sigma: float = SIGMA, metrics: bool = True) -> PointSharpness:
    """One trial's weights."""
    rng = np.random.default_rng([size, seed, len(policy)])
    shared = np.random.default_rng([seed, 7]).standard_normal()
    z = [math.exp(sigma * (shared + 0.1 * rng.standard_normal())) for _ in range(8)]
    rate = OWN_RATE if policy == "held" else tuned_rate(size)
    top = eigenvalue(size, rate, policy) * z[0]
    box = (30.0 * size if policy == "held" else 200.0) * z[1]
    boxes = tuple(
        BoxSharpness(space, eps, box * eps / 1e-3 * share, 10, 14, False, 1024)
        for space, share in (("full", 1.0), ("subspace", 0.1))
        for eps in EPSILONS
    )
    few = (
        BoxSharpness("full", 1e-3, box, 10, 14, False, 256),
        BoxSharpness("full", 1e-3, 2 * box, 80, 95, True, 256),
    )
    starts = [np.sort(np.append(0.02 * top * rng.standard_normal(12), [top * 0.5, top])) for _ in range(4)]
    moved = 9 * size**-0.25 * math.sqrt(rate) * z[2]
    loss = 0.08 * size**0.1 * z[3] if policy == "held" else 0.1 * z[3]
    text = "residual norm after 21 Lanczos products: an eigenvalue lies within"
    return PointSharpness(
        label=f"batch size {size}, {policy}, seed {seed}",
        batch_size=size,
        policy=policy,
        seed=seed,
        learning_rate=rate,
        trial_key=f"{size}{policy}{seed}",
        step=20_000 // size,
        examples=20_000,
        loss=loss,
        metrics={"loss": loss, "accuracy": math.exp(-loss)} if metrics else {},
        validation={"loss": 3 * loss, "accuracy": math.exp(-3 * loss)} if metrics else {},
        test={"loss": 3.1 * loss, "accuracy": math.exp(-3.1 * loss)} if metrics else None,
        gradient_norm=0.01 * z[4],
        boxes=boxes,
        subset_boxes=few if seed == 0 else (),
        largest_eigenvalue=measured(top, 1e-4, text),
        smallest_eigenvalue=Measured(-0.1 * top, -0.101 * top, -0.099 * top, 1, 0, text),
        trace=measured(40 * top * z[5], 0.05, "t on Rademacher probes, 5 for each of 4 chunks, 16 df"),
        density=Density(tuple(tuple(map(float, s)) for s in starts), ((1 / 14,) * 14,) * 4),
        adaptive_sharpness=0.3 * size**0.1 * z[6],
        adaptive_eigenvalue=measured(5 * size**0.1 * z[7], 1e-4, text),
        batch_sharpness=measured(1.9 / rate * z[4], 0.1, f"t on 64 batches of {size}"),
        distance=moved,
        initial_norm=10.0,
        layers=tuple(LayerDistance(n, moved * (k + 1) / 4, float(k != 1) * 3.0, 4.0) for k, n in enumerate(LAYERS)),
    )


def line(kind: str, labels: tuple[str, ...], places: tuple[float, ...] = PLACES, sharp: float = 4.0) -> Line:
    """A bowl around 0, and around 1 where there are two minima."""
    height = [min((a * sharp / 4) ** 2, ((a - 1) * sharp) ** 2) if len(labels) > 1 else sharp * a * a for a in places]
    train = tuple(0.05 + h for h in height)
    valid = tuple(0.15 + 1.1 * h for h in height)
    return Line(
        kind,
        labels,
        places,
        {"loss": train, "accuracy": tuple(math.exp(-v) for v in train)},
        {"loss": valid, "accuracy": tuple(math.exp(-v) for v in valid)},
    )


def pictures(sizes: tuple[int, ...], policy: str) -> tuple[tuple[Line, ...], tuple[Slice, ...]]:
    """Both lines between the smallest and the largest batch size; slices through all."""
    ends = (f"batch size {sizes[0]}, {policy}, seed 0", f"batch size {sizes[-1]}, {policy}, seed 0")
    around = tuple(-1 + k / 10 for k in range(21))
    slices = [line("slice", (f"batch size {b}, {policy}, seed 0",), around, 0.5 * math.sqrt(b)) for b in sizes]
    grid = tuple(-1 + k / 5 for k in range(11))
    heat = [
        Slice(label, grid, tuple(tuple(0.05 + s * (a * a + 2 * b * b + a * b) for b in grid) for a in grid))
        for label, s in zip(ends, (1.0, 6.0), strict=True)
    ]
    return (line("straight", ends), line("curved", ends), *slices), tuple(heat)


SWITCH, LOST = 0.5, 0.8  # what a whole switch from small to large makes of curvature and boxes, and of the lowest loss
NOISY = 0.7  # what injected noise makes of curvature and boxes
OWN = 0.02  # sd of what a continued run has of its own


def continued(small: int, large: int, policy: str = "held") -> tuple[Continued, ...]:
    """Warm starts both ways and injected noise, two seeds each: SWITCH^share and LOST^share, or back."""
    runs = []
    for seed in (0, 1):
        for start, size, sign in ((small, large, 1), (large, small, -1)):
            for share in (0.25, 0.5, 1.0):
                p, lost = switched(point(size, policy, seed), SWITCH ** (sign * share)), LOST ** (sign * share)
                epochs, reached = share * (8 + seed), lost * p.validation["loss"]
                runs.append(
                    Continued("warm start", size, start, epochs, seed, p, reached, share, 8 * (1 - share) + 0.5)
                )
        p = switched(point(large, policy, seed), NOISY)
        runs.append(Continued("noise injected", large, small, 0.0, seed, p, p.validation["loss"], 0.0, 9.5))
    return tuple(runs)


def switched(p: PointSharpness, factor: float) -> PointSharpness:
    """The point with its boxes and curvature times a factor, and a little noise of its own."""
    rng = np.random.default_rng([round(1000 * factor), p.batch_size or 0, p.seed or 0])
    z = [factor * math.exp(OWN * rng.standard_normal()) for _ in range(4)]

    def times(m: Measured | None, by: float) -> Measured | None:
        if m is None or m.estimate is None or m.low is None or m.high is None:
            return m
        return dataclasses.replace(m, estimate=by * m.estimate, low=by * m.low, high=by * m.high)

    return dataclasses.replace(
        p,
        boxes=tuple(dataclasses.replace(b, percent=z[0] * b.percent) for b in p.boxes),
        largest_eigenvalue=times(p.largest_eigenvalue, z[1]),
        trace=times(p.trace, z[2]),
        adaptive_eigenvalue=times(p.adaptive_eigenvalue, z[3]),
    )


def made_up_sharpness(
    sizes: tuple[int, ...] = (8, 16, 32, 64),
    policies: tuple[str, ...] = ("held", "tuned"),
    seeds: int = 3,
    sigma: float = SIGMA,
    drawn: bool = True,
    causes: bool = False,
) -> SharpnessData:
    """Everything that one `sharpness` of a study would have stored."""
    points = tuple(point(b, policy, s, sigma) for policy in policies for b in sizes for s in range(seeds))
    lines, slices = pictures(sizes, policies[0]) if drawn else ((), ())
    return SharpnessData(
        task="made-up",
        fingerprint="0123456789abcdef",
        question=SharpnessQuestion("abc123", tuple(p.label for p in points), pictures=drawn, causes=causes),
        conditions=CONDITIONS,
        points=points,
        parameters=2410,
        examples=1024,
        chunk=256,
        lines=lines,
        slices=slices,
        continued=continued(sizes[0], sizes[-1], policies[0]) if causes else (),
        sample_sizes=tuple((n, measured(v, 0.01, RESIDUAL)) for n, v in SAMPLED) if drawn else (),
        settings={"probes": 5.0, "radius": 0.5, "draws": 64.0},
        study_id="abc123",
        seconds=12.0,
        measured_at="2026-01-02T03:04:05",
    )


def made_up_files() -> SharpnessData:
    """Two checkpoints that came as files: no batch size, no seed, no initial weights."""
    whole = made_up_sharpness(drawn=False)
    points = tuple(
        PointSharpness(
            label=label,
            loss=p.loss,
            metrics=p.metrics,
            gradient_norm=p.gradient_norm,
            boxes=p.boxes,
            largest_eigenvalue=p.largest_eigenvalue,
            trace=p.trace,
            notes=("the learning rate is not known",),
        )
        for label, p in (("small.pt", whole.points[0]), ("large.pt", whole.points[9]))
    )
    question = SharpnessQuestion(None, ("small.pt", "large.pt"))
    lines = (line("straight", question.labels),)
    known = (points, 2410, 1024, 256, ("bn1", "bn2"))
    return SharpnessData("made-up", "0" * 16, question, CONDITIONS, *known, lines=lines)
