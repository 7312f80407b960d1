"""Is everything that we claim still so? Runs what is too long for `make test`, one item after the other.

Each item is a program of its own with a --check; its result goes to benchmarks/results/ with the environment. An item
that has passed for this commit is not run again: `--again` runs all.

    python benchmarks/prove.py [--again] [item ...]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
DONE = HERE / ".work" / "proved.json"
ITEMS = {
    "loop": ["loop.py", "--check", "--save"],
    "memory": ["memory.py", "--check", "--save"],
    "law_coverage": ["law_coverage.py", "--check", "--save"],
    "noise": ["noise.py", "--check", "--save"],
    "noise_coverage": ["noise_coverage.py", "--check", "--save"],
    "noise_factors": ["noise_factors.py", "--save"],
    "noisy_quadratic": ["noisy_quadratic.py", "--check", "--save"],
    "kill_storm": ["kill_storm.py", "--check", "--out", str(HERE / "results" / "kill_storm.json")],
    "advice_calibration": ["advice_calibration.py", "--check", "--save"],
    "hard_advice": ["hard_advice.py", "--check", "--save"],
    "parallel": ["parallel.py", "--check", "--save"],
    "scaling_check": ["scaling_check.py", "--check", "--save"],
    "scaling_simulation": ["scaling_simulation.py", "--save"],
    "edge_of_stability": ["edge_of_stability.py", "--check", "--save"],
    "keskar": ["keskar.py", "--save"],
    "real_studies": ["real_studies.py", "--check", "--save"],
}


def commit() -> str:
    """What the proof is of: the commit, and whether there is more than it."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    dirty = subprocess.run(["git", "status", "--porcelain", "--", "../src"], capture_output=True, text=True, cwd=HERE)
    return head + ("+" if dirty.stdout.strip() else "")


def main() -> None:
    """Run the items that are not proved yet; exit 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("items", nargs="*", choices=[[], *ITEMS])
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    proved = json.loads(DONE.read_text()) if DONE.exists() else {}
    now, failed = commit(), []
    for name in arguments.items or ITEMS:
        if proved.get(name) == now and not arguments.again:
            print(f"{name}: proved for this commit")
            continue
        started = time.monotonic()
        script, *options = ITEMS[name]
        code = subprocess.run([sys.executable, str(HERE / script), *options]).returncode
        print(
            f"{name}: {'proved' if code == 0 else 'MISSED'} in {(time.monotonic() - started) / 60:.1f} minutes",
            flush=True,
        )
        if code == 0:
            proved[name] = now
            DONE.parent.mkdir(exist_ok=True)
            DONE.write_text(json.dumps(proved))
        else:
            failed.append(name)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
