"""Are models and losses that mix examples recognised, and ordinary ones left alone?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from batchscope.measure.coupling import batch_norms, compares_examples

M, WIDTH = 8, 6


class Normalised(nn.Module):
    def __init__(self, **settings: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH, **settings))


def test_batch_norm() -> None:
    assert batch_norms(Normalised()) == ["body.1"]
    assert batch_norms(Normalised().eval()) == []
    assert batch_norms(Normalised(track_running_stats=False).eval()) == ["body.1"]
    frozen = Normalised()
    frozen.body[1].eval()
    assert batch_norms(frozen) == []
    assert batch_norms(nn.BatchNorm2d(3)) == ["BatchNorm2d"]
    assert batch_norms(nn.Sequential(nn.LayerNorm(3), nn.GroupNorm(1, 3))) == []


# --- losses that compare examples ---


def embedded(m: int = M) -> torch.Tensor:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 10), nn.ReLU(), nn.Linear(10, 5))(torch.randn(m, WIDTH))


def info_nce() -> torch.Tensor:
    """Two views in one batch of 2 M rows."""
    z = F.normalize(embedded(2 * M), dim=1)
    similar = (z @ z.T / 0.1).masked_fill(torch.eye(2 * M, dtype=torch.bool), -1e9)
    return F.cross_entropy(similar, torch.arange(2 * M).roll(M))


def clip() -> torch.Tensor:
    """Two towers, each with a linear map, and a learnt temperature."""
    images, texts = (F.normalize(nn.Linear(WIDTH, 5)(torch.randn(M, WIDTH)), dim=1) for _ in range(2))
    logits = nn.Parameter(torch.ones(())).exp() * images @ texts.t()
    return (F.cross_entropy(logits, torch.arange(M)) + F.cross_entropy(logits.t(), torch.arange(M))) / 2


def plain_product() -> torch.Tensor:
    z = embedded()
    return (z @ z.T).logsumexp(1).mean()


def einsum() -> torch.Tensor:
    z = embedded()
    return torch.einsum("id,jd->ij", z, z).logsumexp(1).mean()


def under_autocast() -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return plain_product()


@pytest.mark.parametrize("loss", [info_nce, clip, plain_product, einsum, under_autocast])
@pytest.mark.parametrize("after", [False, True])
def test_a_loss_that_compares_examples(loss: Callable[[], torch.Tensor], after: bool) -> None:
    value = loss()
    if after:  # the monitor looks when the backward pass has been made
        value.backward()
    assert compares_examples(value, M)


# --- losses that do not ---


class Attending(nn.Module):
    """As many tokens as examples, as wide as there are examples."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.qkv, self.head = fused, nn.Linear(M, 3 * M), nn.Linear(M, M)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        h = F.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.mT).softmax(-1) @ v
        return self.head(h).mean(1)


def square_layers() -> torch.Tensor:
    model = nn.Sequential(nn.Linear(M, M), nn.ReLU(), nn.Linear(M, M, bias=False), nn.Linear(M, 2 * M))
    return F.cross_entropy(model(torch.randn(M, M)), torch.arange(M))


def square_layers_under_autocast() -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return square_layers()


def cosine_classifier() -> torch.Tensor:
    """Normalised weights are computed, but not from examples."""
    weight = nn.Parameter(torch.randn(M, 5))
    return F.cross_entropy(F.linear(F.normalize(embedded()), F.normalize(weight)), torch.arange(M))


def scaled_weight() -> torch.Tensor:
    weight, scale = nn.Parameter(torch.randn(5, M)), nn.Parameter(torch.ones(M))
    return F.cross_entropy(embedded() @ (weight * scale), torch.arange(M))


def memory_bank() -> torch.Tensor:
    """Against a queue of constants: every example's loss is its own."""
    return F.cross_entropy(embedded() @ torch.randn(5, M), torch.arange(M))


def attention() -> torch.Tensor:
    return F.cross_entropy(Attending(fused=True)(torch.randn(M, M, M)), torch.arange(M))


def attention_by_hand() -> torch.Tensor:
    return F.cross_entropy(Attending(fused=False)(torch.randn(M, M, M)), torch.arange(M))


def einsum_with_a_weight() -> torch.Tensor:
    weight = nn.Parameter(torch.randn(M, 5))
    return F.cross_entropy(torch.einsum("id,jd->ij", embedded(), weight), torch.arange(M))


def tied_embedding() -> torch.Tensor:
    table = nn.Embedding(M, 5)
    return F.cross_entropy(table(torch.arange(M)) @ table.weight.T, torch.arange(M))


@pytest.mark.parametrize(
    "loss",
    [
        square_layers,
        square_layers_under_autocast,
        cosine_classifier,
        scaled_weight,
        memory_bank,
        attention,
        attention_by_hand,
        einsum_with_a_weight,
        tied_embedding,
    ],
)
def test_an_ordinary_loss(loss: Callable[[], torch.Tensor]) -> None:
    torch.manual_seed(0)
    assert not compares_examples(loss(), M)


def test_a_batch_of_one_a_detached_loss_and_an_unknown_batch() -> None:
    z = embedded()
    assert not compares_examples((z[:1] @ z[:1].T).mean(), 1)
    assert not compares_examples((z @ z.T).mean().detach(), M)
    assert not compares_examples((z @ z.T).mean(), 0)


def test_weights_made_of_parameters_are_no_comparison() -> None:
    """A merged low-rank weight as wide as the batch is large: m x m, and no example in it."""
    layer, down, up = nn.Linear(8, 8), nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))
    loss = nn.functional.linear(layer(torch.randn(8, 8)).relu(), up @ down).square().mean()
    assert not compares_examples(loss, 8)
    z = layer(torch.randn(8, 8))
    assert compares_examples((z @ z.T).logsumexp(1).mean(), 8)
