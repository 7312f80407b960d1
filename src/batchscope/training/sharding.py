"""How is a model trained that is too large for one device? Every rank keeps a piece of each weight (FSDP2).

`fully_shard` cuts every weight, its gradient and its optimiser state along the first dimension, a piece for each rank.
A unit's weights are gathered when its forward or backward pass comes to it, and freed after; the gradients' mean over
the ranks is scattered at the end of every backward pass, micro-batches included, so that no whole gradient is kept. The
mathematics is that of replicas (`distributed.py`): a rank's loss weighs N n_r / n.

Units are the children of containers (`nn.Sequential`, `nn.ModuleList`, `nn.ModuleDict`); what is left belongs to the
root: a module around model and loss, so that a task's step may call whatever it likes of the model. A unit is gathered
by its own forward: its weights cannot be used past it.

The model is made whole on the host by every rank, and moved to the device unit by unit. Every rank takes part in
evaluations. A checkpoint holds the pieces by rank: it goes on with as many ranks as it was left with.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from batchscope.errors import CannotAnswer
from batchscope.task import Batch
from batchscope.training.distributed import LossOf, Replicas

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
LARGEST_SHARE = 0.5  # of a model's weights in one unit: a larger one is looked into for smaller ones (a guess)
_ROOT, _PIECE = "batchscope_root", "batchscope_piece"


class Root(nn.Module):
    """What gathers the weights that belong to no unit, while a function of the model runs in it."""

    def __init__(self, model: nn.Module, mesh: Any) -> None:
        super().__init__()
        self.model, self.mesh = model, mesh

    def forward(self, function: Callable[[], Any]) -> Any:
        """What the function returns."""
        return function()


def sharded(model: nn.Module, replicas: Replicas) -> nn.Module:
    """The same model with its weights in pieces (DTensors) on the replicas' devices; same names.

    Raises CannotAnswer for weights that cannot be cut.
    """
    scalars = [name for name, p in model.named_parameters() if p.dim() == 0]
    if scalars:
        raise CannotAnswer(
            f"expected weights with a first dimension to shard, got the scalar {scalars[0]!r}: give it the shape (1,), "
            "or leave shard=False"
        )
    fully_shard = importlib.import_module("torch.distributed.fsdp").fully_shard  # takes seconds: only where it is used
    meshes = importlib.import_module("torch.distributed.device_mesh").DeviceMesh
    mesh = meshes.from_group(replicas.group or dist.distributed_c10d._get_default_group(), replicas.device.type)
    for unit in units_of(model):
        fully_shard(unit, mesh=mesh)
    root = Root(model, mesh)
    fully_shard(root, mesh=mesh)
    model.__dict__[_ROOT] = root  # not a child of its child
    return model


def units_of(model: nn.Module) -> list[nn.Module]:
    """What is gathered at a time: children of containers with weights that nothing else in the model uses."""
    everywhere, whole = _uses(model), _numbers(model)
    found: dict[nn.Module, None] = {}

    def look(module: nn.Module) -> None:
        for child in module.children():
            own = _uses(child)
            fits = 0 < _numbers(child) <= LARGEST_SHARE * whole
            if isinstance(module, CONTAINERS) and fits and all(everywhere[p] == n for p, n in own.items()):
                found[child] = None
            else:
                look(child)

    look(model)
    return list(found)


def _uses(module: nn.Module) -> Counter[nn.Parameter]:
    """How often each weight is used under some name."""
    return Counter(p for _, p in module.named_parameters(remove_duplicate=False))


def _numbers(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def root_of(model: Any) -> Any:
    """The root of a model that is sharded; None for any other."""
    return getattr(model, "__dict__", {}).get(_ROOT)


def loss_under(root: Root, loss_of: LossOf) -> Callable[[Batch], torch.Tensor]:
    """batch -> mean loss; its backward pass leaves every rank its piece of the mean gradient."""
    return lambda batch: root(lambda: loss_of(root.model, batch))


def gathered(model: nn.Module, function: Callable[[], Any]) -> Any:
    """What a function without gradients returns that uses the model, sharded or not; sharded, every rank calls this."""
    root = root_of(model)
    if root is None:
        return function()
    try:
        return root(function)
    finally:
        root.reshard()


# --- pieces ---


def in_pieces(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one of which every rank holds a piece: a DTensor."""
    return hasattr(tensor, "device_mesh")


def norm_of(tensors: Sequence[Any]) -> float:
    """|tensors|_2 over all of them, summed in double precision; for tensors in pieces every rank calls this."""
    own = [t.detach().to_local() if in_pieces(t) else t.detach() for t in tensors]
    norm = math.hypot(*(float(torch.linalg.vector_norm(t, dtype=torch.float64)) for t in own))
    mesh = next((t.device_mesh for t in tensors if in_pieces(t)), None)
    if mesh is None:
        return norm
    square = torch.tensor(norm * norm, dtype=torch.float64, device=own[0].device)
    dist.all_reduce(square, group=mesh.get_group())
    return math.sqrt(float(square))


def packed(state: Any) -> Any:
    """A state to write down: tensors on the host, and of one in pieces this rank's, with how it lies in the whole."""
    if isinstance(state, torch.Tensor):
        if not in_pieces(state):
            return state.detach().cpu()
        return _packed_piece(state)
    if isinstance(state, dict):
        return {key: packed(value) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(packed(value) for value in state)
    return state


def _packed_piece(tensor: Any) -> dict[str, Any]:
    (place,) = tensor.placements
    if place.is_partial():
        tensor = tensor.full_tensor()
    dim = place.dim if place.is_shard() else None
    piece = tensor.to_local() if in_pieces(tensor) else tensor
    return {_PIECE: piece.detach().cpu(), "shape": list(tensor.shape), "stride": list(tensor.stride()), "dim": dim}


def unpacked(state: Any, root: Any) -> Any:
    """The inverse of `packed`, on the devices of the root's ranks."""
    if isinstance(state, dict):
        if _PIECE not in state:
            return {key: unpacked(value, root) for key, value in state.items()}
        tensors: Any = importlib.import_module("torch.distributed.tensor")
        place = [tensors.Shard(state["dim"]) if state["dim"] is not None else tensors.Replicate()]
        piece, shape = state[_PIECE].to(root.mesh.device_type), torch.Size(state["shape"])
        return tensors.DTensor.from_local(
            piece, root.mesh, place, run_check=False, shape=shape, stride=tuple(state["stride"])
        )
    if type(state) in (list, tuple):
        return type(state)(unpacked(value, root) for value in state)
    return state
