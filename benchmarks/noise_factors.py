"""How far is the gradient noise scale from the critical batch size on every built-in task?

For each task a tuned study (B_crit, three seeds) and one followed reference run (B_simple, averaged up to the
crossing), both kept in one store, so that the command resumes; then the factor between the two, with its interval,
good or bad.
About an hour and a half from nothing on two cores, most of it the studies.

    python benchmarks/noise_factors.py [--save] [--store benchmarks/.work/noise_factors.db]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import batchscope as bs
from batchscope.records import Measured, NoiseResult, to_plain
from batchscope.report.words import interval
from environment import environment, save

BATCH_SIZES = {  # None: as a study chooses them; else fewer, since a trial takes minutes
    "noisy-quadratic": None,
    "digits": None,
    "fashion-mnist-mlp": (8, 32, 128, 512, 2048),
    "fashion-mnist-cnn": (8, 32, 128, 512),
    "stdlib-lm": (4, 16, 64, 256),
}


def shown(m: Measured) -> str:
    """A number with its interval, or its bound."""
    estimate = "" if m.estimate is None else f"{m.estimate:.3g} "
    return f"{estimate}{interval(m, '-').strip()}"


def line_of(result: NoiseResult) -> str:
    """One row of the table in docs/measurement.md."""
    sweep = result.against_sweep
    cells = [result.task, shown(result.run_average.b_simple)]
    cells += [shown(sweep.critical_batch_size), shown(sweep.factor)] if sweep is not None else ["not resolved", "none"]
    scales = [point.scale.b_simple for point in result.points]
    ends = [f"{m.estimate:.3g}" if m.estimate is not None else f"> {m.low:.3g}" for m in (scales[0], scales[-1])]
    return f"| {' | '.join([*cells, f'{ends[0]} to {ends[1]}'])} |"


def main() -> None:
    """Study, follow, compare; every part only where the store lacks it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/noise_factors.json")
    parser.add_argument("--store", type=Path, default=Path(__file__).parent / ".work" / "noise_factors.db")
    arguments = parser.parse_args()
    arguments.store.parent.mkdir(parents=True, exist_ok=True)
    found = {}
    for task, sizes in BATCH_SIZES.items():
        bs.study(task, batch_sizes=sizes, policy="tuned", store=arguments.store, draw=False)
        result = bs.noise(task, store=arguments.store, draw=False)
        print(line_of(result), flush=True)
        found[task] = {
            "run_average": to_plain(result.run_average),
            "against_sweep": to_plain(result.against_sweep),
            "source": result.source,
            "points": to_plain(result.points),
            "notes": list(result.notes),
        }
    if arguments.save:
        print(save("noise_factors", {"environment": environment(), "tasks": found}))


if __name__ == "__main__":
    main()
