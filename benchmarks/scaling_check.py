"""Is a step on 2 processes predicted for models that it was not fitted on? Fitted on one, checked on half and twice.

`scale`'s model of step time is fitted on one network at 1 and 2 processes. For each other network only its steps on
*one* process are given to it; its steps on 2 are predicted, and measured too. All networks take turns, a few seconds
each, and the windows of a network's turns are put together: what the machine does meanwhile, it does to all of them.

    error = predicted / measured - 1, at each batch size: median over the repeats, with the least and the greatest

Target: at most 15 % at every batch size of the networks with half and with twice the gradient bytes.

    python benchmarks/scaling_check.py [--repeats 3] [--turns 5] [--save] [--check]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchscope.analysis.network import fit_network
from batchscope.analysis.scaling import Predictor, fit_scaling
from batchscope.measure.throughput import drift_of
from batchscope.records import Conditions, ScalingPass, TimingPass, from_plain, to_plain
from batchscope.sweep.executors.group import GroupExecutor
from batchscope.sweep.jobs import Job, TaskReference, place
from batchscope.task import load_task
from batchscope.training.fingerprint import fingerprint
from batchscope.verbs.machine import call
from environment import environment, save

TASKS = Path(__file__).with_name("scaling_tasks.py")
SIZES = (32, 64, 128, 256, 512, 1024, 2048)
CHECKED = ("half", "twice")
BESIDE = ("cnn_half", "cnn_twice")  # another kind of network: reported, not part of the target
TARGET = 0.15
DEVICES = 2
ROUNDS = 2  # of one turn


def main() -> None:
    """Measure, predict, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write the table to benchmarks/results/")
    parser.add_argument("--check", action="store_true", help="exit 1 where the target in the header is missed")
    arguments = parser.parse_args()
    where = environment()
    print("  ".join(f"{k}: {v}" for k, v in where.items()), flush=True)
    executors = {name: executor_for(name) for name in ("fitted", *CHECKED, *BESIDE)}
    found: list[dict[str, Any]] = []
    try:
        for repeat in range(arguments.repeats):
            found += one_repeat(executors, repeat, arguments.turns)
    finally:
        for executor in executors.values():
            executor.close()
    table = summary(found)
    worst = max(abs(row["error"]) for row in table if row["network"] in CHECKED)
    print(f"largest median error of {' and '.join(CHECKED)}: {worst:.1%} (target {TARGET:.0%})")
    if arguments.save:
        print(save("scaling_check", {"environment": where, "target": TARGET, "rows": table, "repeats": found}))
    if arguments.check and worst > TARGET:
        print(f"MISSED {worst:.1%} > {TARGET:.0%}")
        sys.exit(1)


def executor_for(name: str) -> GroupExecutor:
    """Two processes that have loaded this task; they sleep while others are timed."""
    reference = f"{TASKS}:{name}"
    return GroupExecutor(TaskReference.here(reference, fingerprint(load_task(reference))[0]), DEVICES)


def timed(executor: GroupExecutor) -> ScalingPass:
    """One turn: a short pass over 1 and 2 processes."""
    details = {
        **place(Conditions(threads=1)),
        "devices": DEVICES,
        "counts": [1, DEVICES],
        "batch_sizes": list(SIZES),
        "options": {"rounds": ROUNDS},
    }
    return from_plain(ScalingPass, call(executor, Job("scaling", "scaling", details)))


def together(turns: Sequence[ScalingPass]) -> ScalingPass:
    """One pass with the windows of all turns."""
    passes = tuple(joined([turn.passes[i] for turn in turns]) for i in range(len(turns[0].passes)))
    reduces = tuple(
        dataclasses.replace(of_turns[0], seconds=sum((r.seconds for r in of_turns), ()))
        for of_turns in zip(*(turn.all_reduces for turn in turns), strict=True)
    )
    return dataclasses.replace(turns[0], passes=passes, all_reduces=reduces)


def joined(passes: Sequence[TimingPass]) -> TimingPass:
    """The passes of one device count, window after window."""
    timings = []
    for of_turns in zip(*(p.timings for p in passes), strict=True):
        phases = {name: sum((t.phases[name] for t in of_turns), ()) for name in of_turns[0].phases}
        seconds = sum((t.seconds_per_step for t in of_turns), ())
        reference = sum((t.reference for t in of_turns), ())
        timings.append(dataclasses.replace(of_turns[0], seconds_per_step=seconds, reference=reference, phases=phases))
    return dataclasses.replace(passes[0], timings=tuple(timings), drift=drift_of([t.reference for t in timings]))


def one_repeat(executors: dict[str, GroupExecutor], repeat: int, turns: int) -> list[dict[str, Any]]:
    """All networks in turns; then fit on one, and predict each of the others."""
    taken: dict[str, list[ScalingPass]] = {name: [] for name in executors}
    for turn in range(turns):
        for name in executors if turn % 2 == 0 else reversed(executors):
            taken[name].append(timed(executors[name]))
    timing = together(taken["fitted"])
    predictor, network, fit = Predictor(timing), fit_network(timing.all_reduces), fit_scaling(timing)
    print(
        f"repeat {repeat}: {timing.gradient_bytes:,} bytes, latency {1e6 * (network.latency.estimate or 0):.0f} us, "
        f"bandwidth {(network.bandwidth.estimate or 0) / 1e9:.2f} GB/s, factor {fit.factor.estimate:.2f}, "
        f"overlap {fit.overlap.estimate:.2f}, "
        f"residual {fit.residual_sd:.1%}, drift {max(p.drift for p in timing.passes):.0%}, "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    (Path(__file__).parent / ".work").mkdir(exist_ok=True)
    kept = Path(__file__).parent / ".work" / f"scaling_check_{repeat}.json"
    kept.write_text(json.dumps({name: to_plain(together(of)) for name, of in taken.items()}))
    rows = []
    for name in (*CHECKED, *BESIDE):
        other = together(taken[name])
        predicted, measured = predictor.of_another(other, other.buckets), Predictor(other)
        for size in SIZES:
            guess, seconds = predicted.predicted((DEVICES, size)), measured.known[DEVICES, size]
            rows.append(
                {
                    "repeat": repeat,
                    "network": name,
                    "gradient_bytes": other.gradient_bytes,
                    "batch_size": size,
                    "predicted": guess.estimate,
                    "low": guess.low,
                    "high": guess.high,
                    "measured": seconds.estimate,
                    "error": (guess.estimate or 0.0) / (seconds.estimate or 1.0) - 1.0,
                    "held": (guess.low or 0.0) <= (seconds.estimate or 0.0) <= (guess.high or 0.0),
                }
            )
    return rows


def summary(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By network and batch size: the median error over the repeats."""
    table = []
    for name in (*CHECKED, *BESIDE):
        for size in SIZES:
            here = [row for row in found if (row["network"], row["batch_size"]) == (name, size)]
            errors = sorted(row["error"] for row in here)
            row = {
                "network": name,
                "gradient_bytes": here[0]["gradient_bytes"],
                "batch_size": size,
                "measured": statistics.median(r["measured"] for r in here),
                "error": statistics.median(errors),
                "least": errors[0],
                "greatest": errors[-1],
                "held": sum(r["held"] for r in here) / len(here),
            }
            table.append(row)
            print(
                f"{name:10} {row['gradient_bytes']:>10,} bytes  batch {size:>5}  {1e3 * row['measured']:8.2f} ms  "
                f"error {row['error']:+6.1%} [{errors[0]:+.1%} {errors[-1]:+.1%}]  interval holds {row['held']:.0%}"
            )
    return table


if __name__ == "__main__":
    main()
