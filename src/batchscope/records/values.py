"""What does a number look like, and how does a record become plain data? `Measured`, `Goal`, and both ways to JSON."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measured:
    """A value with its interval: what every number that Batchscope reports looks like in JSON.

    `estimate` is null where no seed gave the value; then `low` is the bound that was reached (the budget) and
    `high` is null. `n` counts seeds (or repeats), `censored` those of them that only gave a bound.
    `interval` names the method and its degrees of freedom, or says why there is none.
    """

    estimate: float | None
    low: float | None
    high: float | None
    n: int
    censored: int = 0
    interval: str = ""

    def to_json(self) -> dict[str, Any]:
        """A plain dict; non-finite numbers become null, which JSON can hold."""
        return {k: finite(v) for k, v in dataclasses.asdict(self).items()}


@dataclass(frozen=True)
class Goal:
    """A validation metric and the value that counts as trained.

    `Goal("loss", at_most=0.36)` or `Goal("accuracy", at_least=0.9)`: exactly one bound, a finite number.
    """

    metric: str = "loss"
    at_most: float | None = None
    at_least: float | None = None

    def __post_init__(self) -> None:
        bounds = [b for b in (self.at_most, self.at_least) if b is not None]
        if len(bounds) != 1 or not isinstance(bounds[0], (int, float)) or not math.isfinite(bounds[0]):
            raise ValueError(
                f"a Goal needs exactly one finite bound, got at_most={self.at_most!r}, at_least={self.at_least!r}: "
                'write Goal("loss", at_most=0.3) or Goal("accuracy", at_least=0.9)'
            )

    @property
    def value(self) -> float:
        """The bound itself."""
        (bound,) = (b for b in (self.at_most, self.at_least) if b is not None)  # __post_init__: exactly one
        return float(bound)

    @property
    def falls(self) -> bool:
        """Whether lower is better."""
        return self.at_most is not None

    def met(self, value: float) -> bool:
        """Whether one evaluation's value satisfies the goal (NaN never does)."""
        return value <= self.value if self.falls else value >= self.value

    def __str__(self) -> str:
        return f"validation {self.metric} {'<=' if self.falls else '>='} {self.value:.6g}"


def finite(value: Any) -> Any:
    """`value`, or None where it is a number that JSON cannot hold (nan, inf)."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_plain(record: Any) -> Any:
    """A record as dicts, lists and numbers, for JSON; exact: floats survive a round trip through `json`."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_plain(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, dict):
        return {str(k): to_plain(v) for k, v in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_plain(v) for v in record]
    return record


_hints = functools.cache(typing.get_type_hints)


def json_safe(value: Any) -> Any:
    """Plain data with every nan and inf as null."""
    if isinstance(value, dict):
        return {k: json_safe(v) for k, v in value.items()}
    if isinstance(value, list):
        return [json_safe(v) for v in value]
    return finite(value)


def from_plain(kind: Any, value: Any) -> Any:
    """The inverse of `to_plain`: builds `kind` (a record class or a type such as tuple[Evaluation, ...]) again."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if value is None or kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return from_plain(next(a for a in args if a is not type(None)), value)
    if origin is tuple:
        parts = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        return tuple(from_plain(a, v) for a, v in zip(parts, value, strict=True))
    if origin is dict:
        return {k: from_plain(args[1], v) for k, v in value.items()}
    if dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        known = {f.name for f in dataclasses.fields(kind)}  # fields that a newer version added are ignored
        return kind(**{k: from_plain(hints[k], v) for k, v in value.items() if k in known})
    return float(value) if kind is float else value
