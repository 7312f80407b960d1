"""What trains as well as the small batch, on a screen of text?

The answer's sentences first, then for each batch size how well every remedy trains and what it takes to the goal; who
cannot be applied, what the races cost, what can be pasted, and how it was measured. Every text is a rich Text.
"""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from batchscope.records import MatchResult
from batchscope.report.match_facts import facts_of, methods_of, notes_of
from batchscope.report.match_tables import screen_tables
from batchscope.report.match_words import sentences_of, worded
from batchscope.report.terminal import plain_console, print_answer, print_measured
from batchscope.report.words import plain


def print_match(result: MatchResult, console: Console) -> None:
    """Print the answer to `console`: sentences, tables, configuration, how it was measured, page."""
    out = console if console.is_terminal else plain_console(console)
    told = result if result.answer else worded(result)
    heading = f"{plain(result.task)}: which large batch trains as well as the small one"
    print_answer(out, heading, sentences_of(told), screen_tables(told))
    if told.configuration:
        out.print(Text("To train with it", "italic"))
        out.print(Text(f"\n{told.configuration}\n"), soft_wrap=True)
    print_measured(out, facts_of(result), methods_of(result), notes_of(result), result.report)
