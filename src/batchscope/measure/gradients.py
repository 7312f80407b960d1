"""Where do the squared norms of a batch's parts come from, without changing the training? Four sources.

    examples       one part an example: norms taken in the ordinary backward pass (`per_example.py`)
    parts          the batch in two: one more backward pass, from the model's output, for the first half (`halves.py`)
    micro-batches  the parts that the loop accumulates anyway: the norm of what each backward pass adds
    replicas       the parts that data-parallel processes work on: as micro-batches, before they are averaged

A source is *armed* before a step's forward pass and *read* after its last backward pass, when `.grad` holds the
batch's gradient, before clipping; armed, it has hooks in the model, and none otherwise. Let a_i be what part i added to
`.grad`, w_i its share of the units that the loss averages over, sum_i a_i = g. Then the part's own gradient is
g_i = a_i / w_i, and

    parts_squared = sum_i w_i |g_i|^2 = sum_i |a_i|^2 / w_i            mean_squared = |g|^2

for each parameter apart; sums over parameters are sums of these. A loop that never divides by the number of its
micro-batches has gradients longer by that factor in both.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.utils.hooks import RemovableHandle

from batchscope.errors import CannotAnswer
from batchscope.training.batches import tensors_in

Counts = torch.Tensor | Sequence[float] | None
Hook = Callable[[Any, dist.GradBucket], torch.futures.Future[torch.Tensor]]


@dataclass(frozen=True)
class Reading:
    """One measured step: squared norms per parameter, (P,), of `Source.names`; not yet read from the device.

    `part_size` and `batch_size` as in `records.GradientNorms`, not a number where processes could not tell;
    `proxies`: metric -> (parts_squared, mean_squared).
    """

    parts: int
    part_size: float | torch.Tensor
    batch_size: float | torch.Tensor
    parts_squared: torch.Tensor
    mean_squared: torch.Tensor
    proxies: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


class OfThisModel:
    """A hook on a module. A copy of it does nothing, so that a model may be copied and pickled while it is measured."""

    def __init__(self, hook: Callable[..., None]) -> None:
        self.hook = hook

    def __call__(self, *args: Any) -> None:
        self.hook(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return OfThisModel, (nothing,)


def nothing(*args: Any) -> None:
    """What a copied hook does."""


class AtAccumulation:
    """Hooks on the node that adds to a parameter's `.grad`: on what it is given, and on the parameter afterwards.

    A hook on the parameter itself leaves something in it when it is removed, which torch calls at every backward pass
    from then on. The node goes when nobody holds it, and its hooks with it.
    """

    def __init__(
        self,
        parameter: torch.Tensor,
        before: Callable[[torch.Tensor], None] | None = None,
        after: Callable[[torch.Tensor], None] | None = None,
    ) -> None:
        self.node: Any = torch.autograd.graph.get_gradient_edge(parameter).node
        self.handles = []
        if before is not None:
            see = before
            self.handles.append(self.node.register_prehook(lambda given: see(given[0])))
        if after is not None:
            look = after
            self.handles.append(self.node.register_hook(lambda _, given: look(parameter)))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.node = None


class Source(ABC):
    """Hooks that are there while a step is measured."""

    name: str

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.why_not = ""  # the last step showed nothing
        self.lasting = False  # and no other step of this model and loop will
        self.copying = False  # gradients as the backward pass leaves them, for loops that change them before `read`
        self._copies: dict[int, torch.Tensor] = {}
        trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]  # a tied one once
        self.names = [n for n, _ in trainable]
        self.parameters = [p for _, p in trainable]
        self.examples: list[int] = []  # of each forward pass since armed
        self._handles: list[RemovableHandle | AtAccumulation] = []

    def arm(self) -> None:
        """Hooks in: the next step is measured."""
        self.disarm()
        self.examples, self._copies, self.why_not, self.lasting = [], {}, "", False
        for i, parameter in enumerate(self.parameters):
            if self.copying and parameter.requires_grad:  # it may have been frozen since
                self._handles.append(AtAccumulation(parameter, after=self._copying(i)))
        self._handles.append(self.model.register_forward_pre_hook(OfThisModel(self._see_inputs), with_kwargs=True))
        self._hook()

    def disarm(self) -> None:
        """Hooks out; what was seen is forgotten."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._copies = [], {}

    @property
    def armed(self) -> bool:
        return bool(self._handles)

    def read(self, counts: Counts = None) -> Reading | None:
        """What the step showed, and hooks out; None where it cannot be told (one part, unequal micro-batches).

        `counts`: units of each part (examples of each micro-batch, counted tokens of each example), where they are not
        all equal.
        """
        try:
            return self._read(counts)
        finally:
            self.disarm()

    @abstractmethod
    def _hook(self) -> None: ...

    @abstractmethod
    def _read(self, counts: Counts) -> Reading | None: ...

    def _see_inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if torch.is_grad_enabled():
            self.examples.append(first_dimension(args, kwargs))

    def _copying(self, index: int) -> Callable[[torch.Tensor], None]:
        def copy(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                self._copies[index] = parameter.grad.detach().clone()

        return copy

    def gradients(self) -> list[torch.Tensor | None]:
        """The batch's gradient, parameter by parameter; None for one that was not used."""
        if self.copying:
            return [self._copies.get(i) for i in range(len(self.parameters))]
        return [p.grad if p.requires_grad else None for p in self.parameters]

    def mean_squared(self) -> torch.Tensor:
        """(P,): squared norms of the batch's gradient; 0 for a parameter that was not used."""
        grads = self.gradients()
        used = [entries(g) for g in grads if g is not None]
        if not used:
            raise CannotAnswer(
                "expected gradients after the backward pass, got none: call `step` after `backward` and before "
                "`zero_grad`"
            )
        squares = torch.stack(norms(used)).square()
        if len(used) == len(grads):
            return squares
        where = torch.tensor([i for i, g in enumerate(grads) if g is not None], device=squares.device)
        return squares.new_zeros(len(grads)).index_copy(0, where, squares)


def entries(gradient: torch.Tensor) -> torch.Tensor:
    """Its numbers; of a sparse gradient those that are there."""
    if gradient.is_sparse:
        return gradient.detach().coalesce().values()
    return gradient.detach() if gradient.requires_grad else gradient


def norms(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """|t| of each, summed in float32 at least, as `torch.nn.utils.get_total_norm` takes them."""
    wide = any(t.dtype == torch.float64 for t in tensors)
    return list(torch._foreach_norm(list(tensors), 2, torch.float64 if wide else torch.float32))


def first_dimension(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Examples in a model's inputs: the first dimension of the first tensor that has one; 0 where none has."""
    return next((len(t) for t in tensors_in([list(args), dict(kwargs)]) if t.dim() > 0), 0)


class MicroBatches(Source):
    """The parts are the micro-batches of one step; with data parallelism, those of all processes.

    A hook on each parameter sees what a backward pass is about to add to `.grad`, before processes average it.
    Processes count alike, as in DistributedDataParallel; the micro-batches of one process by their units.
    """

    def __init__(self, model: nn.Module, group: Any = None) -> None:
        super().__init__(model)
        self.group = group
        self.replicas = dist.get_world_size(group) if group is not None else 1
        self.name = "replicas" if self.replicas > 1 else "micro-batches"
        self._squares: dict[int, dict[int, torch.Tensor]] = {}  # forward passes so far -> parameter -> |a_i|^2
        self._again = False  # a second backward pass through one forward pass: norms of sums are not sums of norms

    def _hook(self) -> None:
        self._squares, self._again = {}, False
        for index, parameter in enumerate(self.parameters):
            if parameter.requires_grad:
                self._handles.append(AtAccumulation(parameter, before=self._seeing(index)))

    def _seeing(self, index: int) -> Callable[[torch.Tensor], None]:
        def see(gradient: torch.Tensor) -> None:
            found = self._squares.setdefault(len(self.examples), {})
            self._again |= index in found
            found[index] = norms([entries(gradient)])[0].square()

        return see

    def backward_passes(self) -> int:
        """How many backward passes there were since the source was armed."""
        return len(self._squares)

    def _read(self, counts: Counts) -> Reading | None:
        mean = self.mean_squared()
        sizes = self._sizes(counts)
        if self.replicas == 1 and (len(sizes) < 2 or not all(sizes)):
            self.why_not = self._why_not(sizes)
            return None
        squares, shape = self._local(mean, sizes)
        if self.replicas == 1:
            return Reading(len(sizes), 1 / shape[0], 1 / shape[1], squares, mean)
        together = torch.cat([squares, mean.new_tensor(shape)])  # every process takes part, whatever it knows
        dist.all_reduce(together, group=self.group)
        together /= self.replicas
        part_size, batch_size = 1 / together[-2], self.replicas / together[-1]
        return Reading(len(sizes) * self.replicas, part_size, batch_size, together[:-2], mean)

    def _local(self, mean: torch.Tensor, sizes: Sequence[float]) -> tuple[torch.Tensor, list[float]]:
        """This process's sum_i |a_i|^2 / w_i per parameter, sum_i w_i / m_i, sum_i w_i^2 / m_i; nan if unknown."""
        if not sizes or not all(sizes):
            return torch.full_like(mean, math.nan), [math.nan, math.nan]
        weights = [size / sum(sizes) for size in sizes]
        zero = mean.new_zeros(())
        parts = [
            torch.stack([part.get(i, zero) for i in range(len(mean))]) / weight
            for part, weight in zip(self._squares.values(), weights, strict=True)
        ]
        pairs = list(zip(weights, sizes, strict=True))
        return torch.stack(parts).sum(0), [sum(w / m for w, m in pairs), sum(w * w / m for w, m in pairs)]

    def _sizes(self, counts: Counts) -> list[float]:
        """Units of this process's micro-batches; zeros where they differ and were not told."""
        keys = sorted(self._squares)
        if self._again:
            return [0.0] * len(keys)
        if counts is not None:
            return numbers(counts, len(keys))
        sizes = [float(sum(self.examples[a:b])) for a, b in itertools.pairwise([0, *keys])]
        return sizes if len(set(sizes)) <= 1 else [0.0] * len(sizes)

    def _why_not(self, sizes: Sequence[float]) -> str:
        if self._again:
            return "several backward passes through one forward pass"
        if len(sizes) < 2:
            return "one micro-batch a step"
        return "micro-batches of unlike or unknown size: give `step` the `counts`"


def numbers(counts: torch.Tensor | Sequence[float], parts: int, least: float = 1e-9) -> list[float]:
    """The units of each part, each of them at least that. Raises CannotAnswer where there are not as many as parts."""
    found = [float(c) for c in (counts.tolist() if isinstance(counts, torch.Tensor) else counts)]
    if len(found) != parts or not all(c >= least for c in found) or not sum(found):
        raise CannotAnswer(f"expected positive counts of {parts} parts, got {found}: give `counts` one number a part")
    return found


class Buckets(Source):
    """Replicas, by a communication hook of DistributedDataParallel: norms bucket by bucket, for all parameters at once.

    Such a hook cannot be removed from a model again; while nothing is measured it costs a comparison per bucket.
    """

    name = "replicas"

    def __init__(self, model: nn.Module, group: Any = None) -> None:
        super().__init__(model)
        self.group, self.names = group, ["all parameters"]
        self._squared: torch.Tensor | None = None
        self._passes = 0  # backward passes that averaged; only after the first does `.grad` hold this replica's alone

    def hook_around(self, inner: Hook | None = None) -> Hook:
        """For `ddp.register_comm_hook(None, ...)`: takes norms, then does what `inner` does.

        `inner` is the hook that would have been registered otherwise (compression, say); default: torch's own, which
        averages.
        """

        def hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            if self.armed:
                squared = norms([bucket.buffer()])[0].square()
                self._squared = squared if self._squared is None else self._squared + squared
                self._passes += bucket.is_last()
            return inner(state, bucket) if inner is not None else default_hooks.allreduce_hook(self.group, bucket)

        # DDP compares a hook's annotations with these types, and in this file annotations are strings
        hook.__annotations__ = {"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}
        return hook

    def _hook(self) -> None:
        self._squared, self._passes = None, 0

    def _read(self, counts: Counts) -> Reading | None:
        mean, replicas = self.mean_squared().sum(), dist.get_world_size(self.group)
        size = float(sum(self.examples if counts is None else map(float, counts)))
        known = self._squared is not None and self._passes == 1 and size > 0
        own = [self._squared, mean.new_tensor(1 / size)] if known else [mean.new_tensor(math.nan)] * 2
        together = torch.stack(own)
        dist.all_reduce(together, group=self.group)
        together /= replicas
        return Reading(replicas, 1 / together[1], replicas / together[1], together[:1], mean.reshape(1))
