"""Is it the gradient noise? Runs that begin as one batch size and go on as the other, and runs with noise added.

Between the smallest and the largest batch size b and B that were measured in a policy, held where it is among them (the
same learning rate), for each of up to SEEDS of the seeds that both have:

    warm start        b for a share of its way to its lowest validation loss, then B; and B, then b
    noise injected    B all the way, its gradient with the noise of b

Each goes on as the study's trials do, with their patience and a whole budget, from a fresh optimiser, and is measured
where they are: no spectrum, no pictures.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from batchscope.errors import CannotAnswer
from batchscope.measure.point import Probes
from batchscope.records import TrialRecord, to_plain
from batchscope.store.base import Store
from batchscope.verbs.points import Asked

SEEDS = 3  # as many as a study reports
SHARES = (0.25, 0.5, 1.0)  # of the first batch size's epochs to its lowest validation loss

Jobs = dict[str, tuple[str, dict[str, Any], str]]


def cause_jobs(store: Store, asked: Asked, probes: Probes) -> Jobs:
    """name -> (kind, details, mark of what it depends on besides)."""
    if asked.settings is None or asked.study_id is None:
        raise CannotAnswer("expected a study for --causes, got checkpoints: runs go on from a study's own trials")
    s, policies = asked.settings, [w.about.policy for w in asked.wanted]
    policy = "held" if "held" in policies else policies[0]
    measured = {(w.about.batch_size, w.about.seed) for w in asked.wanted if w.about.policy == policy}
    arms: dict[int, dict[int, TrialRecord]] = {}
    for trial in store.trials(asked.study_id, policy):
        size, seed = trial.spec.arm.batch_size, trial.spec.seed
        if (size, seed) in measured:
            arms.setdefault(size, {})[seed] = trial
    small, large = arms[min(arms)], arms[max(arms)]
    seeds = [seed for seed in s.seeds if seed in small and seed in large][:SEEDS]
    if len(arms) < 2 or not seeds:
        raise CannotAnswer(
            "expected two batch sizes with a common seed for --causes, none are measured: leave it out, or ask for more"
        )
    common = {
        "at": asked.wanted[0].weights["which"],
        "policy": policy,
        "patience": s.patience_epochs,
        "probes": to_plain(dataclasses.replace(probes, pictured=False)),
    }
    jobs: Jobs = {}
    for seed in seeds:
        one, other = small[seed], large[seed]
        for first, then in ((one, other), (other, one)):
            whole = _epochs_to_lowest(first, s.train_size)
            for share in SHARES:
                jobs |= _warm_start(first, then, share, share * whole, common)
        jobs |= _noise_injected(one, other, common)
    return jobs


def _warm_start(first: TrialRecord, then: TrialRecord, share: float, epochs: float, common: dict[str, Any]) -> Jobs:
    before, after = first.spec.arm.batch_size, then.spec.arm.batch_size
    when = f"after {100 * share:g} % ({epochs:.3g} epochs)"
    label = f"warm start, {before:,} to {after:,} {when}, seed {then.spec.seed}"
    return _job("warm start", label, first, then, {**common, "share": share, "epochs": epochs})


def _noise_injected(first: TrialRecord, then: TrialRecord, common: dict[str, Any]) -> Jobs:
    noise, size = first.spec.arm.batch_size, then.spec.arm.batch_size
    label = f"noise injected, {size:,} with that of {noise:,}, seed {then.spec.seed}"
    return _job("noise injected", label, first, then, {**common, "share": 0.0, "epochs": 0.0})


def _job(how: str, label: str, first: TrialRecord, then: TrialRecord, more: dict[str, Any]) -> Jobs:
    details = {"how": how, "label": label, "first": to_plain(first.spec), "then": to_plain(then.spec), **more}
    return {label: ("continued", details, "")}


def _epochs_to_lowest(trial: TrialRecord, train_size: int) -> float:
    """Up to its lowest validation loss; a last batch that went beyond the trial's budget does not count."""
    lowest = min(trial.result.trace, key=lambda e: e.validation["loss"])
    return min(lowest.examples, trial.spec.stop.budget_examples) / train_size
