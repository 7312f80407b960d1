"""How was a noise run measured, in words? The run, its source, conditions, cost and methods, for page and terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from batchscope.records import Measured, NoiseResult, NoiseRun
from batchscope.report.noise_words import SOURCES, measures
from batchscope.report.profile_facts import conditions_of, engine_of, versions_of
from batchscope.report.words import count, goal_of, number, plain, seconds


def facts_of(result: NoiseResult) -> list[tuple[str, str]]:
    """Every fact with its name, in reading order."""
    data, c = result.data, result.data.conditions
    facts = [
        ("Run", run_of(data)),
        ("Source", f"{plain(result.source)}: {SOURCES.get(result.source, plain(result.source))}"),
        ("Measured", measured_of(data)),
        ("Conditions", conditions_of(c)),
        ("Engine", engine_of(c.engine)),
        ("Versions", versions_of(c)),
        ("Spent", spent_on(data)),
    ]
    return [*facts, *([("Measured at", f"{plain(data.measured_at[:19])} (UTC)")] if data.measured_at else [])]


def run_of(data: NoiseRun) -> str:
    """The run that was followed."""
    goal = f"goal {goal_of(data.goal)}" if data.goal is not None else "no goal"
    crossed = f", crossed at {number(data.crossed_at)} examples" if data.crossed_at is not None else ""
    ended = "" if crossed else f", {plain(data.outcome.replace('_', ' '))}"
    budget = f"; budget {number(data.budget)} reference runs" if data.budget is not None else ""
    rate = f"{data.learning_rate:g}"
    return (
        f"batch size {count(data.batch_size)}, learning rate {rate}, seed {data.seed}; {goal}{crossed}{ended}{budget}"
    )


def measured_of(data: NoiseRun) -> str:
    """How many steps were measured along the whole run."""
    every = "every step" if data.every == 1 else f"every step at first, later one in {count(data.every)}"
    n = len(data.measurements)
    said = f"{every}, {count(n)} measurement{'' if n == 1 else 's'} before clipping"
    return f"{said}; {count(data.discarded)} left out, their gradient was not finite" if data.discarded else said


def spent_on(data: NoiseRun) -> str:
    """What the run took, the principle's passes included."""
    return (
        f"{count(data.examples)} examples, {count(data.steps)} steps, {seconds(data.seconds)} in all (a clock "
        "reading, not a timing)"
    )


def notes_of(result: NoiseResult) -> list[str]:
    """The notes of the answer and of the run, each once."""
    return list(dict.fromkeys([*result.notes, *result.data.notes]))


def methods_of(result: NoiseResult) -> dict[str, list[str]]:
    """How each quantity's intervals were made: method -> the quantities that used it."""
    against = result.against_sweep
    quantities: dict[str, Iterable[Measured]] = {
        "run average": measures(result.run_average),
        "windows": [m for p in result.points for m in measures(p.scale)],
        "layers": [m for s in result.layers.values() for m in measures(s)],
        "proxies": [m for s in result.proxies.values() for m in measures(s)],
        "measured deviations": [p.deviation for c in result.principles for p in c.points],
        "predicted deviations": [p.predicted for c in result.principles for p in c.points],
        "B_crit": [against.critical_batch_size] if against is not None else [],
        "B_simple / B_crit": [against.factor] if against is not None else [],
    }
    return methods_among(quantities)


def methods_among(quantities: Mapping[str, Iterable[Measured]]) -> dict[str, list[str]]:
    """Method -> the quantities that used it.

    Methods that differ in their numbers only are told as one, each number as a range: t, 6.72–39.1 df.
    """
    texts: dict[str, list[str]] = {}
    names: dict[str, list[str]] = {}
    for name, values in quantities.items():
        for text in dict.fromkeys(m.interval for m in values if m.interval):
            kind = NUMBER.sub("#", text)
            texts.setdefault(kind, []).append(text)
            if name not in names.setdefault(kind, []):
                names[kind].append(name)
    return {merged(texts[kind]): used for kind, used in names.items()}


NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def merged(texts: Sequence[str]) -> str:
    """Texts that differ in their numbers only as one; a number that differs becomes its range."""
    places = zip(*(NUMBER.findall(t) for t in texts), strict=True)
    ranges = []
    for numbers in places:
        ordered = sorted(set(numbers), key=lambda n: float(n.replace(",", "")))
        ranges.append(ordered[0] if len(ordered) == 1 else f"{ordered[0]}–{ordered[-1]}")
    kept = NUMBER.split(texts[0])
    return "".join(k + r for k, r in zip(kept, [*ranges, ""], strict=True))
