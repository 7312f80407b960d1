"""Do two studies of real data with different seeds agree, and how long do they take?

Targets (checked with --check), on two cores:
    `batchscope study digits` in under 60 s
    `batchscope study fashion-mnist-mlp`, 8 batch sizes, both policies, 3 seeds, in under 20 minutes
    two of the latter with different seeds: |difference of log B_crit| at most 1.96 joint standard errors, and each
    interval of B_crit no wider than high/low = 3

    python benchmarks/real_studies.py [--save] [--check] [--folder DIR]     a folder that is kept lets it resume
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from batchscope.analysis.table import analyse
from batchscope.analysis.tradeoff import log_b_crit_difference
from batchscope.store import open_store
from environment import environment, save

SIZES = "8,16,32,64,128,256,512,1024"
STUDIES = {
    "digits": (["digits"], 60.0),
    "fashion-mnist-mlp, seed 0": (["fashion-mnist-mlp", "--batch-sizes", SIZES, "--seed", "0"], 1200.0),
    "fashion-mnist-mlp, seed 1": (["fashion-mnist-mlp", "--batch-sizes", SIZES, "--seed", "1"], 1200.0),
}
WIDEST = 3.0


def run(name: str, folder: Path) -> tuple[dict[str, Any], Any]:
    """One study through the command line, in a store of its own; its seconds are of the first, uninterrupted run."""
    store = folder / f"{name.replace(', ', '-').replace(' ', '-')}.db"
    fresh, started = not store.exists(), time.monotonic()
    command = [
        str(Path(sys.executable).parent / "batchscope"),
        "study",
        *STUDIES[name][0],
        "--store",
        str(store),
        "--json",
    ]
    answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    seconds = time.monotonic() - started
    with open_store(store, read_only=True) as opened:
        law = analyse(opened.study_data(opened.studies()[0].id)).law
    keep = ("rows", "claims", "critical_batch_size", "s_min", "spent", "notes", "settings")
    return {"seconds": seconds if fresh else None} | {k: answer[k] for k in keep}, law


def main() -> None:
    """Run, compare, print; with --check fail where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / ".work")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"environment": environment(), "studies": {}}
    laws, missed = [], []
    for name, (_, limit) in STUDIES.items():
        result["studies"][name], law = run(name, arguments.folder)
        seconds, b_crit = result["studies"][name]["seconds"], law.critical_batch_size
        took = "resumed, not timed" if seconds is None else f"{seconds:.0f} s"
        print(f"{name}: {took}; B_crit {b_crit.estimate} [{b_crit.low} - {b_crit.high}]", flush=True)
        if seconds is not None and seconds > limit:
            missed.append(f"{name}: {seconds:.0f} s, target {limit:.0f} s")
        if name.startswith("fashion"):
            laws.append(law)
            if b_crit.high is None or not b_crit.low or b_crit.high / b_crit.low > WIDEST:
                missed.append(f"{name}: interval of B_crit [{b_crit.low} - {b_crit.high}] wider than {WIDEST}")
    difference = log_b_crit_difference(*laws)
    if difference is None or not difference.agree:
        missed.append(f"the two studies' B_crit differ: {difference}")
    else:
        result["difference_of_logs"] = {
            "difference": difference.difference,
            "standard_error": difference.standard_error,
        }
        print(f"difference of log B_crit {difference.difference:.3f}, standard error {difference.standard_error:.3f}")
    if arguments.save:
        print(save("real_studies", result))
    for text in missed:
        print(f"MISSED  {text}")
    sys.exit(1 if missed and arguments.check else 0)


if __name__ == "__main__":
    main()
