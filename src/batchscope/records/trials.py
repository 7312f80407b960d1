"""What was run, where, and what came of it? Conditions, arms, stop rules, trials and their traces."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field

from batchscope.records.values import Goal, Measured

OUTCOMES = ("reached", "not_reached", "diverged", "failed")
ENDINGS = ("goal", "patience", "cap", "budget", "divergence", "failure")
POLICIES = ("held", "tuned")
SINCE_LAYOUT_8 = ("own_batch_size", "own_learning_rate")  # of an arm


@dataclass(frozen=True)
class Engine:
    """Switches of the training engine: how a step is computed, never what. Each is set in `training/engine.py`."""

    channels_last: bool = False  # images and convolution weights with the channels innermost
    compiled: bool = False  # the model through torch.compile
    graphed: bool = False  # CUDA: steps of full batches are captured once and replayed
    prefetched: bool = False  # CUDA: the next batch is copied while this one computes


@dataclass(frozen=True)
class Conditions:
    """Where and how something was measured. Two measurements compare only where these agree."""

    device: str = "cpu"  # "cpu" or "cuda"
    device_name: str = ""  # the processor's or the card's own name
    precision: str = "fp32"
    threads: int = 1
    world_size: int = 1
    deterministic: bool = True
    allocator: str = "default"
    platform: str = ""
    versions: dict[str, str] = field(default_factory=dict)  # torch, python, batchscope
    engine: Engine = Engine()


@dataclass(frozen=True)
class Arm:
    """Everything that defines a trial but its seed."""

    batch_size: int  # global, examples
    learning_rate: float
    micro_batch_size: int | None = None  # None: the whole batch in one pass
    replicas: int = 1
    precision: str = "fp32"
    remedy: str = "none"
    own_batch_size: int | None = None  # what a remedy scales from: the baseline's; None without one
    own_learning_rate: float | None = None  # likewise


@dataclass(frozen=True)
class StopRule:
    """When a trial ends. Everything is counted in examples or epochs, never in seconds."""

    budget_examples: int  # the trial ends at the first step boundary at or past this; schedules follow it
    cadence_examples: int  # evaluations at the first step boundary at or past each multiple of this
    patience_epochs: float | None = None  # epochs without a lower validation loss (minimum improvement 0)
    goal: Goal | None = None  # end once this goal is crossed (it held at three evaluations running)
    cap_examples: int | None = None  # end here, schedule unchanged: past it a search trial can no longer win


@dataclass(frozen=True)
class TrialSpec:
    """What to run: an arm, a seed and a stop rule. Its key names it in the store."""

    arm: Arm
    seed: int
    stop: StopRule

    def key(self) -> str:
        """16 hex digits that name this specification: equal for equal specifications, on any machine."""
        plain = dataclasses.asdict(self)
        for name in SINCE_LAYOUT_8:  # unset, they leave every key what it was before there were such fields
            if plain["arm"][name] is None:
                del plain["arm"][name]
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Evaluation:
    """One line of a trial's trace: what was known after `step` steps and `examples` examples."""

    step: int
    examples: int
    train: dict[str, float]  # loss and metrics, eval mode, no augmentation, fixed subset
    validation: dict[str, float]  # loss and metrics, eval mode, the whole validation set
    distance: float  # |w - w0|_2 over trainable parameters, w0 as initialised (or loaded)
    update_norm: float  # |w_t - w_(t-1)|_2 of the step just before; nan at step 0


@dataclass(frozen=True)
class TrialResult:
    """What a finished training run says: how it ended, its trace, and what it cost."""

    outcome: str  # one of OUTCOMES
    ended_by: str  # one of ENDINGS
    reason: str  # one sentence; empty where the outcome says it all
    steps: int
    examples: int
    trace: tuple[Evaluation, ...]
    initial_norm: float = 0.0  # |w0|_2
    test: dict[str, float] | None = None  # at the best-validation weights; reported, never selected on
    seconds: float = 0.0  # a clock reading, shared machine: progress only, never a timing
    noise_scale: Measured | None = None  # B_simple along the run, where it was measured beside it (`measure.beside`)


@dataclass(frozen=True)
class TrialRecord:
    """One stored trial: what was asked, what came of it, where, and at which attempt."""

    spec: TrialSpec
    result: TrialResult
    conditions: Conditions
    attempts: int = 1
