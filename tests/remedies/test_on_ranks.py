"""Two replicas with remedies train as one process does: warm-up, LAMB's norms and the average are of whole weights."""

from __future__ import annotations

import pytest
from runs import TOY, spec_of

from batchscope.records import TrialResult
from batchscope.remedies.base import by_name
from batchscope.training.distributed import Replicas
from batchscope.training.loop import train
from ranks import on_ranks
from toys import CPU, toy

NAMES = ("linear scaling + LAMB + weight averaging", "linear scaling + LARS + label smoothing")


def trials(replicas: Replicas | None) -> list[TrialResult]:
    """One of each; 46 examples in batches of 16 leave a short last one."""
    results = []
    for name in NAMES:
        remedy = by_name(name)
        task = remedy.apply(toy(), TOY)
        spec = spec_of(task, TOY, remedy, budget=6 * 46, cadence=46)
        results.append(train(task, spec, device=CPU, replicas=replicas))
    return results


@pytest.mark.processes
def test_two_replicas_train_as_one_process() -> None:
    alone, ranks = trials(None), on_ranks(2, trials)
    for number, expected in enumerate(alone):
        assert expected.outcome == "not_reached", expected.reason
        assert repr(ranks[0][number].trace) == repr(ranks[1][number].trace)
        for ours, theirs in zip(ranks[0][number].trace, expected.trace, strict=True):
            assert ours.examples == theirs.examples
            assert ours.validation["loss"] == pytest.approx(theirs.validation["loss"], rel=1e-4)
            assert ours.distance == pytest.approx(theirs.distance, rel=1e-3)
