"""What keeps the best batch size from being another one: memory, the knee, the noise, the data set?

At the best batch size two elasticities balance: seconds per step rise with d log t / d log B, and steps fall with
-d log S / d log B = B_crit / (B + B_crit). Past B_crit steps hardly fall any more, whatever the device could do: the
*noise* binds. Before it, steps would still fall, but a step takes proportionally longer: the *knee* binds. Either is
overruled by an end of what can be run: the data set, memory, or the smallest size that was timed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from batchscope.analysis.splits import largest_micro_batch
from batchscope.analysis.surface import Parameters
from batchscope.records import AdviceData, Candidate, ProfileResult

RISING = 0.9  # d log t / d log B below which a device still gains from a larger micro-batch (a guess)


def binding_limit(
    chosen: Candidate, candidates: Sequence[Candidate], profile: ProfileResult, data: AdviceData, law: Parameters
) -> tuple[str, str]:
    """(one of LIMITS, one sentence)."""
    size, sizes = chosen.batch_size, [c.batch_size for c in candidates]
    beyond = float(np.mean(law.log_b_crit < math.log(size)))  # probability that it lies past the critical batch size
    if data.question.objective == "examples":
        return "noise", "Every example counts alike, and a larger batch only wastes some: the gradient noise binds."
    if size == sizes[-1] and 2 * size > data.train_size:
        return "data set", f"It is the largest batch size that the {data.train_size:,} training examples allow."
    ceiling = largest_micro_batch(data.profile) if data.profile.memory is not None else data.train_size
    if size >= ceiling < data.train_size and _elasticity(candidates, min(size, ceiling)) < RISING:
        return "memory", (
            f"Micro-batches above {ceiling:,} do not fit into the memory limit, and steps at the ceiling still gain "
            "from more examples: with more memory a larger one would be faster."
        )
    if size == sizes[0]:
        return "smallest size", f"It is the smallest batch size that was timed, {size:,}; smaller ones may do as well."
    if beyond >= 0.5:
        return "noise", (
            f"With a probability of {_chance(beyond)} it lies past the critical batch size: larger ones hardly "
            "save steps."
        )
    return "knee", (
        f"It lies below the critical batch size (probability {_chance(1 - beyond)}), where larger batches still save "
        "steps, but their steps take longer by as much: the device is full."
    )


def _chance(share: float) -> str:
    """A share of draws as a probability: never 100 %."""
    return "more than 99 %" if share > 0.99 else f"{100 * share:.0f} %"


def _elasticity(candidates: Sequence[Candidate], size: int) -> float:
    """d log t / d log B just below `size`, between neighbouring candidates."""
    below = [c for c in candidates if c.batch_size < size]
    at = [c for c in candidates if c.batch_size <= size]
    if not below or not at:
        return 1.0
    one, other = below[-1], at[-1]
    t1, t2 = one.seconds_per_step.estimate, other.seconds_per_step.estimate
    return 1.0 if not t1 or not t2 else math.log(t2 / t1) / math.log(other.batch_size / one.batch_size)
