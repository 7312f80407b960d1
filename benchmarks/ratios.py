"""How much slower is one thing than another? Medians of paired ratios, with their intervals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

Ratio = tuple[float, float, float]  # median, low, high


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Median of paired ratios with the sign test's 95 % interval (order statistics; Conover 1999)."""
    pairs = sorted(a / b for a, b in zip(above, below, strict=False))
    n = len(pairs)
    skip = max(0, int((n - 1.96 * n**0.5) / 2))
    return statistics.median(pairs), pairs[skip], pairs[n - 1 - skip]


def shown(value: Ratio) -> str:
    """A ratio and its interval in 18 characters."""
    return f"{value[0]:.2f} [{value[1]:.2f} {value[2]:.2f}]"
