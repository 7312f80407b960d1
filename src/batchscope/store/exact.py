"""How does a record become text and numbers in a database, and come back with the same bits?

Three things that SQLite would change on the way:

    nan          becomes NULL in every column; json writes NaN, which is not JSON
    inf, -inf    json writes Infinity, which is not JSON either: SQLite's json_extract refuses the whole value
    -0.0         comes back as 0.0 from a column declared REAL

So nan and inf travel as the texts "nan", "-nan", "inf", "-inf", which Python's `float` reads. Every other float travels
as itself: in a column without a declared type its 8 bytes, in JSON the shortest decimal that reads back to the same
bits (`repr`). A nan keeps its sign, so both default ones (x86's negative, ARM's positive) survive; no other payload.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from batchscope.records import Evaluation, TrialResult, from_plain, to_plain

_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
EvaluationRow = tuple[int, int, str, str, float | str, float | str]  # the columns of the table `evaluations`


def number(value: float) -> float | str:
    """A float as SQLite can hold it: itself, or a text where it is not finite."""
    if math.isnan(value):
        return "-nan" if math.copysign(1.0, value) < 0 else "nan"
    return repr(float(value)) if math.isinf(value) else float(value)


def to_text(record: Any) -> str:
    """A record (or dict, list, tuple of them) as strictly valid JSON."""
    return _json(_valid(to_plain(record)))


def from_text(kind: Any, text: str) -> Any:
    """The inverse of `to_text`: a record of class `kind`."""
    return from_plain(kind, json.loads(text))


def _valid(value: Any) -> Any:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, dict):
        return {k: _valid(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_valid(v) for v in value]
    return value


def trace_rows(result: TrialResult) -> list[EvaluationRow]:
    """A trial's trace as rows: (step, examples, train JSON, validation JSON, distance, update norm)."""
    return [
        (
            int(e.step),
            int(e.examples),
            _json({k: number(v) for k, v in e.train.items()}),
            _json({k: number(v) for k, v in e.validation.items()}),
            number(e.distance),
            number(e.update_norm),
        )
        for e in result.trace
    ]


def trace_from(rows: list[EvaluationRow]) -> tuple[Evaluation, ...]:
    """The inverse of `trace_rows`. One JSON document for the whole trace: a study has tens of thousands of rows."""
    document = "[" + ",".join([f"{row[2]},{row[3]}" for row in rows]) + "]"
    metrics = json.loads(document)
    if ':"' in document:  # some value is a text: nan or inf
        metrics = [{k: float(v) for k, v in values.items()} for values in metrics]
    return tuple(
        Evaluation(row[0], row[1], train, validation, float(row[4]), float(row[5]))
        for row, train, validation in zip(rows, metrics[::2], metrics[1::2], strict=True)
    )


def result_text(result: TrialResult) -> str:
    """A result without its trace, which has its own table."""
    plain = {k: v for k, v in vars(result).items() if k != "trace"}
    return to_text(plain)


def result_from(text: str, rows: list[EvaluationRow]) -> TrialResult:
    """The inverse of `result_text` and `trace_rows`."""
    return dataclasses.replace(from_plain(TrialResult, json.loads(text) | {"trace": ()}), trace=trace_from(rows))


def same_result(one: TrialResult, other: TrialResult) -> bool:
    """Whether two results say the same, bit for bit, their clock readings apart (nan equals nan here)."""
    return _without_clock(one) == _without_clock(other)


def _without_clock(result: TrialResult) -> str:
    return to_text({k: v for k, v in vars(result).items() if k != "seconds"})


def clean(text: str) -> str:
    """Text that UTF-8 can hold: a file name with undecodable bytes must not cost a measurement."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
