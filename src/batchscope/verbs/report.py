"""`report`: the HTML page of a stored study or profile, drawn again. Needs no torch and runs nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from batchscope.analysis.profile import analyse_profile
from batchscope.analysis.table import analyse
from batchscope.report import html
from batchscope.report.profile_html import write_profile
from batchscope.store.sqlite import open_store


def write_report(study: str, *, store: str | Path = "batchscope.db", path: str | Path | None = None) -> Path:
    """Write the page of `study` (the id of a study or a profile, or its beginning) and return its path."""
    with open_store(store, read_only=True) as opened:
        kind, found = opened.resolve_any(study)
        if kind == "profile":
            profile = opened.profile(found)
            where = Path(path) if path is not None else default_path(store, f"{profile.task}-profile", found)
            return write_profile(dataclasses.replace(analyse_profile(profile), report=str(where)), where)
        data = opened.study_data(found)
    where = Path(path) if path is not None else default_path(store, data.settings.task, found)
    return html.write_report(dataclasses.replace(analyse(data), report=str(where)), data, where)


def default_path(store: str | Path, name: str, study_id: str) -> Path:
    """Beside the store, named for the task and the study."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)[:40].strip("-") or "task"
    return Path(store).resolve().parent / f"batchscope-{plain}-{study_id[:8]}.html"
