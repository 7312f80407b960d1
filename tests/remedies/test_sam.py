"""SAM and ASAM against two explicit passes, step by step, and on a quadratic; with micro-batches, replicas, others."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from naive_sharpness import cross_entropy, gradients, naive_step
from pytorch_optimizer import SAM as LibrarySam
from runs import TOY, resumes, spec_of, trains_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from batchscope.errors import CannotAnswer
from batchscope.remedies.base import Remedy, by_name, together
from batchscope.remedies.ghost_batch_norm import GhostBatchNorm
from batchscope.remedies.sam import Asam, Sam, asam_loss, is_bias, perturbation, sam_loss
from batchscope.remedies.scaling import LinearScaling
from batchscope.tasks import digits
from batchscope.training.batches import make_source
from batchscope.training.distributed import Replicas
from batchscope.training.loop import Evaluator, train
from batchscope.training.seeding import seed_everything
from batchscope.training.step import evaluate, make_step
from ranks import on_ranks
from toys import CPU, SIZE, examples, mlp, mlp_with_state, sgd, toy

BOTH = pytest.mark.parametrize("remedy", [Sam(), Asam(), Asam(rho=1.5, eta=0.0)], ids=lambda r: r.name)


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


class Recurrent(nn.Module):
    """It keeps its weights in a list of its own, beside its parameters; one layer is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last, self.unused = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 3), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.lstm(x[:, None])[0][:, -1])


@BOTH
@pytest.mark.parametrize("make", [mlp, mlp_with_state, Recurrent])
def test_step_by_step_as_two_explicit_passes(make, remedy: Remedy) -> None:
    torch.manual_seed(0)
    ours = make().double()
    theirs = copy.deepcopy(ours)
    x, y = examples(SIZE)
    steps = [torch.optim.SGD(m.parameters(), lr=0.3, momentum=0.9, weight_decay=0.01) for m in (ours, theirs)]
    for k in range(6):
        batch = (x[7 * k : 7 * k + 7].double(), y[7 * k : 7 * k + 7])
        torch.manual_seed(k)
        steps[0].zero_grad()
        remedy.loss_at(cross_entropy, ours, batch).backward()
        steps[0].step()
        torch.manual_seed(k)
        naive_step(cross_entropy, theirs, steps[1], [batch], remedy)
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)
    assert all(
        (a.grad is None) == (b.grad is None) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )


def test_step_by_step_as_the_library() -> None:
    ours = mlp()
    theirs, batch = copy.deepcopy(ours), examples(SIZE)
    mine = torch.optim.SGD(ours.parameters(), lr=0.3, momentum=0.9)
    its = LibrarySam(theirs.parameters(), torch.optim.SGD, rho=0.2, lr=0.3, momentum=0.9)

    def closure() -> torch.Tensor:
        its.zero_grad()
        loss = cross_entropy(theirs, batch)
        loss.backward()
        return loss

    for _ in range(5):
        mine.zero_grad()
        sam_loss(cross_entropy, ours, batch, 0.2).backward()
        mine.step()
        closure()
        its.step(closure)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_on_a_quadratic() -> None:
    """f = w'Hw / 2: the gradient uphill is H (w + eps), with eps in closed form."""
    h, model = torch.diag(torch.tensor([1.0, 4.0, 9.0])), nn.Linear(3, 1, bias=False)
    w = model.weight.detach().clone().flatten()
    for loss, scale in ((sam_loss, torch.ones(3)), (asam_loss, w.abs() + 0.01)):
        model.zero_grad()
        at = loss(lambda m, batch: (m.weight @ h @ m.weight.T).sum() / 2, model, None, rho=0.3)
        at.backward()
        eps = 0.3 * scale**2 * (h @ w) / (scale * (h @ w)).norm()
        assert float((eps / scale).norm()) == pytest.approx(0.3)
        torch.testing.assert_close(model.weight.grad.flatten(), h @ (w + eps))
        torch.testing.assert_close(at.detach(), (w + eps) @ h @ (w + eps) / 2)
        assert torch.equal(model.weight.flatten(), w)


def test_asam_does_not_see_a_rescaling() -> None:
    """A rectifier's weights times a and 1 / a: the same function, and with eta = 0 the same loss uphill; not SAM's."""
    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
    other, batch = copy.deepcopy(model), examples(SIZE)
    with torch.no_grad():
        other[0].weight.mul_(4)
        other[2].weight.div_(4)
    here, there = (float(asam_loss(cross_entropy, m, batch, eta=0.0).detach()) for m in (model, other))
    assert here == pytest.approx(there, rel=1e-5)
    here, there = (float(sam_loss(cross_entropy, m, batch, 0.5).detach()) for m in (model, other))
    assert here != pytest.approx(there, rel=1e-3)


def test_biases_are_known_by_their_names() -> None:
    """Of all layers with weights that are not a bias, torch's names say "weight": as the authors' code has it."""
    layers = [nn.Linear(2, 2), nn.MultiheadAttention(4, 2, kdim=3), nn.LSTM(2, 2), nn.BatchNorm1d(2), nn.PReLU()]
    model = nn.ModuleDict({f"weight_bias_{k}": layer for k, layer in enumerate(layers)})
    for name, _ in model.named_parameters():
        assert is_bias(name) == ("weight" not in name.rpartition(".")[2])


def test_a_gradient_of_zeros_moves_nothing() -> None:
    model = mlp()
    for loss in (sam_loss, asam_loss):
        model.zero_grad()
        loss(lambda m, batch: 0 * m(batch[0]).sum(), model, examples(4)).backward()
        assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients(model))


@BOTH
def test_micro_batches_have_a_neighbourhood_each(remedy: Remedy) -> None:
    task = toy()
    ours, batch = mlp(), tuple(t[:14] for t in task.train)
    theirs = copy.deepcopy(ours)
    step = make_step(remedy.apply(task, TOY), ours, sgd(ours, 0.3), micro_batch_size=4)
    other = sgd(theirs, 0.3)
    parts = list(zip(*(t.split(4) for t in batch), strict=True))
    for _ in range(3):
        step(batch)
        naive_step(cross_entropy, theirs, other, parts, remedy)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_trial_in_bf16_ends() -> None:
    applied = Sam().apply(toy(precision="bf16"), TOY)
    spec = spec_of(applied, TOY, Sam(), budget=3 * SIZE, cadence=SIZE)
    result = train(applied, dataclasses.replace(spec, arm=dataclasses.replace(spec.arm, precision="bf16")), device=CPU)
    assert result.outcome == "not_reached", result.reason
    assert math.isfinite(result.trace[-1].train["loss"])


@pytest.mark.parametrize("name", ["SAM", "ASAM"])
def test_it_trains_digits_and_resumes(name: str, tmp_path) -> None:
    resumes(by_name(name), toy(model=mlp_with_state), tmp_path)
    trains_digits(by_name(name))


def test_together_with_linear_scaling_and_ghost_batch_norm(tmp_path) -> None:
    remedy = together(Sam(rho=0.1), LinearScaling(), GhostBatchNorm())
    assert by_name(remedy.name) == remedy
    resumes(remedy, toy(model=normed), tmp_path)
    own = digits.task()
    features = own.train[0].flatten(1).shape[1]

    def with_norm() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(features, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))

    trains_digits(remedy, dataclasses.replace(own, model=with_norm))


def test_together_with_lamb_and_weight_averaging(tmp_path) -> None:
    """Evaluations, and batch norm's statistics at the average, see no neighbourhood."""
    remedy = by_name("LAMB + ASAM + weight averaging")
    assert remedy.why_not(toy(model=normed), TOY) is None
    resumes(remedy, toy(model=normed), tmp_path)
    task, model = toy(model=normed), remedy.apply(toy(model=normed), TOY).model()
    plain = by_name("LAMB + weight averaging").apply(task, TOY)
    valid = Evaluator(task, CPU).valid
    assert evaluate(remedy.apply(task, TOY), model, valid) == evaluate(plain, model, valid)


def test_perturbation_has_the_radius() -> None:
    weights = dict(mlp().named_parameters())
    gradient = {name: torch.randn_like(p) for name, p in weights.items() if name != "2.bias"}
    eps = perturbation(weights, gradient, 0.05)
    assert set(eps) == set(gradient)
    assert math.hypot(*(float(e.norm()) for e in eps.values())) == pytest.approx(0.05)


# --- on two ranks ---


NAMES = ("SAM (rho=0.3)", "ASAM")  # far enough to tell a neighbourhood of the whole batch from one of each part


def trials(replicas: Replicas) -> list[list[float]]:
    """Validation losses after each epoch; 46 examples in batches of 16 leave a short last one."""
    with pytest.raises(CannotAnswer, match="does not wrap"):
        sam_loss(cross_entropy, DistributedDataParallel(mlp()), examples(4))
    losses = []
    for name in NAMES:
        remedy = by_name(name)
        task = remedy.apply(toy(), TOY)
        spec = spec_of(task, TOY, remedy, budget=4 * SIZE, cadence=SIZE)
        result = train(task, spec, device=CPU, replicas=replicas)
        assert result.outcome == "not_reached", result.reason
        losses.append([line.validation["loss"] for line in result.trace])
    return losses


def naive_trial(remedy: Remedy, parts: int) -> list[float]:
    """The same in one process, with parts of a batch one after the other."""
    task = toy()
    seed_everything(1)
    model, valid = task.model(), Evaluator(task, CPU).valid
    optimizer, source = sgd(model, TOY.own_learning_rate), make_source(task, 1, CPU)
    losses = [evaluate(task, model, valid)["loss"]]
    for epoch in range(4):
        for x, y in source.epoch(epoch, TOY.batch_size):
            cuts = [slice(r * len(y) // parts, (r + 1) * len(y) // parts) for r in range(parts)]
            naive_step(cross_entropy, model, optimizer, [(x[cut], y[cut]) for cut in cuts], remedy)
        losses.append(evaluate(task, model, valid)["loss"])
    return losses


@pytest.mark.processes
def test_two_replicas_have_a_neighbourhood_each() -> None:
    ranks = on_ranks(2, trials)
    assert ranks[0] == ranks[1]
    for name, losses in zip(NAMES, ranks[0], strict=True):
        assert losses == pytest.approx(naive_trial(by_name(name), 2), rel=1e-5)
        assert losses[-1] != pytest.approx(naive_trial(by_name(name), 1)[-1], rel=1e-4)
