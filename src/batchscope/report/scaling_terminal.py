"""What do more devices buy, on a screen of text?

The answer's sentences first, then narrow tables: steps by device count and batch size, strong and weak scaling, the
way to the goal, predictions, fits; then claims 8 and 9 and how it was measured. Every text is a rich Text.
"""

from __future__ import annotations

from rich.console import Console

from batchscope.records import ScalingResult
from batchscope.report.scaling_facts import facts_of, methods_of, notes_of
from batchscope.report.scaling_tables import screen_tables
from batchscope.report.scaling_words import worded
from batchscope.report.terminal import claim_texts, plain_console, print_answer, print_measured
from batchscope.report.words import plain


def print_scaling(result: ScalingResult, console: Console) -> None:
    """Print the answer to `console`: sentences, tables, claims, how it was measured, page."""
    out = console if console.is_terminal else plain_console(console)
    told = result if result.sentences else worded(result)
    print_answer(out, f"{plain(result.task)}: what more devices buy", told.sentences, screen_tables(result))
    for number in sorted({c.number for c in result.claims}):
        for text in claim_texts([c for c in result.claims if c.number == number]):
            out.print(text)
    if result.claims:
        out.print()
    print_measured(out, facts_of(result), methods_of(result), notes_of(result), result.report)
