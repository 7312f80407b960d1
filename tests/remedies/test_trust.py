"""LARS and LAMB, step by step, against the papers' formulas; who is left out of the trust ratio, and who is refused."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from naive_optimizers import lamb as naive_lamb
from naive_optimizers import lars as naive_lars
from runs import DIGITS, TOY, resumes, trains_digits
from torch import nn

from batchscope.errors import CannotAnswer
from batchscope.remedies.base import by_name, together
from batchscope.remedies.lamb import RATE, Lamb, lamb
from batchscope.remedies.lars import Lars, lars
from batchscope.remedies.scaling import LinearScaling, SquareRootScaling
from batchscope.remedies.trust import excluded, groups_of
from batchscope.tasks import digits
from toys import mlp_with_state, toy

STEPS = 12


class Mixed(nn.Module):
    """A matrix, a matrix of large norm, one that begins at 0, a bias, and a layer norm with a matrix for its gain."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Linear(4, 3), nn.Linear(3, 3, bias=False)
        self.zero = nn.Parameter(torch.zeros(2, 2))
        self.norm = nn.LayerNorm((2, 3))
        with torch.no_grad():
            self.large.weight.mul_(50)
        self.double()


def flat() -> nn.Module:
    """The same without the layer norm."""
    model = Mixed()
    del model.norm
    return model


def adamw(model, lr):
    weights = list(model.parameters())
    groups = [{"params": weights[:2]}, {"params": weights[2:], "lr": 2 * lr, "weight_decay": 0.3}]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=0.1)


def gradients(parameter: torch.Tensor, number: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return [torch.randn(parameter.shape, generator=generator, dtype=torch.float64) for _ in range(STEPS)]


def held_to(model: nn.Module, optimizer: torch.optim.Optimizer, naive: dict, lrs: list[float] | None = None) -> None:
    """Step after step, every parameter is where the naive one is."""
    given = {name: gradients(p, number) for number, (name, p) in enumerate(model.named_parameters())}
    twins = {name: naive[name](p.detach().clone(), given[name]) for name, p in model.named_parameters()}
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(STEPS):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate if lrs is None else rate * lrs[step]
        for name, p in model.named_parameters():
            p.grad = given[name][step].clone()
        optimizer.step()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), next(twins[name]), rtol=1e-6, atol=1e-7, msg=f"{name}, {step}")


def test_lars_step_by_step() -> None:
    torch.manual_seed(0)
    model = flat()
    optimizer = lars(model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.8, weight_decay=0.05), trust=0.02)

    def twin(out):
        return lambda start, given: naive_lars(start, given, 0.5, 0.8, 0.05, 0.02, out)

    out = {"small.bias"}
    held_to(model, optimizer, {name: twin(name in out) for name, _ in model.named_parameters()})


@pytest.mark.parametrize("foreach", [True, False])
def test_lamb_step_by_step(foreach: bool) -> None:
    """Bias correction, decay inside the ratio, phi, weights of norm 0, groups with their own rate, a changing rate."""
    torch.manual_seed(0)
    model = Mixed()
    optimizer = lamb(model, adamw(model, 0.01))
    for group in optimizer.param_groups:
        group["foreach"] = foreach
    lrs = [1 + 0.1 * t for t in range(STEPS)]
    second = {name for number, (name, _) in enumerate(model.named_parameters()) if number >= 2}
    out = {"small.bias", "norm.weight", "norm.bias"}

    def twin(name):
        rate, decay = (0.02, 0.3) if name in second else (0.01, 0.1)
        scaled = [rate * factor for factor in lrs]
        return lambda start, given: naive_lamb(start, given, scaled, (0.9, 0.999), 1e-6, decay, name in out, 10.0)

    assert float(model.large.weight.detach().norm()) > 10
    held_to(model, optimizer, {name: twin(name) for name, _ in model.named_parameters()}, lrs)
    assert all(group["betas"] == (0.9, 0.999) for group in optimizer.param_groups)


def test_who_is_left_out() -> None:
    model = Mixed()
    names = {name for name, p in model.named_parameters() if p in excluded(model)}
    assert names == {"small.bias", "norm.weight", "norm.bias"}
    cut = list(groups_of(adamw(model, 0.1), model))
    decays = [(group["lr"], group["weight_decay"], out, len(group["params"])) for group, out in cut]
    parameters = [name for name, _ in model.named_parameters()]
    assert parameters[:2] == ["zero", "small.weight"]
    assert decays == [(0.1, 0.1, False, 2), (0.2, 0.3, False, 1), (0.2, 0.0, True, 3)]


def test_who_is_refused() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, 3, sparse=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.words(x).mean(1)

    words = (torch.arange(40).view(20, 2) % 9, torch.arange(20) % 3)
    sparse = toy(model=Words, train=words, valid=words)
    for remedy in (Lars(), Lamb()):
        assert "sparse one for 'words.weight'" in (remedy.why_not(sparse, TOY) or "")
        assert "shard=True" in (remedy.why_not(toy(shard=True), TOY) or "")
        assert remedy.why_not(toy(model=mlp_with_state), TOY) is None
    assert "clip_norm" in (Lars().why_not(toy(clip_norm=1.0), TOY) or "")
    assert Lamb().why_not(toy(clip_norm=1.0), TOY) is None
    normed = toy(
        model=lambda: nn.Sequential(nn.Unflatten(1, (1, 5)), nn.LayerNorm((1, 5)), nn.Flatten(), nn.Linear(5, 3))
    )
    assert "(1, 5)" in (Lars().why_not(normed, TOY) or "")


def test_a_rule_scales_the_optimisers_own_rate() -> None:
    own = RATE * math.sqrt(TOY.own_batch_size / 512)
    assert together(LinearScaling(), Lamb()).apply(toy(), TOY).lr == pytest.approx(8 * own)
    assert together(SquareRootScaling(), Lamb()).apply(toy(), TOY).lr == pytest.approx(Lamb().apply(toy(), TOY).lr)
    assert together(Lars(), LinearScaling()).apply(toy(), TOY).lr == pytest.approx(8 * 10 * TOY.own_learning_rate)
    assert together(Lamb(), LinearScaling()).name == "linear scaling + LAMB"
    assert by_name("LAMB + linear scaling") == together(LinearScaling(), Lamb())
    assert together(Lamb(), LinearScaling()).sources == ("goyal2017", "krizhevsky2014", "you2019")


def test_two_optimisers_are_refused() -> None:
    with pytest.raises(CannotAnswer, match="both set the optimiser"):
        together(Lars(), Lamb())


@pytest.mark.parametrize("name", ["LARS", "LAMB", "linear scaling + LAMB", "LARS (trust=0.002)"])
def test_it_trains_digits_and_resumes(name: str, tmp_path) -> None:
    remedy = by_name(name)
    resumes(remedy, toy(model=mlp_with_state, schedule=torch.optim.lr_scheduler.CosineAnnealingLR), tmp_path)
    trains_digits(remedy)


def test_lamb_keeps_the_loss_that_digits_is_evaluated_by() -> None:
    own = digits.task()
    applied = Lamb().apply(own, DIGITS)
    assert applied.loss is F.cross_entropy
    assert dataclasses.replace(applied, optimizer=own.optimizer, lr=own.lr) == own
