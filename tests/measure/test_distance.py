"""Is the distance that of the trainable parameters, each once?"""

from __future__ import annotations

import math

import pytest
import torch
from naive_hessian import full_loss
from torch import nn

from batchscope.measure.distance import layer_distances, total_distance
from toys import toy


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.frozen = nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.again = self.first
        self.frozen.requires_grad_(False)


def test_tied_weights_once_and_frozen_ones_not_at_all() -> None:
    loss = full_loss(toy(model=Tied))
    x0 = loss.point()
    with torch.no_grad():
        loss.model.first.weight.add_(0.5)
        loss.model.norm.bias.fill_(2)
        loss.model.norm.running_mean.fill_(100)
        loss.model.frozen.weight.fill_(100)
    x = loss.point()
    layers = {layer.name: layer for layer in layer_distances(loss, x, x0)}
    assert list(layers) == ["first.weight", "norm.weight", "norm.bias"]
    assert layers["first.weight"].distance == pytest.approx(0.5 * 40**0.5, rel=1e-12)
    assert layers["first.weight"].norm == pytest.approx(float(loss.model.first.weight.detach().norm()), rel=1e-12)
    assert (layers["norm.weight"].distance, layers["norm.weight"].initial_norm) == (0, pytest.approx(8**0.5))
    assert (layers["norm.bias"].distance, layers["norm.bias"].initial_norm) == (pytest.approx(2 * 8**0.5), 0)
    assert total_distance(x, x0) == pytest.approx(math.hypot(*(layer.distance for layer in layers.values())))


def test_small_distances_between_large_weights_are_not_lost() -> None:
    loss = full_loss(toy())
    x0 = 1e4 + loss.point()
    assert total_distance(x0 + 1e-6, x0) == pytest.approx(1e-6 * loss.size**0.5, rel=1e-4)
    with pytest.raises(ValueError, match="of 75 trainable parameters, got one of shape"):
        layer_distances(loss, x0[1:], x0)
