"""What did the measured steps show, step by step and layer by layer? Kept on the device until somebody asks.

Reading a number from a GPU waits for it, so norms stay where they are and are fetched `TOGETHER` measurements at a
time. What is kept for good are two numbers per parameter and measurement, in double precision on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from batchscope.analysis.noise_scale import noise_scale
from batchscope.measure.gradients import Reading
from batchscope.records import GradientNorms, NoiseReport, NoiseScale

TOGETHER = 64
REMEMBERED = 0.05  # of |G|^2: from there on a reader is told
MOST = 8192  # measurements that are kept: of 1,000 tensors, 130 MB
LATEST = 4  # the latest 1/4 of the measurements are reported apart


Which = Callable[[GradientNorms], bool]


def always(norms: GradientNorms) -> bool:
    """All measurements."""
    return True


@dataclass(frozen=True)
class _Waiting:
    """One measurement, still on the device."""

    step: int
    examples: int
    reading: Reading
    loss: torch.Tensor | float | None
    learning_rate: float | None
    scale: float
    steps: int | None


@dataclass(frozen=True)
class _Kept:
    """One measurement on the host: everything but its sums, and squared norms per parameter (2, P) and by metric."""

    frame: GradientNorms
    squares: np.ndarray
    proxies: dict[str, tuple[float, float]]

    def norms(self, parts_squared: float, mean_squared: float) -> GradientNorms:
        return replace(self.frame, parts_squared=parts_squared, mean_squared=mean_squared)


class Readings:
    """All measurements of a run, in order."""

    def __init__(self, data_size: int | None = None) -> None:
        self.data_size, self.count, self.discarded, self.unsized = data_size, 0, 0, 0
        self._waiting: list[_Waiting] = []
        self._kept: list[_Kept] = []

    def add(
        self,
        step: int,
        examples: int,
        reading: Reading,
        loss: torch.Tensor | float | None,
        learning_rate: float | None,
        scale: float = 1.0,
        steps: int | None = None,
    ) -> None:
        """One measured step, as in `GradientNorms`; `scale` is the loss's scale that gradients still have."""
        self.count += 1
        kept_loss = loss.detach().clone() if isinstance(loss, torch.Tensor) else loss  # it may be overwritten
        self._waiting.append(_Waiting(step, examples, reading, kept_loss, learning_rate, scale, steps))
        if len(self._waiting) == TOGETHER:
            self.fetch()

    def fetch(self) -> None:
        """Bring what waits on the device to the host; drop what is not finite (overflowed steps), and count it."""
        for seen in self._waiting:
            reading, unit = seen.reading, seen.scale**2
            squares = torch.stack([reading.parts_squared, reading.mean_squared]).double().cpu().numpy() / unit
            sizes = float(reading.part_size), float(reading.batch_size)
            told = all(map(math.isfinite, sizes))
            if not np.isfinite(squares).all() or not told:
                untold = not told and bool(np.isfinite(squares[1]).all())  # else an overflow
                self.discarded, self.unsized = self.discarded + 1, self.unsized + untold
                continue
            frame = GradientNorms(
                step=seen.step,
                examples=seen.examples,
                parts=reading.parts,
                part_size=sizes[0],
                batch_size=sizes[1],
                mean_squared=0.0,
                parts_squared=0.0,
                steps=seen.steps,
                loss=None if seen.loss is None else float(seen.loss),
                learning_rate=seen.learning_rate,
            )
            proxies = {k: (float(a) / unit, float(b) / unit) for k, (a, b) in reading.proxies.items()}
            self._kept.append(_Kept(frame, squares, proxies))
        self._waiting = []

    @property
    def full(self) -> bool:
        """Whether there are so many that a long run should measure half as often from now on."""
        return len(self._kept) >= MOST

    def thin(self) -> None:
        """Keep every second measurement: evenly spread still, where the next ones are twice as far apart."""
        self._kept = self._kept[::2]

    def totals(self) -> list[GradientNorms]:
        """Over all parameters."""
        self.fetch()
        return [kept.norms(*map(float, kept.squares.sum(1))) for kept in self._kept]

    def of(self, indices: Sequence[int]) -> list[GradientNorms]:
        """Over some of the parameters."""
        self.fetch()
        chosen = list(indices)
        return [kept.norms(*map(float, kept.squares[:, chosen].sum(1))) for kept in self._kept]

    def of_proxy(self, metric: str) -> list[GradientNorms]:
        """In another metric, where it was measured."""
        self.fetch()
        return [kept.norms(*kept.proxies[metric]) for kept in self._kept if metric in kept.proxies]

    def scale(self, norms: Sequence[GradientNorms], precision: float, metric: str = "euclidean") -> NoiseScale:
        return noise_scale(
            norms, data_size=self.data_size, precision=precision, metric=metric, discarded=self.discarded
        )

    def layers(self, names: Sequence[str], which: Which = always, precision: float = 0.2) -> dict[str, NoiseScale]:
        """By module: the parameters whose names share all but their last part; of some of the measurements."""
        modules = list(dict.fromkeys(_module(name) for name in names))
        if len(modules) < 2:
            return {}
        members = {module: [i for i, name in enumerate(names) if _module(name) == module] for module in modules}
        return {m: self.scale(list(filter(which, self.of(inside))), precision) for m, inside in members.items()}

    def proxies(self, which: Which = always, precision: float = 0.2) -> dict[str, NoiseScale]:
        """By metric."""
        self.fetch()
        metrics = dict.fromkeys(metric for kept in self._kept for metric in kept.proxies)
        return {m: self.scale(list(filter(which, self.of_proxy(m))), precision, m) for m in metrics}

    def report(
        self,
        *,
        names: Sequence[str],
        groups: Mapping[str, Sequence[str]],
        source: str,
        every: int,
        overhead: float | None,
        steps: int,
        precision: float,
        last: int | None,
        notes: tuple[str, ...],
    ) -> NoiseReport:
        """Everything, as a record; of the last so many measurements."""
        self.fetch()
        totals = self.totals()
        some = totals[-last:] if last else totals
        index = {name: i for i, name in enumerate(names)}
        whole = self.scale(some, precision)
        first = some[0].step if some else 0

        def late(norms: GradientNorms) -> bool:
            return norms.step >= first

        members = {group: [index[n] for n in inside if n in index] for group, inside in groups.items()}
        return NoiseReport(
            scale=whole,
            latest=self.scale(some[-max(1, len(some) // LATEST) :], precision),
            layers=self.layers(names, late, precision),
            groups={n: self.scale(list(filter(late, self.of(at))), precision) for n, at in members.items() if at},
            proxies=self.proxies(late, precision),
            source=source,
            parts=some[-1].parts if some else 0,
            batch_size=some[-1].batch_size if some else 0.0,
            every=every,
            overhead=overhead,
            steps=steps,
            measurements=tuple(some),
            notes=(*notes, *self._untold(), *_remembered(whole, self.data_size)),
        )

    def _untold(self) -> list[str]:
        if not self.unsized:
            return []
        return [
            f"{self.unsized} measured steps were left out: processes' micro-batches were of unlike or unknown size; "
            "give `step` their `counts`, or accumulate under `no_sync`."
        ]


def _module(name: str) -> str:
    return name.rpartition(".")[0] or name


def _remembered(scale: NoiseScale, data_size: int | None) -> list[str]:
    """What the loop's own batches make of |G|^2: they are drawn from what the weights have not just learnt from.

    On `digits` and `noisy-quadratic` |G|^2 was too large by 1 to 2 B_simple / N (`follow.py`).
    """
    b = scale.b_simple.estimate or scale.b_simple.low
    if data_size is None or b is None or 2 * b / data_size < REMEMBERED:
        return []
    return [
        "Batches of an epoch are drawn without replacement, which lengthens their mean gradient: |G|^2 may be too "
        f"large by some {min(1.0, 2 * b / data_size):.0%}, B_simple too small; `batchscope noise` draws batches apart."
    ]
