"""What was asked for, and can it be measured? Checked before any compute is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchscope.errors import UsageError
from batchscope.records import StopRule
from batchscope.sweep.plan import default_batch_sizes, default_cadence, seeds_of, tuning_seeds_of
from batchscope.task import Task, load_task
from batchscope.training.checks import CheckedTask, check_batch_sizes, check_task
from batchscope.training.distributed import refuse
from batchscope.training.engine import PLAIN


@dataclass(frozen=True)
class Request:
    """A study as asked for, checked against the task; nothing has been run."""

    task: Task
    reference: str | None  # None: a Task object, which runs in this process
    checked: CheckedTask
    batch_sizes: tuple[int, ...]
    policies: tuple[str, ...]
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    patience_epochs: float
    budget: float | None  # reference runs
    devices: int = 1
    keep_weights: bool = False

    @property
    def stop(self) -> StopRule:
        """When a reported trial ends."""
        budget = self.task.budget_examples
        return StopRule(budget, default_cadence(self.task.train_size, budget), self.patience_epochs)


def prepare(
    task: Task | str,
    *,
    batch_sizes: Sequence[int] | None = None,
    policy: str = "both",
    seeds: int = 3,
    patience: float = 5.0,
    seed: int = 0,
    budget: float | None = None,
    devices: int = 1,
    keep_weights: bool = False,
) -> Request:
    """Check a task and what is asked of it, before any training. See `study` for the arguments."""
    policies = {"held": ("held",), "tuned": ("tuned",), "both": ("held", "tuned")}.get(policy)
    if policies is None:
        raise UsageError(f'expected policy "held", "tuned" or "both", got {policy!r}')
    if not isinstance(seeds, int) or seeds < 1:
        raise UsageError(f"expected at least one seed, got {seeds!r}: write --seeds 3")
    if seeds > 800:
        raise UsageError(f"expected at most 800 seeds, got {seeds}: the seeds of different studies would meet")
    if not isinstance(seed, int) or not 0 <= seed < 10**12:
        raise UsageError(f"expected a seed from 0 up, got {seed!r}: write --seed 0")
    if not patience > 0:
        raise UsageError(f"expected patience in epochs above 0, got {patience!r}: write --patience 5")
    if budget is not None and not budget > 0:
        raise UsageError(
            f"expected a budget in reference runs above 0, got {budget!r}: write --budget 50, or leave it out"
        )
    reference = task if isinstance(task, str) else None
    loaded = load_task(task) if isinstance(task, str) else task
    if not isinstance(loaded, Task):
        raise UsageError(f"expected a task reference or a bs.Task, got {type(loaded).__name__}: write study('digits')")
    checked = check_task(loaded)
    refuse(loaded, loaded.batch_size, devices, PLAIN)  # the reference run is at its own batch size
    if keep_weights and loaded.shard and devices > 1:
        raise UsageError(
            f"task {loaded.name!r}: expected whole weights to keep, got shard=True on {devices} devices, of which each "
            "has a piece: use --devices 1, or leave --keep-weights out"
        )
    asked = batch_sizes if batch_sizes is not None else default_batch_sizes(loaded.train_size, devices)
    sizes = check_batch_sizes(loaded, asked, devices)
    own_seeds, own_tuning = seeds_of(seed, seeds), tuning_seeds_of(seed)
    return Request(
        loaded,
        reference,
        checked,
        sizes,
        policies,
        own_seeds,
        own_tuning,
        float(patience),
        budget,
        devices,
        keep_weights,
    )
