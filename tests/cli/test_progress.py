"""Is progress plain lines where there is no terminal, and a live view where there is one?"""

from __future__ import annotations

import io
import math

from rich.console import Console

from batchscope.cli.progress import Progress
from batchscope.testing.examples import make_result, make_spec


def events() -> list[tuple[str, dict]]:
    spec, result = make_spec(), make_result()
    return [
        ("phase", {"roles": {"held": 3, "tuning": 1}, "trials": 4}),
        ("started", {"trial": 1, "spec": spec}),
        ("line", {"trial": 1, "spec": spec, "examples": 1024, "loss": 0.5}),
        ("stored", {"trial": 2, "spec": spec}),
        ("died", {"trial": 1, "spec": spec, "reason": "it was ended by SIGKILL"}),
        ("started", {"trial": 1, "spec": spec}),
        ("finished", {"trial": 1, "spec": spec, "result": result}),
        ("note", {"text": "[bold]not markup[/bold]"}),
    ]


def test_progress_is_plain_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    with Progress(Console(file=out)) as progress:
        for event in events():
            progress(*event)
    assert out.getvalue().splitlines() == [
        "held (3) + tuning ...",
        "note: B=32 lr=0.1 seed 0: it was ended by SIGKILL",
        "  2/4 B=32 lr=0.1 seed 0: reached (goal) after 1,536 examples",
        "note: [bold]not markup[/bold]",
    ]


def test_progress_is_live_on_a_terminal() -> None:
    out = io.StringIO()
    with Progress(Console(file=out, force_terminal=True, width=100)) as progress:
        for event in events()[:4]:
            progress(*event)
        view = progress._view().plain
        progress.live.refresh()
    assert "held (3) + tuning: 1 of 4 trials done, 1 of them stored before" in view
    assert "B=32 lr=0.1 seed 0: 1,024 examples, validation loss 0.5" in view
    assert "1,024 examples" in out.getvalue()
    assert math.isfinite(progress.started)
