"""What can be pasted to train with the large batch that matches? Python lines, and the same settings in words."""

from __future__ import annotations

import json

from batchscope.records import NO_REMEDY, Largest, MatchResult, MatchRow
from batchscope.report.words import count, number, plain, sentence

CONTROLLED = ("growing batch", "AdaScale")  # remedies that decide during a run: their names begin so
LONGER = ("train longer",)  # those whose runs use more examples
JOINED = " + "  # between the names of remedies that are applied together


def configuration_of(result: MatchResult) -> str:
    """Python that makes the task with the batch size, learning rate and remedy that match; empty where nothing does.

    It is what the confirmed runs were made of: the remedy applied to the task for this case, then the learning rate
    that the race chose.
    """
    largest = result.largest
    if largest is None:
        return ""
    comments = [f"# {plain(name)}: {value}" for name, value in settings_of(result)]
    make = without_remedy(largest) if largest.remedy == NO_REMEDY else with_remedy(largest, result)
    return "\n".join([*comments, *make])


def without_remedy(largest: Largest) -> list[str]:
    """Nothing but batch size and learning rate."""
    return [
        "import dataclasses",
        "",
        "small = task()  # your own, as your task file makes it",
        f"large = dataclasses.replace(small, batch_size={largest.batch_size}, lr={largest.learning_rate!r})",
    ]


def with_remedy(largest: Largest, result: MatchResult) -> list[str]:
    """The remedy by its name, for the case that was measured."""
    own, names = result.baseline, largest.remedy.split(JOINED)
    lines = [
        "import dataclasses",
        "",
        "from batchscope.remedies.base import Case, by_name",
        "",
        "small = task()  # your own, as your task file makes it",
        "case = Case(",
        f"    batch_size={largest.batch_size},",
        f"    own_batch_size={own.batch_size},",
        f"    own_learning_rate={own.learning_rate!r},",
        "    train_size=small.train_size,",
        ")",
        f"remedy = by_name({json.dumps(largest.remedy)})",
        f"large = dataclasses.replace(remedy.apply(small, case), batch_size={largest.batch_size}, "
        f"lr={largest.learning_rate!r})",
    ]
    if any(name.startswith(CONTROLLED) for name in names):
        lines.append("control = remedy.control(small, case)  # decides during the run")
    if any(name.startswith(LONGER) for name in names):
        budget = result.question.budget_examples
        lines.append(f"examples = round(remedy.length(case) * {budget:_})  # it trains longer")
    return lines


def settings_of(result: MatchResult) -> list[tuple[str, str]]:
    """The same in words: each setting and its value."""
    largest = result.largest
    if largest is None:
        return []
    row = next((r for r in result.rows if is_of(r, largest)), None)
    own = result.baseline
    settings = [
        ("batch size", f"{count(largest.batch_size)}, instead of {count(own.batch_size)}"),
        ("learning rate", f"{largest.learning_rate:.6g}, instead of {own.learning_rate:.6g}"),
        ("remedy", "none but this learning rate" if largest.remedy == NO_REMEDY else plain(largest.remedy)),
    ]
    if row is not None and largest.remedy != NO_REMEDY:
        settings += [(k, sentence(text)) for k, text in (("it changes", row.changes), ("it costs", row.cost)) if text]
    if row is not None and row.examples:
        steps = number(float(row.steps), 4) if row.steps >= 1e6 else count(row.steps)
        settings.append(("trained over", f"{count(row.examples)} examples in {steps} steps, as confirmed"))
    return settings


def is_of(row: MatchRow, largest: Largest) -> bool:
    """Whether this is the confirmed row of what matches."""
    return (row.role, row.batch_size, row.remedy) == ("confirmed", largest.batch_size, largest.remedy)
