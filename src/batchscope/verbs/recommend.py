"""`recommend`: which batch size, learning rate and accumulation, how surely, and what binds? One decision.

    1. check the task; seconds per step and memory from a profile (the store's, or measured now)
    2. run the task's own point to its goal: the unit of the budget; its gradient noise, measured beside, is the prior
    3. run what would change the decision most, two runs at a time, until it is firm or the budget has no room
    4. run the best point once more, with a seed that did not choose
    5. analyse, put into words, draw

The next runs follow from the records alone (`analysis.search`), so the same command resumes where it was stopped, and
repeating it spends nothing. Only training counts against the budget; the profile is timed beside it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from batchscope.analysis.advice import analyse_advice
from batchscope.errors import CannotAnswer, UsageError
from batchscope.measure.coupling import replica_norms
from batchscope.records import OBJECTIVES, Advice, AdviceData, AdviceQuestion, ProfileData, ScalingPass, TimingPass
from batchscope.report.advice_html import write_advice
from batchscope.report.advice_words import worded
from batchscope.report.words import seconds as spelled
from batchscope.store.base import Store
from batchscope.store.sqlite import open_store
from batchscope.sweep.runner import Listener
from batchscope.task import Task
from batchscope.training.seeding import drawing_from
from batchscope.verbs import profile as profiling
from batchscope.verbs import scale as scaling
from batchscope.verbs.deciding import Decision
from batchscope.verbs.machine import check_cluster, check_devices, reference_in
from batchscope.verbs.price import price_profile, seconds_per_example
from batchscope.verbs.report import default_path, drawn

BUDGET = 10.0  # reference runs
ASKED: dict[str, Any] = {
    **{"budget": BUDGET, "objective": "time", "devices": 1, "seed": 0},
    **dict.fromkeys(("price", "memory_limit", "best_in_seconds", "best_in_examples")),
}  # the question, by default
ADVICE_BYTES = 200_000  # of an advice and its trials in the store (measured on digits: 60,000)


def recommend(
    task: Task | str,
    *,
    budget: float = BUDGET,
    objective: str = "time",
    price: float | None = None,
    memory_limit: int | None = None,
    devices: int = 1,
    best_in_seconds: float | None = None,
    best_in_examples: int | None = None,
    seed: int = 0,
    timing: TimingPass | None = None,
    again: bool = False,
    on: str | None = None,
    store: str | Path = "batchscope.db",
    report: str | Path | None = None,
    draw: bool = True,
    checkpoint_seconds: float = 10.0,
    listen: Listener | None = None,
) -> Advice:
    """Decide on a batch size, its learning rate and accumulation, with the evidence for it.

    Args:
        task: a reference, run by worker processes; or a `Task` object, run in this process.
        budget: most that is spent on training, never passed, in reference runs: what the task's own point takes until
            its goal has held. Below 3 no further run to the goal is made: throughput and noise scale answer, in
            ratios. Below 1 it counts shares of the task's own budget, since no whole run is made.
        objective: what is made least: "time", "cost", "examples" or "energy".
        price: of a device for an hour; costs are in device hours without it.
        memory_limit: bytes, as in `profile`.
        devices: at most so many; seconds on several are those of a `scale`, the store's or measured now. Runs are made
            on one device: steps to goal do not depend on how many there are (but with batch norm, which is refused).
        best_in_seconds, best_in_examples: instead of a goal, the lowest validation loss after so much training.
        seed: which block of seeds.
        timing: seconds per step in a loop of your own (`StepMeter.report()`); default: a profile's.
        again: measure anew where the store has the answer already; stored trials are still used.
        on: as in `study`; the profile is this machine's, so the cluster's nodes should be like it.
        store, report, draw, checkpoint_seconds, listen: as in `study`.

    Returns: the advice, as in `--json`. Raises BatchscopeError with one sentence.
    """
    hear: Listener = listen or (lambda kind, details: None)
    question = _question(budget, objective, price, memory_limit, devices, seed, best_in_seconds, best_in_examples)
    check_devices(task, devices)
    if devices > 1 and timing is not None:
        raise UsageError(
            "expected no timing of your own loop with several devices, whose seconds are those of Batchscope's loop: "
            "leave timing out, or devices"
        )
    if on is not None:
        check_cluster(task, on)
    with drawing_from(0):  # a notebook keeps its random numbers
        asked = profiling.ask(task, memory_limit=memory_limit, seed=seed)
        with open_store(store) as opened:
            opened.remember_task(asked.task.name, asked.checked.fingerprint, asked.checked.components)
            data, advice_id = _stored(opened, asked, question, timing) if not again else (None, "")
            if data is None:
                if timing is not None:
                    profile = timed_elsewhere(asked, timing)
                else:
                    profile, _ = profiling.found_or_measured(opened, asked, hear)
                scaling = _scaling(opened, asked, question, profile, hear) if devices > 1 else None
                run = Decision(opened, asked, question, profile, Path(store), checkpoint_seconds, hear, on, scaling)
                data = run.run()
                advice_id = opened.save_advice(data)
    result = worded(analyse_advice(data))
    if draw:
        path = report or default_path(store, f"{asked.task.name}-advice", advice_id)
        result = drawn(result, path, write_advice, hear)
    return result


def _question(
    budget: float,
    objective: str,
    price: float | None,
    memory_limit: int | None,
    devices: int,
    seed: int,
    best_in_seconds: float | None,
    best_in_examples: int | None,
) -> AdviceQuestion:
    """What can be refused before the task is looked at."""
    if not isinstance(devices, int) or isinstance(devices, bool) or devices < 1:
        raise UsageError(f"expected a number of devices from 1 up, got {devices!r}: write --devices 2")
    if not isinstance(budget, (int, float)) or not math.isfinite(budget) or not budget > 0:
        raise UsageError(f"expected a budget in reference runs above 0, got {budget!r}: write --budget 10")
    if objective not in OBJECTIVES:
        raise UsageError(f"expected an objective of {', '.join(OBJECTIVES)}, got {objective!r}: write --objective time")
    if price is not None and not (isinstance(price, (int, float)) and math.isfinite(price) and price > 0):
        raise UsageError(f"expected a price of a device for an hour above 0, got {price!r}: write --price 2.5")
    if best_in_seconds is not None and best_in_examples is not None:
        raise UsageError("expected one of --best-in and --best-in-examples, got both: leave one out")
    if best_in_seconds is not None and not (math.isfinite(best_in_seconds) and best_in_seconds > 0):
        raise UsageError(f"expected --best-in as seconds above 0, got {best_in_seconds!r}: write --best-in 600")
    if best_in_examples is not None and not (isinstance(best_in_examples, int) and best_in_examples > 0):
        raise UsageError(
            f"expected a number of examples above 0, got {best_in_examples!r}: write --best-in-examples 1000000"
        )
    if objective != "time" and (best_in_seconds is not None or best_in_examples is not None):
        raise UsageError(
            f"expected no --objective beside --best-in, got {objective!r}: the lowest validation loss is the objective"
        )
    if budget < 1 and (best_in_seconds is not None or best_in_examples is not None):
        raise UsageError(f"expected a budget of at least 1 run with --best-in, got {budget!r}: write --budget 10")
    objective = "examples" if best_in_examples is not None else objective
    return AdviceQuestion(
        float(budget), objective, price, memory_limit, devices, seed, best_in_seconds, best_in_examples
    )


def _scaling(
    store: Store, asked: profiling.Asked, question: AdviceQuestion, profile: ProfileData, hear: Listener
) -> ScalingPass:
    """Seconds on 1, 2, 4 ... and `devices` devices, at the batch sizes of the profile."""
    norms = replica_norms(asked.task)
    if norms:
        raise CannotAnswer(
            f"task {asked.task.name!r}: expected a model without batch norm for several devices, it has {len(norms)} "
            "such layers, which would see a part of the batch each: leave --devices out"
        )
    if asked.reference is None or profile.timing is None:
        raise CannotAnswer(
            "expected a task file and a profile of it for several devices, got neither: leave --devices out"
        )
    counts = [n for k in range(question.devices.bit_length()) if (n := 2**k) < question.devices]
    sizes = [t.batch_size for t in profile.timing.timings]
    request = scaling.ask(asked.reference, [*counts, question.devices], sizes, None, question.devices, question.seed)
    return scaling.found_or_measured(store, request, hear)[0].timing


def price_advice(task: Task | str, *, store: str | Path = "batchscope.db", **asked: Any) -> dict[str, Any]:
    """The plan of `recommend(task, **asked)` as plain data; nothing is trained, a few steps of the task are timed."""
    question = _question(**(ASKED | asked))
    profile = price_profile(task, memory_limit=question.memory_limit, seed=question.seed)
    with drawing_from(0):
        request = profiling.ask(task, memory_limit=question.memory_limit, seed=question.seed)
        reference = None
        if Path(store).exists():
            with open_store(store, read_only=True) as opened:
                reference = reference_in(opened, request.checked.fingerprint)
        own = request.task
        seconds = seconds_per_example(own) * question.budget * (reference or own.budget_examples)
    most = math.floor(question.budget * (reference or own.budget_examples))
    known = "" if reference is not None else " (the reference run is not measured yet: if it takes its whole budget)"
    return {
        "task": own.name,
        "batch_sizes": profile["batch_sizes"],
        "budget": question.budget,
        "at_most": {
            "examples": most,
            "reference_runs": question.budget,
            "seconds": seconds + profile["at_most"]["seconds"],
            "bytes": ADVICE_BYTES + profile["at_most"]["bytes"],
        },
        "sentences": [
            f"{own.name}: the reference run at batch size {own.batch_size} and learning rate {own.lr:g}, then runs at "
            f"the batch sizes {profile['batch_sizes'][0]} to {profile['batch_sizes'][-1]} that would change the "
            "decision most, and the best point once more.",
            f"At most {question.budget:g} reference runs, {most:,} examples{known}, about {spelled(seconds)}; "
            f"seconds and memory are measured first, about {spelled(profile['at_most']['seconds'])} at most.",
        ],
    }


def _stored(
    store: Store, asked: profiling.Asked, question: AdviceQuestion, timing: TimingPass | None
) -> tuple[AdviceData | None, str]:
    """The newest advice that answers the same question."""
    for advice_id, data in store.advices(asked.checked.fingerprint):
        same = timing is None or data.profile.timing == timing
        if data.question == question and same:
            return data, advice_id
    return None, ""


def timed_elsewhere(asked: profiling.Asked, timing: TimingPass) -> ProfileData:
    """A meter's seconds as a profile that knows nothing of memory."""
    task = asked.task
    return ProfileData(
        task=task.name,
        fingerprint=asked.checked.fingerprint,
        train_size=task.train_size,
        own_batch_size=task.batch_size,
        conditions=timing.conditions,
        unit=task.unit,
        timing=timing,
        memory_limit=asked.memory_limit,
        seed=asked.seed,
    )
