"""Accumulation gives the big batch's gradient; evaluation gives the whole set's means and leaves no mark."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from batchscope.training import batches as module
from batchscope.training.batches import FixedBatches
from batchscope.training.step import evaluate, make_model, make_step
from toys import CPU, accuracy, examples, mlp, mlp_with_state, toy

VOCABULARY, LENGTH = 6, 7


def tokens(size):
    """Inputs and targets of a next-token task in which each example counts from none to all of its tokens."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(VOCABULARY, (size, LENGTH), generator=generator)
    y = torch.randint(VOCABULARY, (size, LENGTH), generator=generator)
    y[torch.arange(LENGTH) >= torch.arange(size)[:, None] % (LENGTH + 1)] = -100
    return x, y


def language_model():
    return nn.Sequential(nn.Embedding(VOCABULARY, 4), nn.Linear(4, VOCABULARY))


def token_loss(output, target):
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def gradient(task, batch, micro=None, precision="fp32"):
    """The gradient that one step sees, and the weights after it."""
    torch.manual_seed(0)
    model = task.model()
    make_step(task, model, task.optimizer(model, 0.1), micro_batch_size=micro, precision=precision)(batch)
    return torch.cat([p.grad.flatten() for p in model.parameters()]), torch.cat(
        [p.detach().flatten() for p in model.parameters()]
    )


@pytest.mark.parametrize("micro", [1, 2, 3, 5, 7, 10, 11])
def test_accumulated_gradient_is_the_big_batchs(micro):
    """11 examples in micro-batches of any size: ragged, uneven token counts (one example counts none), custom step."""
    x, y = examples(11)
    xt, yt = tokens(11)
    fields = {"model": language_model, "train": (xt, yt), "valid": (xt, yt), "unit": "tokens", "metrics": {}}

    def dict_step(model, batch):
        return token_loss(model(batch["ids"]), batch["labels"])

    cases = [
        (toy(), (x, y)),
        (toy(clip_norm=0.01), (x, y)),
        (toy(**fields, loss=token_loss), (xt, yt)),
        (toy(**fields, loss=None, step=dict_step), {"ids": xt, "labels": yt}),
    ]
    for task, batch in cases:
        for got, expected in zip(gradient(task, batch, micro), gradient(task, batch), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


def test_gradient_equals_autograd_and_clipping_its_formula():
    x, y = examples(8)
    torch.manual_seed(0)
    model = mlp()
    weights = list(model.parameters())
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(model(x), y), weights)])
    start = torch.cat([p.detach().flatten() for p in weights])
    plain = {"optimizer": lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr)}
    assert torch.equal(gradient(toy(**plain), (x, y))[0], exact)
    clipped, after = gradient(toy(**plain, clip_norm=0.1), (x, y))
    torch.testing.assert_close(clipped, exact * 0.1 / exact.norm(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(after, start - 0.1 * clipped)


def test_clipping_counts_only_what_the_optimiser_updates():
    """Parameters outside the optimiser are never zeroed: their gradients pile up and must not shrink the steps."""
    task = toy(optimizer=lambda model, lr: torch.optim.SGD(model[2].parameters(), lr=lr), clip_norm=0.05)
    torch.manual_seed(0)
    model = mlp()
    step = make_step(task, model, task.optimizer(model, 0.1))
    for _ in range(20):
        step(examples(8))
    norm = torch.cat([p.grad.flatten() for p in model[2].parameters()]).norm().item()
    assert norm == pytest.approx(0.05, rel=1e-4)


def test_evaluation_is_the_mean_over_the_whole_set(monkeypatch):
    """Chunks of 6 over 20 examples: the short last one weighs less; tokens weigh by their count."""
    monkeypatch.setattr(module, "EVALUATION_BATCH", 6)
    x, y = examples(20)
    model = mlp()
    values = evaluate(toy(), model, FixedBatches(toy(), (x, y), None, CPU))
    with torch.no_grad():
        assert values == {
            "loss": pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-6),
            "accuracy": pytest.approx(accuracy(model(x), y).item(), rel=1e-6),
        }
    xt, yt = tokens(20)
    yt[12:18] = -100  # a chunk without any token that counts
    task = toy(model=language_model, train=(xt, yt), valid=(xt, yt), unit="tokens", metrics={}, loss=token_loss)
    model = language_model()
    values = evaluate(task, model, FixedBatches(task, (xt, yt), None, CPU))
    assert values["loss"] == pytest.approx(token_loss(model(xt), yt).item(), rel=1e-6)
    nothing = FixedBatches(task, (xt[12:18], yt[12:18]), None, CPU)
    assert math.isnan(evaluate(task, model, nothing)["loss"])


def test_evaluate_returns_what_the_users_own_function_does():
    task = toy(
        loss=None,
        metrics={},
        goal=None,
        step=lambda m, b: m(b[0]).pow(2).mean(),
        evaluate=lambda m, b: {"loss": len(b[0]), "f1": 1},
    )
    values = evaluate(task, mlp(), [examples(8), examples(4)])
    assert values == {"loss": pytest.approx((64 + 16) / 12), "f1": 1}


def test_a_loss_that_is_not_finite_keeps_metrics_from_seeing_the_outputs():
    def refuses(output, target):
        raise AssertionError("seen")

    task = toy(metrics={"sees": refuses}, loss=lambda output, target: output.sum() * math.nan)
    assert all(math.isnan(v) for v in evaluate(task, mlp(), [examples(8)]).values())


def test_evaluation_restores_modes_and_generators():
    """A frozen batch norm stays frozen; a module that acts on a change of mode hears of it."""
    heard = []

    class Listens(nn.Module):
        def train(self, mode=True):
            heard.append(mode)
            return super().train(mode)

        def forward(self, x):
            return x

    model = nn.Sequential(mlp_with_state(), Listens())
    model[0][1].eval()
    before, state = [m.training for m in model.modules()], torch.get_rng_state()
    heard.clear()
    noisy = toy(loss=lambda output, target: F.cross_entropy(output + torch.randn_like(output), target), metrics={})
    first, second = (evaluate(noisy, model, [examples(8)]) for _ in range(2))
    assert first == second
    assert [m.training for m in model.modules()] == before
    assert not model[0][1].training
    assert heard == [False, True] * 2
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(IndexError):
        evaluate(noisy, model, [(torch.zeros(2, 5), torch.tensor([0, 7]))])  # the user's own error
    assert [m.training for m in model.modules()] == before


def test_a_model_comes_in_training_mode_with_what_the_task_froze():
    def frozen():
        model = mlp_with_state()
        model[1].eval()
        return model

    assert [m.training for m in make_model(toy(model=frozen), CPU)] == [True, False, True, True, True]
    assert make_model(toy(model=lambda: mlp_with_state().eval()), CPU)[3].training


def test_bf16_computes_in_bf16_and_keeps_fp32_weights():
    exact, rounded = (gradient(toy(), examples(8), precision=p)[0] for p in ("fp32", "bf16"))
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).norm() < 0.02 * exact.norm()  # bfloat16 keeps 8 bits: 0.4 % per operation
