"""Are the kept weights those of the trial, interrupted or not, and does keeping them change nothing?"""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from batchscope.errors import StoreError
from batchscope.records import Evaluation, TrialResult
from batchscope.testing.examples import bits
from batchscope.training.batches import FixedBatches
from batchscope.training.checkpoint import Checkpoint
from batchscope.training.distributed import Replicas
from batchscope.training.loop import Evaluator, norm_of_difference, train
from batchscope.training.step import evaluate, make_model
from batchscope.training.weights import KeptWeights, Weights, bytes_kept, load_weights, save_weights
from ranks import on_ranks
from toys import CPU, SIZE, Augmented, examples, mlp_with_state, toy, trial

STATEFUL = toy(model=mlp_with_state)
OTHERS = {
    "no test set": STATEFUL,
    "test set": toy(model=mlp_with_state, test=examples(9)),
    "data set": toy(model=mlp_with_state, train=Augmented()),
}


def still(result: TrialResult) -> Any:
    return bits(dataclasses.replace(result, seconds=0.0))


def weights_of(task: Any, spec: Any, **more: Any) -> tuple[TrialResult, Weights]:
    kept: list[Weights] = []
    result = train(task, spec, device=CPU, keep=kept.append, **more)
    (weights,) = kept
    return result, weights


def same(one: Weights, other: Weights) -> bool:
    def flat(w: Weights) -> list[Any]:
        return [w.initial, w.best.state, w.last.state]

    pairs = zip(flat(one), flat(other), strict=True)
    return [(s.step, s.examples) for s in (one.best, one.last)] == [
        (s.step, s.examples) for s in (other.best, other.last)
    ] and all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


@pytest.mark.parametrize("name", OTHERS)
def test_they_are_what_the_trace_was_measured_at_and_change_nothing(name: str) -> None:
    """A learning rate that is too large at the end, so that the best evaluation is neither the first nor the last."""
    task, spec = OTHERS[name], trial(lr=0.4, budget=6 * SIZE)
    result, weights = weights_of(task, spec)
    assert still(result) == still(train(task, spec, device=CPU))
    losses = [line.validation["loss"] for line in result.trace]
    best = result.trace[losses.index(min(losses))]
    assert (weights.best.step, weights.best.examples) == (best.step, best.examples)
    assert (weights.last.step, weights.last.examples) == (result.steps, result.examples)
    assert 0 < best.step < result.steps

    for at, line in ((weights.best, best), (weights.last, result.trace[-1])):
        model = make_model(task, CPU)
        model.load_state_dict(at.state)
        found = evaluate(task, model, FixedBatches(task, task.valid, None, CPU))
        assert found == line.validation
        named = dict(model.named_parameters())
        assert weights.initial.keys() == named.keys()
        assert norm_of_difference([named[k].detach() for k in named], [weights.initial[k] for k in named]) == (
            line.distance
        )
    assert norm_of_difference(list(weights.initial.values()), None) == result.initial_norm


class Stopped(BaseException):
    """What a kill does."""


@pytest.mark.parametrize("kept_before", [True, False])
def test_interrupted_and_resumed_they_are_the_same_bits(tmp_path: Path, kept_before: bool) -> None:
    """Also from the checkpoint of a run that kept nothing, which does not know the best weights."""
    spec = trial(lr=0.4, budget=6 * SIZE)
    evaluator = Evaluator(STATEFUL, CPU)
    _, truth = weights_of(STATEFUL, spec, evaluator=evaluator)
    last = truth.best.examples + 40  # two evaluations past the best: it lies before the checkpoint

    def stop(line: Evaluation) -> None:
        if line.examples >= last:
            raise Stopped

    checkpoint = Checkpoint(tmp_path / "a.pt", seconds=0)
    before = {"keep": lambda weights: None} if kept_before else {}
    with pytest.raises(Stopped):
        train(STATEFUL, spec, device=CPU, evaluator=evaluator, checkpoint=checkpoint, on_evaluation=stop, **before)
    torch.manual_seed(99)
    np.random.seed(99)
    assert checkpoint.path.exists()
    lines: list[Evaluation] = []
    result, resumed = weights_of(STATEFUL, spec, evaluator=evaluator, checkpoint=checkpoint, on_evaluation=lines.append)
    assert (len(lines) < len(result.trace)) == kept_before
    assert same(resumed, truth)


def kept_on(replicas: Replicas) -> tuple[Any, list[Weights]]:
    spec, found = trial(lr=0.4, budget=6 * SIZE), []
    spec = dataclasses.replace(spec, arm=dataclasses.replace(spec.arm, replicas=replicas.size))
    result = train(OTHERS["test set"], spec, device=CPU, replicas=replicas, keep=found.append)
    return [bits(line.validation) for line in result.trace], found


@pytest.mark.processes
def test_of_replicas_the_first_keeps_them() -> None:
    """Each has running statistics of its own; those of rank 0 are evaluated with, and kept."""
    (trace, (weights,)), (other, none) = on_ranks(2, kept_on)
    assert (trace, none) == (other, [])
    model = make_model(OTHERS["test set"], CPU)
    for at in (weights.best, weights.last):
        model.load_state_dict(at.state)
        found = evaluate(OTHERS["test set"], model, FixedBatches(toy(), toy().valid, None, CPU))
        assert bits(found) in trace


def test_a_trial_that_fails_has_none_and_one_that_diverges_has() -> None:
    def broken() -> nn.Module:
        raise ValueError("no")

    assert train(toy(model=broken), trial(), device=CPU, keep=pytest.fail).outcome == "failed"
    result, weights = weights_of(toy(), trial(lr=1e30))
    assert result.outcome == "diverged"
    assert max(float(t.abs().max()) for t in weights.last.state.values()) > 1e6
    assert weights.best.step == 0
    assert all(torch.equal(weights.best.state[k], t) for k, t in weights.initial.items())


def kept(path: Path, task: Any = STATEFUL) -> KeptWeights:
    _, weights = weights_of(task, trial(seed=3))
    where = {"reference": "mine.py:task", "folder": "/there", "path": ("/a", "/b"), "fingerprint": "f" * 16}
    made = KeptWeights(**vars(weights), spec=trial(seed=3), fingerprint="f" * 16, task=where)
    save_weights(path, made)
    return made


def test_the_file_gives_back_everything(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.pt"
    made = kept(path)
    (path.parent / "a.77.tmp").touch()  # what a kill left
    save_weights(path, made)
    assert [p.name for p in path.parent.iterdir()] == ["a.pt"]
    found = load_weights(path)
    assert found is not None
    assert same(found, made)
    assert (found.spec, found.key, found.fingerprint) == (trial(seed=3), trial(seed=3).key(), "f" * 16)
    assert found.task == made.task
    assert abs(path.stat().st_size - bytes_kept(STATEFUL)) < 10_000


def test_a_file_that_is_of_no_use_counts_as_none(tmp_path: Path) -> None:
    kept(tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    for content in (b"", b"PK", whole[: len(whole) // 2]):
        (tmp_path / "a.pt").write_bytes(content)
        assert load_weights(tmp_path / "a.pt") is None
    torch.save({"spec": 1}, tmp_path / "a.pt")
    assert load_weights(tmp_path / "a.pt") is None
    assert load_weights(tmp_path / "none.pt") is None


def test_a_full_disk_or_a_state_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = kept(tmp_path / "a.pt")
    odd = dataclasses.replace(made, last=dataclasses.replace(made.last, state={"odd": lambda: 0}))
    with pytest.raises(StoreError, match="expected a model whose state can be written"):
        save_weights(tmp_path / "a.pt", odd)

    def full(state: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StoreError, match=r"expected to write a trial's weights at .*: free some space"):
        save_weights(tmp_path / "a.pt", made)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
    assert load_weights(tmp_path / "a.pt") is not None
