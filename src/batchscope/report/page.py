"""What do all HTML pages of the report share? One file that opens anywhere, offline, written whole or not at all.

A page is the template's structure, its style, Vega's code once, the charts as JSON. Nothing is fetched: the page's own
content policy forbids it. Every text is escaped by jinja2; JSON inside the page has `<` written as \\u003c, so that no
text of a task can close a script element.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from batchscope.errors import CannotAnswer
from batchscope.report import words
from batchscope.report.charts import Panel
from batchscope.report.profile_words import size_of
from batchscope.report.style import needed

DASH = "\u2060–\u2060"  # an en dash between the ends of an interval, which no line breaks at
TEMPLATES = Path(__file__).parent / "templates"


class Key(NamedTuple):
    """An entry of a figure's own legend, for series too many for a chart's: name, colour, dashes, shape of its mark."""

    name: str
    colour: str
    dash: tuple[int, ...] = (1, 0)
    shape: str = "circle"


class Figure(NamedTuple):
    """A numbered figure: heading, panels side by side, and whether its colours are batch sizes (and need a legend).

    `stacked` panels share their horizontal axis and stand below each other; `keys` is the legend of all panels.
    """

    title: str
    caption: str
    panels: tuple[Panel, ...]
    by_colour: bool = False
    stacked: bool = False
    keys: tuple[Key, ...] = ()


def render(template: str, figures: Sequence[Figure], lines: list[dict[str, Any]], **values: Any) -> str:
    """The page's text: `template` filled with `values`, the figures' panels and the traces that they share."""
    jinja2, bundle = needed("jinja2"), needed("vl_convert").javascript_bundle()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    safe = needed("markupsafe").Markup
    environment.filters.update(number=words.number, count=words.count, plain=words.plain, sentence=words.sentence)
    environment.filters.update(duration=words.seconds, interval=lambda m: words.interval(m, DASH).strip())
    environment.filters.update(measured=lambda m, unit="": words.measured(m, unit, DASH), size_of=size_of)
    return environment.get_template(template).render(
        figures=figures,
        bundle=safe(bundle.replace("</script", "<\\/script")),
        panels=safe(json_for_page([p.spec for f in figures for p in f.panels])),
        lines=safe(json_for_page(lines)),
        **values,
    )


def json_for_page(value: Any) -> str:
    """JSON that is safe inside a script element: no `<` survives, nor a line separator that old engines trip over."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def write_page(page: str, path: str | os.PathLike[str]) -> Path:
    """Write a page to `path`, whole or not at all; returns the path. Raises CannotAnswer where it cannot be written."""
    target = Path(path)
    scratch = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=target.parent, prefix=".report-", suffix=".html", delete=False
        ) as file:
            scratch = Path(file.name)
            file.write(page)
        scratch.chmod(0o666 & ~current_umask())
        os.replace(scratch, target)
    except OSError as error:
        if scratch is not None:
            scratch.unlink(missing_ok=True)
        reason = error.strerror or type(error).__name__
        raise CannotAnswer(
            f"the HTML report could not be written to {words.plain(target)} ({reason}): name a file in a folder that "
            "exists and can be written to"
        ) from error
    return target


def current_umask() -> int:
    """The process's umask: temporary files are made private, a report is an ordinary file."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
