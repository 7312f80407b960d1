"""How flat are the minima, on a screen of text?

The answer's sentences first, then narrow tables: claims 10 and 6 by each measure, the measures by batch size, distances
and their growth, causal runs; then how it was measured. Pictures are the page's. Every text is a rich Text.
"""

from __future__ import annotations

from rich.console import Console

from batchscope.records import SharpnessResult
from batchscope.report.flatness_facts import facts_of, methods_of, notes_of
from batchscope.report.flatness_tables import claims_table, screen_tables
from batchscope.report.flatness_words import worded
from batchscope.report.terminal import plain_console, print_answer, print_measured
from batchscope.report.words import plain


def print_flatness(result: SharpnessResult, console: Console) -> None:
    """Print the answer to `console`: sentences, claims, tables, how it was measured, page."""
    out = console if console.is_terminal else plain_console(console)
    told = result if result.sentences else worded(result)
    claims = [claims_table(result, n) for n in sorted({c.number for c in result.claims}, reverse=True)]
    heading = f"{plain(result.task)}: how flat its minima are"
    print_answer(out, heading, told.sentences, [*claims, *screen_tables(result)])
    print_measured(out, facts_of(result), methods_of(result), notes_of(result), result.report)
