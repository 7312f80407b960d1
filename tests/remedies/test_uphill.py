"""Two passes in one step: they begin alike, and one pass is all that anything else in the model sees."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from naive_sharpness import cross_entropy, gradients, naive_gradient
from runs import TOY
from torch import nn

from batchscope.remedies import sam
from batchscope.remedies.base import Remedy
from batchscope.remedies.sam import Asam, Sam, asam_loss, sam_loss
from batchscope.task import Batch
from batchscope.training.loop import Evaluator
from batchscope.training.step import evaluate
from toys import CPU, SIZE, examples, mlp, toy


class Drawing(nn.Module):
    """Layers whose pass draws, from all three global generators, or begins where the last one left."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(5, 8)), nn.BatchNorm1d(8), nn.Dropout(0.5)
        )
        self.last, self.seen = nn.Linear(8, 3), []
        self.register_buffer("replaced", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.layers(x) * (1 + random.random() + float(np.random.rand()))
        self.replaced = self.replaced + 1
        self.seen.append(hidden.detach() == 0)
        return self.last(hidden) + 0.1 * self.replaced


def states() -> tuple:
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), kind, keys.tolist(), rest


def seeded() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)


@pytest.mark.parametrize("loss", [sam_loss, asam_loss])
def test_both_passes_begin_alike_and_leave_what_one_leaves(loss) -> None:
    model = Drawing()
    plain, batch = copy.deepcopy(model), examples(SIZE)
    weights = [p.detach().clone() for p in model.parameters()]
    kept = model.replaced
    seeded()
    cross_entropy(plain, batch).backward()
    after = states()
    seeded()
    loss(cross_entropy, model, batch, rho=1e-9).backward()  # hardly moved: the gradient is the plain one
    assert states() == after
    assert torch.equal(model.seen[0], model.seen[1])
    assert 0 < float(model.seen[0].float().mean()) < 1
    for a, b in zip(gradients(model), gradients(plain), strict=True):
        torch.testing.assert_close(a, b)
    for (name, a), b in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b), name
    assert (float(kept), float(model.replaced)) == (0, 1)
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


@pytest.mark.parametrize("remedy", [Sam(rho=2.0), Asam(rho=2.0)], ids=lambda r: r.name)
def test_under_autocast_the_weights_that_it_keeps_cast_are_dropped(remedy: Remedy) -> None:
    """With a radius that bfloat16 sees."""
    torch.manual_seed(0)
    model, batch = mlp(), examples(SIZE)
    theirs = copy.deepcopy(model)

    def in_bf16(model: nn.Module, batch: Batch) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return cross_entropy(model, batch)

    def watched(model: nn.Module, batch: Batch) -> torch.Tensor:
        output = model(batch[0])
        output.register_hook(lambda _: outside.append(not torch.is_autocast_enabled("cpu")))
        return torch.nn.functional.cross_entropy(output, batch[1])

    outside: list[bool] = []
    expected = naive_gradient(in_bf16, theirs, batch, remedy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = remedy.loss_at(watched, model, batch)
        again = cross_entropy(model, batch)
    loss.backward()
    assert outside == [True, True]  # a backward pass has no autocast of its own
    for a, b in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-3)
    assert torch.equal(again, in_bf16(model, batch))
    assert loss > 1.05 * again


def test_evaluations_and_passes_without_gradients_are_plain() -> None:
    torch.manual_seed(0)
    task, model = toy(), mlp()
    for remedy in (Sam(), Asam()):
        applied, valid = remedy.apply(task, TOY), Evaluator(task, CPU).valid
        assert evaluate(applied, model, valid) == evaluate(task, model, valid)
        assert applied.batch_loss(model, task.train) > task.batch_loss(model, task.train)
        with torch.no_grad():
            assert torch.equal(applied.batch_loss(model, task.train), task.batch_loss(model, task.train))


def test_a_compiled_step_compiles_what_the_two_passes_call(monkeypatch) -> None:
    graphs = []

    def quickly(function):
        return torch.compile(function, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)

    monkeypatch.setattr(sam, "compiled", quickly)
    torch.compiler.reset()
    applied, model = Sam().apply(toy(), TOY), mlp()
    theirs, batch = copy.deepcopy(model), examples(SIZE)
    loss = quickly(applied.batch_loss)
    for _ in range(3):
        model.zero_grad()
        loss(model, batch).backward()
    assert len(graphs) == 1
    assert "cross_entropy" in graphs[0].code
    for a, b in zip(gradients(model), naive_gradient(cross_entropy, theirs, batch, Sam()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
