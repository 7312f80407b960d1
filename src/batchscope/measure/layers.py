"""Which layers show their examples' gradients in an ordinary backward pass, and how?

Given a layer's input x and the gradient d of the loss with respect to its output, both with the examples along the
first dimension, `uses_of` gives every parameter's contribution per example:

    linear          W: sum_t d_t x_t^T                 b: sum_t d_t
    embedding       row x_t of W gets d_t
    convolution     W: sum_t d_t u_t^T, u_t the patch of the input under output position t        b: sum_t d_t
    normalisation   W: sum_t d_t * z_t, z the normalised input                                    b: sum_t d_t

Any other layer without children is differentiated example by example (`torch.func`, Horace He's and Zou's vmap over
vjp): the layer is computed once more, so it must not draw at random.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from batchscope.measure.factors import Formed, Outer, Use

LARGEST = 1 << 26  # numbers of a layer's gradients formed at a time: 256 MiB in float32 (a guess)
Uses = list[tuple[torch.Tensor, Use]]
Formula = Callable[[nn.Module, torch.Tensor, torch.Tensor, int], Uses]


def formula_of(module: nn.Module) -> Formula | None:
    """How this layer's parameters get their contributions; None for a layer that has no formula.

    A subclass that computes something else (its own `forward`) is another layer.
    """
    for kinds, formula in FORMULAS:
        for kind in kinds:
            if isinstance(module, kind) and type(module).forward is kind.forward and _supported(module):
                return formula
    return None


def _supported(module: nn.Module) -> bool:
    """Whether the formula holds for these settings."""
    if isinstance(module, nn.Embedding):
        return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.padding_mode == "zeros"
    return True


def _examples_first(tensor: torch.Tensor, m: int, last: int) -> torch.Tensor:
    """(m, 1, T, last) in float32: a tensor whose examples, flattened with positions or not, come first."""
    return tensor.detach().float().reshape(m, 1, -1, last)


def _bias(bias: torch.Tensor | None, d: torch.Tensor) -> Uses:
    """Of a bias that is added at every position; `d` (m, G, T, q)."""
    if bias is None or not bias.requires_grad:
        return []
    return [(bias, Formed(d.sum(2).reshape(len(d), -1)))]


def linear(module: nn.Module, x: torch.Tensor, d: torch.Tensor, m: int) -> Uses:
    """Of y_t = W x_t + b, W (q, p): d y_t / d W is x_t, so that W gets sum_t d_t x_t^T and b gets sum_t d_t.

    `x` (m, *positions, p), `d` (m, *positions, q), or with the positions flattened into the first dimension; one
    position where x is (m, p). In the units of `d`: with d of the batch's mean loss, these are w_i g_i. What is frozen
    is left out.
    """
    assert isinstance(module, nn.Linear)
    left = _examples_first(d, m, module.out_features)
    uses = _bias(module.bias, left)
    if module.weight.requires_grad:
        uses.append((module.weight, Outer(left, _examples_first(x, m, module.in_features), module.weight.shape)))
    return uses


def row_norms(t: torch.Tensor) -> torch.Tensor:
    """(m,) of (m, n): |t_i|, in one pass, summed in float32 at least.

    For x (m, p) and d (m, q) of a linear layer |c_i| is |d_i| |x_i| for W, as |d x^T| = |d| |x|, and |d_i| for b.
    """
    wide = t.dtype in (torch.float32, torch.float64)
    return torch.linalg.vector_norm(t, dim=1) if wide else torch.linalg.vector_norm(t, dim=1, dtype=torch.float32)


def _embedding(module: nn.Module, x: torch.Tensor, d: torch.Tensor, m: int) -> Uses:
    assert isinstance(module, nn.Embedding)
    rows, right = x.reshape(m, -1).long(), _examples_first(d, m, module.embedding_dim)
    if module.padding_idx is not None:  # its row is never given a gradient
        right = right * (rows != module.padding_idx)[:, None, :, None]
    return [(module.weight, Outer(rows, right, module.weight.shape))]


def _convolution(module: nn.Module, x: torch.Tensor, d: torch.Tensor, m: int) -> Uses:
    """1-D and 2-D. A 1-D one is a 2-D one of height 1."""
    assert isinstance(module, (nn.Conv1d, nn.Conv2d))
    left = _channels_last(d.detach().float(), m, module.groups)
    uses = _bias(module.bias, left)
    if module.weight.requires_grad:
        right = _channels_last(_patches(module, x.detach().float()), m, module.groups)
        uses.append((module.weight, Outer(left, right, module.weight.shape)))
    return uses


def _channels_last(tensor: torch.Tensor, m: int, groups: int) -> torch.Tensor:
    """(m, G, T, channels / G) of (m, channels, *positions), or of several frames an example, (m F, channels, ...)."""
    tensor = tensor.flatten(2)
    frames = tensor.reshape(m, -1, groups, tensor.shape[1] // groups, tensor.shape[2])
    return frames.permute(0, 2, 1, 4, 3).flatten(2, 3)


def _patches(module: nn.Conv1d | nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """(m, channels x kernel, positions): what lies under each output position, padding included."""
    flat = isinstance(module, nn.Conv1d)
    pads = module._reversed_padding_repeated_twice  # of torch's own: last dimension first, "same" worked out
    x = F.pad(x, pads)
    sizes = [module.kernel_size, module.dilation, module.stride]
    kernel, dilation, stride = ((1, *size) if flat else size for size in sizes)
    return F.unfold(x.unsqueeze(2) if flat else x, kernel, dilation=dilation, stride=stride)


def _affine(module: nn.Module, z: torch.Tensor, d: torch.Tensor, m: int) -> Uses:
    """W and b of a normalisation, from its normalised input; parameters lie along the last or the second dimension."""
    weight, bias = module.weight, getattr(module, "bias", None)
    trailing = isinstance(module, (nn.LayerNorm, nn.RMSNorm))
    uses: Uses = []
    for parameter, values in ((weight, z * d), (bias, d)):
        if isinstance(parameter, nn.Parameter) and parameter.requires_grad:
            if trailing:
                values = values.reshape(m, -1, *parameter.shape).sum(1)
            else:  # (m, channels, *positions), or of several frames an example
                values = values.reshape(m, len(values) // m, len(parameter), -1).sum((1, 3))
            uses.append((parameter, Formed(values)))
    return uses


def _layer_norm(module: nn.Module, x: torch.Tensor, d: torch.Tensor, m: int) -> Uses:
    assert isinstance(module, nn.LayerNorm)
    z = F.layer_norm(x.detach().float(), module.normalized_shape, eps=module.eps)
    return _affine(module, z, d.float(), m)


def _rms_norm(module: nn.Module, x: torch.Tensor, d: torch.Tensor, m: int) -> Uses:
    assert isinstance(module, nn.RMSNorm)
    eps = module.eps if module.eps is not None else torch.finfo(x.dtype).eps
    return _affine(module, F.rms_norm(x.detach().float(), list(module.normalized_shape), eps=eps), d.float(), m)


def _group_norm(module: nn.Module, x: torch.Tensor, d: torch.Tensor, m: int) -> Uses:
    assert isinstance(module, nn.GroupNorm)
    return _affine(module, F.group_norm(x.detach().float(), module.num_groups, eps=module.eps), d.float(), m)


def _batch_norm(module: nn.Module, x: torch.Tensor, d: torch.Tensor, m: int) -> Uses:
    """In eval mode only: with statistics of the batch there is no gradient of one example."""
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    if module.training:
        return []
    z = F.batch_norm(x.detach().float(), module.running_mean, module.running_var, eps=module.eps)
    return _affine(module, z, d.float(), m)


def by_example(module: nn.Module, x: torch.Tensor, d: torch.Tensor, m: int) -> Uses:
    """A layer without children, computed again example by example: c_i = (d layer(x_i) / d parameters)^T d_i.

    Raises whatever the layer does: MemoryError where the contributions are too many, RuntimeError where it draws.
    """
    owned = {n: p.detach() for n, p in module.named_parameters(recurse=False) if p.requires_grad}
    if m * sum(p.numel() for p in owned.values()) > LARGEST:
        raise MemoryError(f"{m} gradients of its size would be formed")
    own = next(iter(owned.values())).dtype  # of the computation; under autocast inputs may be narrower
    inputs, gradients = (t.detach().to(own) if t.is_floating_point() else t for t in (x, d))

    def one(x_i: torch.Tensor, d_i: torch.Tensor) -> dict[str, torch.Tensor]:
        def again(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
            buffers = {n: b.clone() for n, b in module.named_buffers(recurse=False)}  # computed, not counted, again
            return torch.func.functional_call(module, parameters | buffers, (x_i,))

        return torch.func.vjp(again, {n: p.clone() for n, p in owned.items()})[1](d_i)[0]

    rows = (t.unflatten(0, (m, -1)) for t in (inputs, gradients))
    formed = torch.func.vmap(one)(*rows)
    return [(p, Formed(formed[n].float())) for n, p in module.named_parameters(recurse=False) if n in owned]


FORMULAS: tuple[tuple[tuple[type[nn.Module], ...], Formula], ...] = (
    ((nn.Linear,), linear),
    ((nn.Embedding,), _embedding),
    ((nn.Conv1d, nn.Conv2d), _convolution),
    ((nn.LayerNorm,), _layer_norm),
    ((nn.RMSNorm,), _rms_norm),
    ((nn.GroupNorm,), _group_norm),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
)
