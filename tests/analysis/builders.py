"""What would a study's data look like if every truth in it were known?

`synthetic_study` draws the records of a whole study (held, tuned, tuning, timing) from closed forms:

    tuned   steps to goal  S(B) = s_min (1 + b_crit / B_eff) exp(u_B + e_{B,s}),  u ~ N(0, tau^2), e ~ N(0, sigma^2)
    held    examples to goal E(B) = 2 b_crit s_min (1 + B / held_scale), and a loss floor that rises with log B
    time    seconds per step t(B) = overhead + per_example * B, with 1 % noise per round

A trial's validation loss falls as  L(x) = floor + (initial - floor) / (1 + k x^2),  x = examples / examples to goal,
with k such that L(1) = goal, and rises again past x = 3: so crossing, best evaluation and patience all have plausible
places. The numbers are made up to look like a small image task; nothing here is a measurement.
"""

from __future__ import annotations

import math

import numpy as np

from batchscope.records import (
    Arm,
    Conditions,
    Evaluation,
    Goal,
    StepTiming,
    StopRule,
    StudyData,
    StudySettings,
    TimingPass,
    TrialRecord,
    TrialResult,
    TrialSpec,
    TunedChoice,
)

CONDITIONS = Conditions(device_name="made up", threads=1, versions={"torch": "0", "python": "3", "batchscope": "0"})
TRAIN_SIZE, CADENCE, PATIENCE_EPOCHS, INITIAL_LOSS, GOAL_LOSS = 1024, 512, 8.0, 2.3, 0.36


def boundary(examples: float, batch_size: int, train_size: int = TRAIN_SIZE) -> tuple[int, int]:
    """(step, examples) of the first step boundary at or past `examples`; each epoch's last short batch is kept."""
    epochs, rest = divmod(examples, train_size)
    steps_in = math.ceil(rest / batch_size)
    step = int(epochs) * math.ceil(train_size / batch_size) + steps_in
    return step, int(epochs) * train_size + min(train_size, steps_in * batch_size)


def evaluation(
    step: int, examples: int, validation: float, train: float | None = None, distance: float = 1.0, **metrics: float
) -> Evaluation:
    """One evaluation from its losses; `metrics` go to the validation side."""
    train = validation if train is None else train
    return Evaluation(step, examples, {"loss": train}, {"loss": validation, **metrics}, distance, 0.01)


def trace_of(
    to_goal: float,
    batch_size: int,
    learning_rate: float,
    floor: float,
    stop: StopRule,
    rng: np.random.Generator,
    noise: float = 0.002,
    diverges_at: float = math.inf,
) -> tuple[tuple[Evaluation, ...], str]:
    """The trace of one made-up trial and how it ended; `to_goal` is in examples."""
    scale = max((INITIAL_LOSS - floor) / max(GOAL_LOSS - floor, 0.02) - 1.0, 1.0)
    wobble = 1.0 + noise * rng.standard_normal()
    trace: list[Evaluation] = []
    best, best_at = math.inf, 0
    for k in range(stop.budget_examples // stop.cadence_examples + 1):
        step, examples = boundary(k * stop.cadence_examples, batch_size)
        if examples >= diverges_at:
            return tuple(trace), "divergence"
        x = examples / to_goal
        train = floor * 0.8 * wobble / (1 + 0.3 * x) + (INITIAL_LOSS - 0.8 * floor) / (1 + scale * x * x)
        valid = floor + (INITIAL_LOSS - floor) / (1 + scale * x * x) + 0.1 * floor * max(0.0, math.log(max(x, 1) / 3))
        valid *= wobble * (1.0 + noise / 4 * rng.standard_normal()) if k else 1.0
        distance = 3.0 * math.sqrt(learning_rate) * math.log1p(step)
        trace.append(
            Evaluation(
                step,
                examples,
                {"loss": train, "accuracy": math.exp(-train)},
                {"loss": valid, "accuracy": math.exp(-valid)},
                distance,
                math.nan if k == 0 else 0.01,
            )
        )
        if valid < best:
            best, best_at = valid, examples
        if stop.patience_epochs is not None and examples - best_at >= stop.patience_epochs * TRAIN_SIZE:
            return tuple(trace), "patience"
    return tuple(trace), "budget"


def record_of(
    batch_size: int, learning_rate: float, seed: int, stop: StopRule, trace: tuple[Evaluation, ...], ended_by: str
) -> TrialRecord:
    """A stored trial around a trace; the outcome follows from the trace and the goal of the made-up task."""
    met = [e.validation["loss"] <= GOAL_LOSS for e in trace]
    reached = any(all(met[k : k + 3]) for k in range(1, len(met) - 2))
    outcome = {"divergence": "diverged", "failure": "failed"}.get(ended_by, "reached" if reached else "not_reached")
    reason = {"failure": "the worker was killed", "divergence": "the loss was not finite"}.get(ended_by, "")
    last = trace[-1] if trace else None
    result = TrialResult(
        outcome,
        ended_by,
        reason,
        last.step if last else 0,
        last.examples if last else 0,
        trace,
        initial_norm=10.0,
        test={k: v * 1.01 for k, v in last.validation.items()} if last else None,
        seconds=(last.examples if last else 0) * 1e-5,
    )
    return TrialRecord(TrialSpec(Arm(batch_size, learning_rate), seed, stop), result, CONDITIONS)


def timing_pass(
    batch_sizes: tuple[int, ...],
    rng: np.random.Generator,
    overhead: float = 2e-4,
    per_example: float = 4e-6,
    rounds: int = 7,
    drift: float = 0.0,
) -> TimingPass:
    """Seconds per step = overhead + per_example * B, 1 % noise; `drift` slows the machine evenly over the rounds."""
    slow = 1.0 + drift * np.linspace(0.0, 1.0, rounds)
    reference_size = batch_sizes[0]

    def seconds(b: int) -> tuple[float, ...]:
        clean = (overhead + per_example * b) * slow
        return tuple(float(s) for s in clean * np.exp(0.01 * rng.standard_normal(rounds)))

    timings = tuple(StepTiming(b, max(3, 2000 // b), seconds(b), seconds(reference_size)) for b in batch_sizes)
    windows = np.array([w for t in timings for w in t.reference])
    measured = float((windows.max() - windows.min()) / np.median(windows))
    return TimingPass(reference_size, timings, CONDITIONS, measured)


def synthetic_study(
    seed: int = 0,
    n_batch: int = 6,
    seeds: int = 3,
    with_censored: bool = True,
    with_failed: bool = False,
    policies: tuple[str, ...] = ("held", "tuned"),
    with_timing: bool = True,
    s_min: float = 60.0,
    b_crit: float = 40.0,
    held_scale: float = 30.0,
    tau: float = 0.03,
    sigma: float = 0.03,
    budget_epochs: int = 60,
    name: str = "made-up",
    drift: float = 0.0,
) -> StudyData:
    """A whole study's data, obeying known laws. Batch sizes are 8, 16, 32, ...

    `with_censored`: one tuned trial at the largest batch size never reaches, and one held trial there diverges.
    `with_failed`: one held trial at the smallest batch size failed, with a reason.
    """
    rng = np.random.default_rng(seed)
    sizes = tuple(8 * 2**i for i in range(n_batch))
    stop = StopRule(budget_epochs * TRAIN_SIZE, CADENCE, PATIENCE_EPOCHS)
    goal = Goal("loss", at_most=GOAL_LOSS)
    own_rate, seed_numbers = 0.05, tuple(range(seeds))
    settings = StudySettings(
        task=name,
        fingerprint="0123456789abcdef",
        train_size=TRAIN_SIZE,
        goal=goal,
        own_batch_size=sizes[min(2, n_batch - 1)],
        own_learning_rate=own_rate,
        batch_sizes=sizes,
        policies=policies,
        seeds=seed_numbers,
        tuning_seeds=(1000,),
        budget_examples=stop.budget_examples,
        cadence_examples=CADENCE,
        patience_epochs=PATIENCE_EPOCHS,
        workers=2,
        conditions=CONDITIONS,
        metrics=("loss", "accuracy"),
    )
    per_seed = sigma * rng.standard_normal(seeds)  # shared by the policies and sizes: what pairing removes

    def held_trial(b: int, s: int) -> TrialRecord:
        to_goal = 2 * b_crit * s_min * (1 + b / held_scale) * math.exp(per_seed[s] + sigma * rng.standard_normal())
        floor = 0.25 + 0.01 * math.log2(b)
        diverges = 4 * CADENCE if with_censored and b == sizes[-1] and s == 0 else math.inf
        trace, ended = trace_of(to_goal, b, own_rate, floor, stop, rng, diverges_at=diverges)
        if with_failed and b == sizes[0] and s == 0:
            trace, ended = trace[:2], "failure"
        return record_of(b, own_rate, s, stop, trace, ended)

    def tuned_rate(b: int) -> float:
        return own_rate * 2 * b / (b + b_crit)

    def tuned_trial(b: int, s: int, lack_of_fit: float, factor: float = 1.0, number: int | None = None) -> TrialRecord:
        effective = TRAIN_SIZE / math.ceil(TRAIN_SIZE / b)
        noise = per_seed[s] + sigma * rng.standard_normal() if number is None else sigma * rng.standard_normal()
        steps = s_min * (1 + b_crit / effective) * math.exp(lack_of_fit + noise) * (1 + math.log2(factor) ** 2)
        never = with_censored and b == sizes[-1] and s == 0 and number is None
        floor = GOAL_LOSS * 1.05 if never else 0.25 + 0.002 * math.log2(b)
        trace, ended = trace_of(steps * effective, b, factor * tuned_rate(b), floor, stop, rng)
        return record_of(b, factor * tuned_rate(b), s if number is None else number, stop, trace, ended)

    held = tuple(held_trial(b, s) for b in sizes for s in range(seeds)) if "held" in policies else ()
    tuned: tuple[TrialRecord, ...] = ()
    tuning: tuple[TrialRecord, ...] = ()
    choices: tuple[TunedChoice, ...] = ()
    if "tuned" in policies:
        unfit = {b: tau * rng.standard_normal() for b in sizes}
        tuned = tuple(tuned_trial(b, s, unfit[b]) for b in sizes for s in range(seeds))
        tuning = tuple(tuned_trial(b, 0, 0.0, f, number=1000) for b in sizes for f in (0.5, 1.0, 2.0))
        choices = tuple(
            TunedChoice(
                b,
                tuned_rate(b),
                "examples to goal",
                tuple(
                    (t.spec.arm.learning_rate, float(t.result.examples) if t.result.outcome == "reached" else None)
                    for t in tuning
                    if t.spec.arm.batch_size == b
                ),
            )
            for b in sizes
        )
    timing = timing_pass(sizes, rng, drift=drift) if with_timing else None
    return StudyData(settings, held, tuned, tuning, choices, timing, 2 * b_crit * s_min * 2.0, True)
