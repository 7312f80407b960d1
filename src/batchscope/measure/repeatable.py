"""Is f a function? The same weights, the same examples, the same random numbers: are the bits the same?

Two passes over the first two chunks at one x, forward and backward. If their bits differ, an eigenvalue of f means
little: Lanczos and L-BFGS-B both take differences of nearby values. Then the layer that is to blame is sought: the
first one to end whose output differs though its input does not, so that a difference inside a block is blamed on the
block's own operations only if none of its layers made it.

A third pass draws other random numbers. What differs only there draws at random (a functional dropout that is always
on, a loss that samples). Every chunk draws the same numbers at every x, so that f is a function all the same; but it
is one draw's loss, and a sentence says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from batchscope.measure.full_loss import CHUNK_SEED, FullLoss
from batchscope.training.batches import tensors_in

CHUNKS = 2  # that are compared: what a first call does otherwise (a cache, a kernel's choice) shows in the second


@dataclass(frozen=True)
class Call:
    """One call of a layer: fingerprints of the bits that went in and came out."""

    layer: str  # qualified name and class
    given: bytes
    made: bytes


@dataclass
class Pass:
    """Fingerprints of all that one pass over the chunks saw."""

    batches: list[bytes] = field(default_factory=list)
    losses: list[bytes] = field(default_factory=list)
    gradients: list[list[bytes]] = field(default_factory=list)  # chunk -> parameter
    calls: list[Call] = field(default_factory=list)  # in the order in which they ended
    buffers: bytes = b""  # of the model, at the end

    def same_as(self, other: Pass) -> bool:
        """Whether f and its gradient have the same bits."""
        return self.batches == other.batches and self.losses == other.losses and self.gradients == other.gradients


def probe(loss: FullLoss) -> tuple[str, ...]:
    """Nothing, where f and its gradient at the x that the model has now are repeatable and draw no random numbers.

    Else a sentence for each reason found. Leaves the model, its hooks and the global generators as they were.
    """
    kept = [buffer.clone() for buffer in loss.model.buffers()]
    try:
        first, again, otherwise = (_passed(loss, seed) for seed in (CHUNK_SEED, CHUNK_SEED, CHUNK_SEED + 1))
    finally:
        with torch.no_grad():
            for buffer, value in zip(loss.model.buffers(), kept, strict=True):
                buffer.copy_(value)
    if not first.same_as(again):
        return (_not_repeatable(loss.names, first, again),)
    if not first.same_as(otherwise):
        return (
            f"{_blamed(loss.names, first, otherwise)} draws random numbers, though in eval mode: every chunk draws the "
            "same ones at every x, so that what is measured is a function, of one draw",
        )
    return ()


def _not_repeatable(names: Sequence[str], first: Pass, again: Pass) -> str:
    """Of two passes that should have been equal."""
    if first.batches != again.batches:
        return (
            "f is not repeatable: the data set gives other examples when it is read again, whatever the global "
            "generators' seeds"
        )
    why = "a kernel of it is not deterministic, or it draws from a generator of its own"
    if first.buffers != again.buffers:
        why = "its buffers change with every pass"
    return f"f is not repeatable: {_blamed(names, first, again)} differs between equal passes, so {why}"


def _blamed(names: Sequence[str], one: Pass, other: Pass) -> str:
    """What differs first between two passes on equal examples."""
    for left, right in zip(one.calls, other.calls, strict=False):
        if left.layer != right.layer:
            return "which layers are called: what chooses them"
        if left.given == right.given and left.made != right.made:
            return left.layer
    if one.losses != other.losses:
        return "the loss, not a layer,"
    for left, right in zip(one.gradients, other.gradients, strict=True):
        for name, a, b in reversed(list(zip(names, left, right, strict=True))):  # from the output backwards
            if a != b:
                return f"the backward pass (first seen in the gradient of {name!r})"
    return "the examples' order"


def _passed(loss: FullLoss, seed: int) -> Pass:
    """One pass over the first chunks, forward and backward."""
    seen = Pass()
    with contextlib.closing(loss.chunks(seed)) as chunks, _watched(loss.model, seen.calls):
        for _, batch in itertools.islice(chunks, CHUNKS):
            seen.batches.append(_bits(batch))
            value, gradient = loss.derived(batch)
            seen.losses.append(struct.pack("d", value))
            seen.gradients.append([_bits(g) for g in gradient])
    seen.buffers = _bits(list(loss.model.buffers()))
    return seen


@contextlib.contextmanager
def _watched(model: nn.Module, calls: list[Call]) -> Generator[None]:
    """Inside, every call of a module of the model is written down when it ends."""
    open_calls: list[bytes] = []
    names = {id(module): name for name, module in reversed(list(model.named_modules()))}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        open_calls.append(_bits((args, kwargs)))

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        name = names[id(module)]
        layer = f"layer {name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
        calls.append(Call(layer, open_calls.pop(), _bits(output)))

    handles = [m.register_forward_pre_hook(before, prepend=True, with_kwargs=True) for m in model.modules()]
    handles += [m.register_forward_hook(after, with_kwargs=True) for m in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bits(value: Any) -> bytes:
    """A fingerprint of all tensors in a value; what is no tensor does not count."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors_in(value):
        dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
        digest.update(dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
