"""Which module's forward pass is a training step's, when a framework calls a method of the user's own?

A monitor wants one module that holds all that is trained and is called once with each batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class Calls:
    """Which modules does a training step call? Counted in one batch, among those that hold all that is trained."""

    def __init__(self) -> None:
        self._counts: dict[nn.Module, int] = {}  # the outermost first
        self._handles: list[RemovableHandle] = []

    def count(self, module: nn.Module) -> None:
        self.forget()
        self._counts = dict.fromkeys(holders(module), 0)
        self._handles = [m.register_forward_pre_hook(self._called) for m in self._counts]

    def _called(self, module: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled():
            self._counts[module] += 1

    def only_one(self) -> nn.Module | None:
        """The outermost that was called once. (Called twice: under DDP, Trainer's own call is one of the two.)"""
        return next((module for module, calls in self._counts.items() if calls == 1), None)

    def forget(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._counts = [], {}


def holders(module: nn.Module) -> Iterator[nn.Module]:
    """`module`, the child that holds all its trainable parameters too, that child's, and so on."""
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    inner: nn.Module | None = module
    while inner is not None:
        yield inner
        inner = next((child for child in inner.children() if trained <= {id(p) for p in child.parameters()}), None)


class TrainingSteps(nn.Module):
    """Stands for a module of which a training step calls several parts: the parts and parameters of `of`, no more.

    Called with each batch, it tells hooks how many examples a training step is for. It has no output, which the sources
    "examples" and "parts" start from; "micro-batches" and "replicas" do not need one.
    """

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self._parameters, self._buffers, self._modules = of._parameters, of._buffers, of._modules

    def forward(self, batch: Any) -> None:
        return None
