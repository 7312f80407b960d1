"""Is f the mean loss, are its derivatives f's own, whatever the model, the data and the chunks?"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from naive_hessian import CPU, dense, differences, direction, full_loss, gradient, naive, seeded
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset

from batchscope.errors import CannotAnswer
from batchscope.measure.full_loss import FullLoss
from toys import SIZE, examples, mlp_with_state, toy

VOCABULARY, LENGTH = 7, 5


@pytest.mark.parametrize("chunk", [7, 16, 46, 100])
def test_value_gradient_and_products_whatever_the_chunks(chunk: int) -> None:
    loss, f = full_loss(toy(), chunk=chunk), naive(toy())
    x = loss.point()
    value, slope = loss.gradient(x)
    assert loss.value(x) == pytest.approx(float(f(x)), rel=1e-12)
    assert value == pytest.approx(float(f(x)), rel=1e-12)
    torch.testing.assert_close(slope, gradient(f, x), rtol=1e-10, atol=1e-14)
    vectors = torch.stack([direction(loss.size, k) for k in range(3)])
    torch.testing.assert_close(loss.products(vectors), vectors @ dense(f, x), rtol=1e-10, atol=1e-13)


def test_float32_is_summed_in_float64() -> None:
    plain, exact = full_loss(toy(), double=False), full_loss(toy())
    assert plain.value(exact.point()) == pytest.approx(exact.value(exact.point()), rel=1e-6)
    assert plain.gradient(exact.point())[1].dtype == torch.float64


# --- models ---


class Tied(nn.Module):
    """One weight under two names, a frozen layer, and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.frozen, self.unused = nn.Linear(5, 8, bias=False), nn.Linear(8, 8), nn.Linear(2, 2)
        self.embed_again = self.embed
        self.out = nn.Linear(5, 8, bias=False)
        self.out.weight = self.embed.weight
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.frozen(self.embed(x)).tanh() @ self.out.weight)[:, :3]


def test_tied_frozen_and_unused_weights() -> None:
    task = toy(model=Tied)
    loss, f = full_loss(task), naive(task)
    assert loss.names == ["embed.weight", "unused.weight", "unused.bias"]
    x = loss.point()
    torch.testing.assert_close(loss.gradient(x)[1], gradient(f, x), rtol=1e-10, atol=1e-14)
    hessian = loss.products(torch.eye(loss.size, dtype=torch.float64))
    torch.testing.assert_close(hessian, dense(f, x), rtol=1e-9, atol=1e-12)
    assert not hessian[40:].any()


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, VOCABULARY, (12, LENGTH), generator=generator), torch.arange(12) % 3


class Reader(nn.Module):
    """Tokens through an embedding and a body to three classes."""

    def __init__(self, body: nn.Module, sparse: bool = False) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(VOCABULARY, 4, sparse=sparse), body, nn.Linear(4, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found = self.body(self.embedding(tokens))
        return self.head((found[0] if isinstance(found, tuple) else found).mean(1))


class Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True), 2)


READERS: dict[str, Callable[[], nn.Module]] = {
    "fused attention": lambda: Reader(Attention()),
    "encoder": lambda: Reader(encoder()),
    "lstm": lambda: Reader(nn.LSTM(4, 4, num_layers=2, dropout=0.3, batch_first=True)),
    "gru": lambda: Reader(nn.GRU(4, 4, batch_first=True)),
    "sparse embedding": lambda: Reader(nn.Tanh(), sparse=True),
}


@pytest.mark.parametrize("name", READERS)
def test_kernels_without_a_second_derivative_are_not_used(name: str) -> None:
    task = toy(model=READERS[name], train=texts(), batch_size=4)
    loss = full_loss(task, chunk=5)
    x, v = loss.point(), direction(loss.size)
    slope, curve = differences(loss, x, v)
    product = loss.products(v[None])[0]
    assert float(loss.gradient(x)[1] @ v) == pytest.approx(slope, rel=1e-6, abs=1e-10)
    torch.testing.assert_close(product, curve, rtol=1e-5, atol=1e-9)
    plain = full_loss(task, chunk=5, double=False)
    plain.move(x)
    torch.testing.assert_close(plain.products(v[None])[0], product, rtol=1e-3, atol=1e-6)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d: torch.Tensor) -> torch.Tensor:
        return 2 * d


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Once.apply(x)


def test_what_cannot_be_differentiated_twice_is_said() -> None:
    loss = full_loss(toy(model=lambda: nn.Sequential(nn.Linear(5, 3), Doubled())))
    loss.gradient(loss.point())
    with pytest.raises(CannotAnswer, match="got a function marked @once_differentiable"):
        loss.products(direction(loss.size)[None])
    bags = full_loss(toy(model=lambda: nn.Sequential(nn.EmbeddingBag(VOCABULARY, 3), nn.Tanh()), train=texts()))
    bags.gradient(bags.point())
    with pytest.raises(CannotAnswer, match="can differentiate twice, got"):
        bags.products(direction(bags.size)[None])


def test_a_loss_of_one_precision_only_is_said() -> None:
    weights = torch.ones(3)
    loss = full_loss(toy(loss=lambda output, target: F.cross_entropy(output, target, weight=weights)))
    with pytest.raises(CannotAnswer, match="that can be computed in float64"):
        loss.value(loss.point())


def test_a_loss_of_no_parameter_and_a_linear_one() -> None:
    constant = full_loss(toy(loss=lambda output, target: torch.tensor(2.0)))
    value, slope = constant.gradient(constant.point())
    assert (value, bool(slope.any())) == (2.0, False)
    linear = full_loss(toy(model=lambda: nn.Linear(5, 3), loss=lambda output, target: output.mean()))
    assert not linear.products(direction(linear.size)[None]).any()


# --- batch norm ---


def test_batch_norm_is_one_function_and_its_statistics_stay() -> None:
    model = seeded(toy(model=mlp_with_state))
    before = {name: b.clone() for name, b in model.named_buffers()}
    loss = full_loss(toy(model=mlp_with_state), model)
    assert (loss.normed, loss.examples) == (["1"], 32)  # of 46: the last chunk is not full
    x, v = loss.point(), direction(loss.size)
    slope, curve = differences(loss, x, v)
    assert float(loss.gradient(x)[1] @ v) == pytest.approx(slope, rel=1e-7)
    torch.testing.assert_close(loss.products(v[None])[0], curve, rtol=1e-5, atol=1e-8)
    assert all(torch.equal(b.to(before[name]), before[name]) for name, b in model.named_buffers())
    chunks = [batch for _, batch in loss.chunks()]
    x1, y1 = chunks[0]
    normed = F.batch_norm(model[0](x1), None, None, model[1].weight, model[1].bias, training=True)
    assert len(chunks) == 2
    first = F.cross_entropy(model[4](normed.tanh()), y1)
    torch.testing.assert_close(loss.task.batch_loss(model, chunks[0]), first, rtol=1e-10, atol=0)


def test_frozen_batch_norm_is_no_batch_norm() -> None:
    def frozen() -> nn.Module:
        model = mlp_with_state()
        model[1].eval()
        return model

    task = toy(model=frozen)
    loss = full_loss(task, chunk=16)
    assert (loss.normed, loss.examples) == ([], SIZE)
    assert loss.value(loss.point()) == pytest.approx(float(naive(task)(loss.point())), rel=1e-10)


def test_batch_norm_on_one_example_is_refused() -> None:
    loss = full_loss(toy(model=mlp_with_state), examples=1)
    assert len(loss.point()) == loss.size
    with pytest.raises(CannotAnswer, match="at least 2 examples for batch norm, got 1"):
        loss.value(loss.point())


# --- data and losses ---


class Pairs(Dataset):
    """Dicts; `padded` of the targets do not count."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = (torch.arange(LENGTH) * (index + 1)) % VOCABULARY
        return {"tokens": tokens, "labels": torch.where(torch.arange(LENGTH) < index % 4, tokens, -100)}


def token_model() -> nn.Module:
    return nn.Sequential(nn.Embedding(VOCABULARY, 4), nn.Tanh(), nn.Linear(4, VOCABULARY))


def token_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["labels"].flatten())


def accuracy_of_tokens(model: nn.Module, batch: Any) -> dict[str, float]:
    return {"loss": math.nan, "first": float((model(batch["tokens"])[:, 0].argmax(1) == batch["tokens"][:, 0]).sum())}


@pytest.mark.parametrize("workers", [0, 2])
def test_counted_tokens_in_dicts_of_a_data_set(workers: int) -> None:
    task = toy(
        model=token_model,
        loss=None,
        step=token_loss,
        evaluate=accuracy_of_tokens,
        metrics={},
        train=Pairs(),
        valid=Pairs(),
        unit="tokens",
        num_workers=workers,
        batch_size=2,
    )
    loss = full_loss(task, chunk=3)
    everything = [Pairs()[i] for i in range(10)]
    whole = {k: torch.stack([e[k] for e in everything]) for k in ("tokens", "labels")}
    x = loss.point()
    assert loss.value(x) == pytest.approx(float(token_loss(loss.model, whole).detach()), rel=1e-12)
    assert loss.metrics(x)["loss"] == pytest.approx(loss.value(x), rel=1e-12)
    alone = full_loss(task, chunk=1)  # three of the ten examples have no unit that counts
    torch.testing.assert_close(alone.gradient(x)[1], loss.gradient(x)[1], rtol=1e-10, atol=1e-14)
    v = direction(loss.size)
    torch.testing.assert_close(alone.products(v[None]), loss.products(v[None]), rtol=1e-9, atol=1e-13)


class InPlace(nn.Module):
    """Works on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x.mul_(2).tanh_())


@pytest.mark.parametrize("double", [False, True])
def test_a_model_that_works_on_its_input_in_place(double: bool) -> None:
    x, y = examples(SIZE)
    task = toy(model=InPlace, train=(x.double() if double else x, y))
    model, before = seeded(task).to(task.train[0].dtype), task.train[0].clone()
    loss = full_loss(task, model, double=double)
    values = [loss.value(loss.point()) for _ in range(3)]
    wanted = float(F.cross_entropy(model.out((2 * before).tanh()), y).detach())
    assert values == [values[0]] * 3
    assert values[0] == pytest.approx(wanted, rel=1e-6)
    slope, product = loss.along_gradient(task.train)
    torch.testing.assert_close(slope, loss.gradient(loss.point())[1], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(product, loss.products(slope[None])[0], rtol=1e-4, atol=1e-7)
    assert torch.equal(task.train[0], before)


def drawing(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A loss that draws from all three global generators."""
    noise = torch.rand(()) + float(np.random.rand()) + random.random()
    return F.cross_entropy(output * (1 + noise), target)


def states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_random_losses_draw_the_same_everywhere_and_leave_the_generators() -> None:
    loss, before = full_loss(toy(loss=drawing)), states()
    x, v = loss.point(), direction(loss.size)
    assert loss.value(x) == loss.value(x) == loss.gradient(x)[0] == loss.metrics(x)["loss"]
    slope, _ = differences(loss, x, v)
    assert float(loss.gradient(x)[1] @ v) == pytest.approx(slope, rel=1e-7)
    gradient_of, product = loss.along_gradient(loss.task.train)  # in three chunks, as f is
    torch.testing.assert_close(product, product_of_parts(loss, gradient_of), rtol=1e-9, atol=1e-12)
    assert states() == before


def product_of_parts(loss: FullLoss, v: torch.Tensor) -> torch.Tensor:
    """By central differences of the batch's own gradient."""
    x, step = loss.point(), 1e-6
    ends = []
    for sign in (1, -1):
        loss.move(x + sign * step * v)
        ends.append(loss.along_gradient(loss.task.train)[0])
    loss.move(x)
    return (ends[0] - ends[1]) / (2 * step)


def test_a_step_that_changes_modes_or_takes_derivatives_itself() -> None:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        model.train()
        x = batch[0].requires_grad_()
        output = model(x)
        (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        return F.cross_entropy(output, batch[1]) + slope.square().mean()

    loss = full_loss(toy(loss=None, step=step, metrics={}))
    assert loss.value(loss.point()) == pytest.approx(loss.gradient(loss.point())[0], rel=1e-12)

    def looks(model: nn.Module, batch: Any) -> dict[str, float]:
        model.eval()  # batch norm would then use its running statistics
        return {"loss": 0.0, "seen": 1.0}

    def plain(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    normed = full_loss(toy(loss=None, step=plain, evaluate=looks, metrics={}, model=mlp_with_state))
    value = normed.value(normed.point())
    assert normed.metrics(normed.point()) == {"loss": pytest.approx(value, rel=1e-12), "seen": 1.0}
    assert normed.value(normed.point()) == value


def test_metrics_are_means_over_the_same_examples() -> None:
    loss = full_loss(toy())
    x, (inputs, targets) = loss.point(), toy().train
    right = (loss.model(inputs.double()).argmax(1) == targets).double().mean()
    assert loss.metrics(x) == {
        "loss": pytest.approx(loss.value(x), rel=1e-12),
        "accuracy": pytest.approx(float(right), rel=1e-6),
    }


def test_what_is_not_finite_stays_so() -> None:
    signs = toy().train[1]

    def torn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.where(target == 0, math.inf, torch.where(target == 1, -math.inf, output.sum(1))).mean()

    loss = full_loss(toy(loss=torn), chunk=1)
    assert set(signs.tolist()) == {0, 1, 2}
    assert math.isnan(loss.value(loss.point()))
    found = loss.metrics(loss.point())
    assert math.isnan(found["loss"])
    assert math.isnan(found["accuracy"])


# --- chunks ---


class Largest(TorchDispatchMode):
    """The most elements of any result."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.is_floating_point():
            self.most = max(self.most, found.numel())
        return found


def test_memory_is_bounded_by_the_chunk() -> None:
    task, largest = toy(train=examples(200)), Largest()
    with largest:
        loss = full_loss(task, chunk=20)
        loss.gradient(loss.point())
        loss.products(direction(loss.size)[None])
        loss.along_gradient(task.train)
    assert largest.most == 20 * 8  # a chunk's hidden layer


def test_fewer_of_the_same_examples() -> None:
    heard: list[int] = []
    loss = full_loss(toy(), tell=heard.append)
    few, alone = loss.on(20), full_loss(toy(), examples=20)
    assert few.value(loss.point()) == alone.value(loss.point())
    assert (few.examples, loss.examples, heard) == (20, SIZE, [16, 4])
    with pytest.raises(CannotAnswer, match="trainable parameters, got none"):
        FullLoss(toy(), nn.Sequential(nn.Linear(5, 3).requires_grad_(False)), toy().train, CPU)
