"""Is it the gradient noise? Runs that begin as one batch size and go on as the other, and runs with noise added.

Between the smallest and the largest batch size b and B of a policy that the study has at the same learning rate (held,
where it has it), for each of up to SEEDS of its seeds:

    warm start        b for a share of its way to the lowest validation loss, then B; and B, then b
    noise injected    B all the way, its gradient with the noise of b

Each goes on as the study's trials do, with their patience and what is left of their budget, from a fresh optimiser, and
is measured where its validation loss was lowest: no spectrum, no pictures.
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


def cause_jobs(store: Store, asked: Asked, probes: Probes) -> dict[str, tuple[str, dict[str, Any], str]]:
    """name -> (kind, details, mark of what it depends on besides)."""
    if asked.settings is None or asked.study_id is None:
        raise CannotAnswer("expected a study for --causes, got checkpoints: runs go on from a study's own trials")
    s = asked.settings
    policy = "held" if "held" in s.policies else s.policies[0]
    trials = store.trials(asked.study_id, policy)
    arms = {b: {t.spec.seed: t for t in trials if t.spec.arm.batch_size == b} for b in s.batch_sizes}
    small, large = arms[s.batch_sizes[0]], arms[s.batch_sizes[-1]]
    seeds = [seed for seed in s.seeds if seed in small and seed in large][:SEEDS]
    if len(s.batch_sizes) < 2 or not seeds:
        raise CannotAnswer("expected two batch sizes with a common seed for --causes, the study has none: leave it out")
    jobs = {}
    for seed in seeds:
        one, other = small[seed], large[seed]
        for first, then in ((one, other), (other, one)):
            for share in SHARES:
                epochs = share * _epochs_to_lowest(first, s.train_size)
                jobs |= _job("warm start", first, then, epochs, s.patience_epochs, probes)
        jobs |= _job("noise injected", one, other, 0.0, s.patience_epochs, probes)
    return jobs


def _job(
    kind: str, first: TrialRecord, then: TrialRecord, epochs: float, patience: float, probes: Probes
) -> dict[str, tuple[str, dict[str, Any], str]]:
    from_size, size, seed = first.spec.arm.batch_size, then.spec.arm.batch_size, then.spec.seed
    name = f"{kind}, {from_size:,} to {size:,} after {epochs:.3g} epochs, seed {seed}"
    details = {
        "how": kind,
        "first": to_plain(first.spec),
        "then": to_plain(then.spec),
        "epochs": epochs,
        "patience": patience,
        "label": name,
        "probes": to_plain(dataclasses.replace(probes, pictured=False)),
    }
    return {name: ("continued", details, "")}


def _epochs_to_lowest(trial: TrialRecord, train_size: int) -> float:
    lowest = min(trial.result.trace, key=lambda e: e.validation["loss"])
    return lowest.examples / train_size
