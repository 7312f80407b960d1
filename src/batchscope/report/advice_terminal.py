"""What should be used, on a screen of text?

The advice's sentences first, then narrow tables: the batch sizes compared, what their time is made of, time against
cost, the training runs; then the lines to train with. Every text is a rich Text, never markup.
"""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from batchscope.records import Advice
from batchscope.report.advice_facts import (
    Table,
    decision_table,
    detail_table,
    facts_of,
    methods_of,
    notes_of,
    pareto_table,
    trials_table,
)
from batchscope.report.advice_words import worded
from batchscope.report.terminal import Content, plain_console, print_answer, print_measured
from batchscope.report.words import plain


def print_advice(result: Advice, console: Console) -> None:
    """Print the advice to `console`: sentences, snippet, tables, how it was measured, page."""
    out = console if console.is_terminal else plain_console(console)
    told = result if result.sentences else worded(result)
    print_answer(out, f"{plain(result.task)}: which batch size to train with", told.sentences, contents_of(result))
    if told.snippet:
        out.print(Text("To train with it", "italic"))
        out.print(Text(f"\n{told.snippet}\n"), soft_wrap=True)
    print_measured(out, facts_of(result), methods_of(result), notes_of(result), result.report)


def contents_of(result: Advice) -> list[Content]:
    """The tables, those without rows left out."""
    tables: list[Table] = [decision_table(result), detail_table(result), pareto_table(result), trials_table(result)]
    return [Content(*t) for t in tables if t.rows]
