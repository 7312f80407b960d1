"""How large is a study's page, and how soon does it stand in a browser?

Targets (checked with --check): under 3 MB, and every figure drawn under 2 s after opening, median of repeats, for a
page of the size that `make study` writes. Headless Chromium, offline, opened from disk, a fresh context each time.

    python benchmarks/report.py PAGE.html [--repeats 7] [--check] [--save]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from environment import environment, save

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LARGEST, SLOWEST = 3e6, 2.0
DRAWN = "document.querySelectorAll('svg.marks').length >= 10"


def opening_seconds(page: Path, repeats: int) -> list[float]:
    """Seconds from opening to every figure drawn, `repeats` times."""
    found = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for _ in range(repeats):
            context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
            tab = context.new_page()
            start = time.perf_counter()
            tab.goto(page.resolve().as_uri())
            tab.wait_for_function(DRAWN)
            found.append(time.perf_counter() - start)
            context.close()
        browser.close()
    return found


def main() -> None:
    """Open, print, and with --check fail where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    size, seconds = arguments.page.stat().st_size, opening_seconds(arguments.page, arguments.repeats)
    where = environment()
    print("  ".join(f"{k}: {v}" for k, v in where.items()))
    middle = statistics.median(seconds)
    span = f"[{min(seconds):.2f} - {max(seconds):.2f}], n={len(seconds)}"
    print(f"{size / 1e6:.2f} MB; drawn after {middle:.2f} s {span}")
    if arguments.save:
        print(save("report", {"environment": where, "bytes": size, "seconds": seconds}))
    missed = size > LARGEST or middle > SLOWEST
    sys.exit(1 if missed and arguments.check else 0)


if __name__ == "__main__":
    main()
