"""Which tasks and models cannot be trained by SAM: said before anything is trained."""

from __future__ import annotations

import dataclasses
import math
import random
from types import SimpleNamespace

import pytest
import torch
from naive_sharpness import cross_entropy
from runs import TOY
from torch import nn

from batchscope.errors import CannotAnswer
from batchscope.remedies.base import Remedy
from batchscope.remedies.sam import Asam, Sam, sam_loss
from batchscope.remedies.uphill import refuse
from batchscope.task import Batch
from toys import examples, mlp, mlp_with_state, toy


def drawing_step(model: nn.Module, batch: Batch) -> torch.Tensor:
    return cross_entropy(model, (batch[0] + torch.rand_like(batch[0]) + random.random(), batch[1]))


OWN = torch.Generator()


def own_generator(model: nn.Module, batch: Batch) -> torch.Tensor:
    return cross_entropy(model, (batch[0] + torch.randn(batch[0].shape, generator=OWN), batch[1]))


class Indexed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(3, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.table((x[:, 0] > 0).long()))


def hooked(post: bool = False) -> nn.Module:
    model = mlp()
    model.seen = []
    if post:
        model[0].weight.register_post_accumulate_grad_hook(lambda p: model.seen.append(1))
    else:
        model[0].weight.register_hook(lambda g: 2 * g)
    return model


@pytest.mark.parametrize("remedy", [Sam(), Asam()], ids=lambda r: r.name)
def test_why_not(remedy: Remedy) -> None:
    for task in (toy(), toy(model=mlp_with_state), toy(step=drawing_step)):
        assert remedy.why_not(task, TOY) is None
    assert "the same twice" in (remedy.why_not(toy(step=own_generator), TOY) or "")
    assert "sparse=False" in (remedy.why_not(toy(model=Indexed), TOY) or "")
    assert "register_hook" in (remedy.why_not(toy(model=hooked), TOY) or "")
    assert "shard=True" in (remedy.why_not(toy(shard=True), TOY) or "")
    assert "synchronised" in (remedy.why_not(toy(batch_norm="synchronised"), TOY) or "")
    head = toy(optimizer=lambda model, lr: torch.optim.SGD(model[2].parameters(), lr=lr))
    assert "'0.weight'" in (remedy.why_not(head, TOY) or "")
    for rho in (0.0, -1.0, math.inf, math.nan):
        assert "above 0" in (dataclasses.replace(remedy, rho=rho).why_not(toy(), TOY) or "")
    assert "at least 0" in (Asam(eta=-1.0).why_not(toy(), TOY) or "")


def test_an_iterator_of_batches_is_new_data() -> None:
    others = iter(examples(100)[0].split(2))

    def step(model: nn.Module, batch: Batch) -> torch.Tensor:
        return model(next(others)).square().mean()

    assert "step function" in (Sam().why_not(toy(step=step), TOY) or "")


def test_why_not_leaves_no_mark() -> None:
    before = torch.get_rng_state(), random.getstate()
    Sam().why_not(toy(model=mlp_with_state, step=drawing_step), TOY)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_what_cannot_make_two_passes_is_refused(monkeypatch) -> None:
    with pytest.raises(CannotAnswer, match="sparse"):
        sam_loss(cross_entropy, Indexed(), examples(4))
    with pytest.raises(CannotAnswer, match=r"register_hook, got one at '0\.weight'"):
        sam_loss(cross_entropy, hooked(), examples(4))
    model = hooked(post=True)  # at accumulation, it sees one gradient
    sam_loss(cross_entropy, model, examples(4)).backward()
    assert model.seen == [1]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(CannotAnswer, match="captured"):
        refuse(mlp(), {"w": SimpleNamespace(is_cuda=True)})
