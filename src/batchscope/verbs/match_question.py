"""What was `match` asked, and can it be answered? Batch sizes, remedies and budgets, before anything is trained."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from batchscope.analysis.target import HOLDS_FOR
from batchscope.errors import TaskError, UsageError
from batchscope.records import NO_REMEDY, MatchQuestion
from batchscope.remedies.base import all_remedies, by_name
from batchscope.remedies.growing_batch import RULES, GrowingBatch
from batchscope.sweep.plan import default_cadence, seeds_of, tuning_seeds_of
from batchscope.task import Task, load_task
from batchscope.training.checks import check_batch_sizes
from batchscope.verbs.request import prepare

SPEEDUP = 16  # times the own batch size, where none is given (the issue of large batches begins about there; a guess)
MOST_DOUBLINGS = 2  # of the ladder, above the largest batch size asked for
LEAST_LOOKS = 12  # evaluations of a run, below which the ladder does not go up (a guess)
TRIED_ON = 2  # with the large batch throughout, that the ladder takes with it; the best other and the plain one besides


@dataclass(frozen=True)
class Matching:
    """A match as asked for, checked against the task."""

    task: Task
    reference: str | None  # None: a Task object, which runs in this process
    fingerprint: str
    components: dict[str, str]
    metrics: tuple[str, ...]
    question: MatchQuestion
    largest: int  # batch size that the ladder may come to

    def told_of(self, names: Sequence[str]) -> dict[str, Any]:
        """What `MatchData` says of each remedy: what it changes and costs, and where it is from."""
        remedies = {name: by_name(name) for name in names}
        return {
            "costs": {name: remedy.cost for name, remedy in remedies.items()},
            "titles": {name: remedy.changes for name, remedy in remedies.items()},
            "sources": {name: remedy.sources for name, remedy in remedies.items()},
        }


def default_remedies() -> tuple[str, ...]:
    """All that are known, the growing batch by each of its rules; the plain large batch first.

    What trains longer is not among them: it would cost as many times as much as the others, and has to be asked for.
    """
    known = [*all_remedies(), *(GrowingBatch(rule=rule) for rule in RULES)]
    names = dict.fromkeys(remedy.name for remedy in known if "training length" not in remedy.sets)
    return tuple(sorted(names, key=lambda name: name != NO_REMEDY))


def ask_match(
    task: Task | str,
    *,
    batch_size: int | Sequence[int] | None = None,
    speedup: float | None = None,
    remedies: Sequence[str] | None = None,
    seeds: int = 5,
    confirm: int | None = 4,
    ladder: bool = True,
    epochs: float | None = None,
    devices: Sequence[int] = (1,),
    seed: int = 0,
    budget: float | None = None,
) -> Matching:
    """Checked; see `match`. Raises UsageError, or TaskError for a task that cannot be measured."""
    if batch_size is not None and speedup is not None:
        raise UsageError("expected a batch size or a speed-up, got both: leave one out")
    if confirm is not None and (not isinstance(confirm, int) or isinstance(confirm, bool) or confirm < 1):
        raise UsageError(f"expected a number of remedies to confirm from 1 up, got {confirm!r}: write --confirm 4")
    if epochs is not None and not 0 < epochs < math.inf:
        raise UsageError(f"expected epochs above 0, got {epochs!r}: write --epochs 20, or leave it out")
    names, counts = _named(remedies), _counts(devices)
    loaded = load_task(task) if isinstance(task, str) else task
    given = list(batch_size) if isinstance(batch_size, Sequence) else [batch_size] if batch_size is not None else None
    first = given if given is not None or not isinstance(loaded, Task) else [min(loaded.batch_size, loaded.train_size)]
    checked = prepare(loaded, batch_sizes=first, policy="tuned", seeds=seeds, seed=seed, budget=budget)
    own = loaded.batch_size
    sizes = tuple(given if given is not None else [_default_size(loaded, speedup)])
    _check_sizes(loaded, sizes)
    examples = loaded.budget_examples if epochs is None else round(epochs * loaded.train_size)
    if examples < HOLDS_FOR * max(sizes):
        enough = math.ceil(10 * HOLDS_FOR * max(sizes) / loaded.train_size) / 10
        raise UsageError(
            f"expected runs of at least {HOLDS_FOR} batches of {max(sizes)}, after each of which a goal has to hold, "
            f"got {examples} examples: write --epochs {enough:g}, or a smaller batch size"
        )
    largest = max(sizes)
    for _ in range(MOST_DOUBLINGS if ladder else 0):
        largest = 2 * largest if _may_climb_to(loaded, 2 * largest, examples) else largest
    question = MatchQuestion(
        batch_sizes=tuple(int(size) for size in sizes),
        own_batch_size=own,
        own_learning_rate=float(loaded.lr),
        remedies=names,
        seeds=seeds_of(seed, seeds),
        race_seeds=tuning_seeds_of(seed),
        budget_examples=examples,
        cadence_examples=max(default_cadence(loaded.train_size, examples), largest),
        confirm=confirm,
        ladder=ladder,
        devices=counts,
        budget=budget,
    )
    fingerprint, components = checked.checked.fingerprint, checked.checked.components
    reference = task if isinstance(task, str) else None
    return Matching(loaded, reference, fingerprint, components, checked.checked.metrics, question, largest)


def can_train(task: Task, size: int) -> bool:
    """Whether the model can be trained at that batch size: batch norm cannot where a last batch has one example."""
    try:
        check_batch_sizes(task, [size])
    except (TaskError, UsageError):
        return False
    return True


def _may_climb_to(task: Task, size: int, examples: int) -> bool:
    """Whether the ladder may, with runs of so many examples.

    Evaluations are a batch apart there, and so they are at every batch size.
    """
    return size <= task.train_size and LEAST_LOOKS * size <= examples


def _check_sizes(task: Task, sizes: Sequence[int]) -> None:
    """Larger than the baseline's, and such as the data and the model can take."""
    own, most = task.batch_size, task.train_size
    for size in sizes:
        if not own < size <= most:
            instead = f"write --batch-size {min(2 * own, most)}" if own < most else "lower the task's batch_size"
            raise UsageError(
                f"expected a batch size above the task's own {own}, which is the baseline's, and up to the {most} "
                f"training examples of {task.name!r}, got {size}: {instead}"
            )
    check_batch_sizes(task, sizes)


def _default_size(task: Task, speedup: float | None) -> int:
    """`speedup` times the task's own batch size; by default 16 times, at most a quarter of the data."""
    if speedup is not None:
        if not 1 < speedup < math.inf:
            raise UsageError(f"expected a speed-up above 1, got {speedup!r}: write --speedup 16")
        return round(speedup * task.batch_size)
    times = SPEEDUP
    while times > 2 and times * task.batch_size > task.train_size // 4:
        times //= 2
    return times * task.batch_size


def _named(remedies: Sequence[str] | None) -> tuple[str, ...]:
    """Names as remedies write them themselves, the plain one first. Raises UsageError for an unknown one."""
    names = default_remedies() if remedies is None else [by_name(text).name for text in remedies]
    return tuple(dict.fromkeys([NO_REMEDY, *names]))


def _counts(devices: Sequence[int]) -> tuple[int, ...]:
    for count in devices:
        if not isinstance(count, numbers.Integral) or isinstance(count, bool) or count < 1:
            raise UsageError(f"expected numbers of devices from 1 up, got {count!r}: write --devices 1,8")
    return tuple(sorted({1, *(int(count) for count in devices)}))
