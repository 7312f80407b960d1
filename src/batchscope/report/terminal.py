"""What did the study find, on a screen of text?

Three narrow tables share their first columns (batch size, policy) and each fit 120 columns: what the goal took, what
converging took, and where training ended. Then the law, the claims, the cost and the page. Every text is a rich Text,
never markup, so a task named "[red]" is shown as it is. Where the output is not a terminal there is no colour, no box,
and a width that holds every number on one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from batchscope.records import Claim, Row, StudyResult
from batchscope.report import words

PLAIN_WIDTH = 120  # columns assumed where the output is a file or a pipe
VERDICT_STYLES = {"holds": "bold blue", "does not hold": "bold yellow", "not resolved": "dim"}


class Column(NamedTuple):
    """A measured column: heading and field of `Row`."""

    title: str
    field: str


GOAL = (
    Column("steps to goal", "steps_to_goal"),
    Column("examples to goal", "examples_to_goal"),
    Column("seconds to goal", "seconds_to_goal"),
)
CONVERGENCE = (
    Column("epochs to converge", "epochs_to_converge"),
    Column("seconds per epoch", "seconds_per_epoch"),
    Column("seconds to converge", "seconds_to_converge"),
)
MINIMUM = (
    Column("lowest validation loss", "min_validation_loss"),
    Column("train loss", "train_loss"),
    Column("generalisation gap", "generalization_gap"),
    Column("distance from start", "distance_from_init"),
)


def print_study(result: StudyResult, console: Console) -> None:
    """Print the study's answer to `console`: tables, law, claims, cost, page."""
    out = console if console.is_terminal else plain_console(console)
    rows = sorted(result.rows, key=lambda r: (r.policy, r.batch_size))
    goal = words.goal_of(result.goal)
    loop = words.loop_of(result.timing.loop) if result.timing is not None else words.loop_of()
    devices = result.settings.conditions.world_size
    on = f" on {devices} devices" * (devices > 1)
    out.print(Text(f"{words.plain(result.task)}: what batch size does{on}, goal {goal}", "bold"))
    out.print()
    tables = (
        (f"To the goal ({goal}; seconds of {loop})", GOAL, ("learning rate", "reached")),
        (f"To the lowest validation loss (seconds of {loop})", CONVERGENCE, ("tuning trials",)),
        ("At the lowest validation loss", MINIMUM, ()),
    )
    for title, columns, facts in tables:
        out.print(table_of(title, rows, columns, facts, out.is_terminal, out.width))
        out.print()
    for text in (*words.law_sentences(result.law), *words.target_sentences(result), words.fastest_sentence(result)):
        out.print(Text(text))
    out.print()
    for number in sorted({c.number for c in result.claims}):
        for text in claim_texts([c for c in result.claims if c.number == number]):
            out.print(text)
    out.print()
    for note in result.notes:
        out.print(Text(f"Note: {words.sentence(note)}"))
    out.print(Text(cost(result)))
    if result.report:
        out.print(Text(f"Report: {words.plain(result.report)}"), soft_wrap=True)


def plain_console(console: Console) -> Console:
    """The same output without colour or highlighting, wide enough that no number is broken."""
    return Console(file=console.file, width=max(PLAIN_WIDTH, console.width), color_system=None, highlight=False)


def table_of(
    title: str,
    rows: list[Row],
    columns: tuple[Column, ...],
    facts: tuple[str, ...] = (),
    terminal: bool = True,
    width: int = PLAIN_WIDTH,
) -> Table:
    """One narrow table; `facts` are headings of unmeasured columns: see `fact`.

    Where the lines would not fit `width`, every column is as wide as its longest word: intervals go below their
    estimates, and no number is broken down to 80 columns.
    """
    headings = ["batch size", "policy", *facts, *(c.title for c in columns)]
    cells = [
        [words.count(r.batch_size), r.policy, *(fact(r, f) for f in facts), *measured_cells(r, columns)] for r in rows
    ]
    starts = [k for k in range(1, len(rows)) if rows[k].policy != rows[k - 1].policy]
    return text_table(title, headings, cells, terminal, width, left=("policy",), gaps=starts)


class Content(NamedTuple):
    """A table's text: title, headings, cells, and the columns that stand to the left."""

    title: str
    headings: Sequence[str]
    cells: list[list[str]]
    left: tuple[str, ...] = ()


def print_answer(out: Console, heading: str, sentences: Sequence[str], contents: Sequence[Content]) -> None:
    """How an answer begins: heading, sentences, and each table under its title, with an empty line after each."""
    out.print(Text(heading, "bold"))
    out.print()
    for text in sentences:
        out.print(Text(text))
    out.print()
    for title, headings, cells, left in contents:
        out.print(Text(title, "italic"))
        out.print(text_table(None, headings, cells, out.is_terminal, out.width, left))
        out.print()


def print_measured(
    out: Console,
    facts: Sequence[tuple[str, str]],
    methods: Mapping[str, Sequence[str]],
    notes: Sequence[str],
    report: str | None,
) -> None:
    """How an answer ends: how it was measured, what the intervals are, notes, where the page is."""
    for name, fact in facts:
        out.print(Text(f"{name}: {fact}", "dim"))
    for method, quantities in methods.items():
        out.print(Text(f"Interval: {words.plain(method)} ({words.list_of(quantities)})", "dim"))
    for note in notes:
        out.print(Text(f"Note: {words.sentence(note)}"))
    if report:
        out.print(Text(f"Report: {words.plain(report)}"), soft_wrap=True)


def text_table(
    title: str | None,
    headings: Sequence[str],
    cells: Sequence[Sequence[str]],
    terminal: bool,
    width: int,
    left: Sequence[str] = (),
    gaps: Sequence[int] = (),
) -> Table:
    """A table of plain text: numbers to the right, the columns `left` to the left, an empty line before rows `gaps`.

    Where the lines would not fit `width`, every column is as wide as its longest word.
    """
    table = Table(
        title=Text(title) if title is not None else None, title_justify="left", title_style="", pad_edge=False
    )
    table.box = box.SIMPLE_HEAD if terminal else None
    table.padding = (0, 1) if width >= PLAIN_WIDTH else (0, 0)
    columns_of_text = [(h.replace(" ", "\n", 1), *c) for h, c in zip(headings, zip(*cells, strict=True), strict=True)]
    whole = [max(len(line) for cell in column for line in cell.splitlines()) for column in columns_of_text]
    words_only = [max(len(word) for cell in column for word in cell.split()) for column in columns_of_text]
    gap = 1 + 2 * table.padding[1] if terminal else table.padding[1]
    widths = whole if sum(whole) + gap * (len(whole) + 1) <= width or not terminal else words_only
    for name, (heading, *_), wide in zip(headings, columns_of_text, widths, strict=True):
        table.add_column(Text(heading), justify="left" if name in left else "right", overflow="fold", width=wide)
    for k, row in enumerate(cells):
        if k in gaps:
            table.add_row()
        table.add_row(*map(Text, row))
    return table


def measured_cells(row: Row, columns: tuple[Column, ...]) -> list[str]:
    """The row's measured values, as written everywhere."""
    return [words.measured(getattr(row, c.field)) for c in columns]


def fact(row: Row, heading: str) -> str:
    """What was set or counted rather than measured: learning rate, its tuning trials, seeds that reached the goal."""
    died = f", {row.diverged} diverged" if row.diverged else ""
    return {
        "learning rate": words.number(row.learning_rate),
        "tuning trials": words.count(row.tuning_trials),
        "reached": f"{row.reached}/{row.seeds}{died}",
    }[heading]


def claim_texts(judgements: list[Claim]) -> list[Padding]:
    """A claim and, indented below it, its verdict in each policy with the effect, and why."""
    lines = [Padding(Text(f"({judgements[0].number}) {words.sentence(judgements[0].claim)}", "bold"), 0)]
    for claim in judgements:
        text = Text("" if claim.policy == "both" else f"{claim.policy}: ")
        text.append(claim.verdict, VERDICT_STYLES.get(claim.verdict, ""))
        text.append(f"; {words.plain(claim.effect.what)}: ratio {words.measured(claim.effect.ratio)}. ")
        text.append(words.sentence(claim.why), "dim")
        lines.append(Padding(text, (0, 0, 0, 4)))
    return lines


def cost(result: StudyResult) -> str:
    """What the study cost, abandoned trials included."""
    spent = result.spent
    return (
        f"Spent: {words.count(spent.trials)} trials, {words.number(spent.examples)} examples, "
        f"{words.number(spent.steps)} steps = {words.number(spent.reference_runs)} reference runs; "
        f"{words.seconds(spent.seconds)} of trial clocks."
    )
