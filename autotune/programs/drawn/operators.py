"""Operators that drawn models consist of: the layer of each one, and the attributes that it can have for an operand.

Unlike most of autotune these modules import torch as they are imported: each of them defines layers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

Attributes = Mapping[str, object]
Shape = tuple[int, ...]
Choices = Mapping[str, Sequence[object]]


class Call(nn.Module):
    """A function of tensors as a layer."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Call the function."""
        return self.function(*tensors)


@dataclass(frozen=True, slots=True)
class Operator:
    """``make`` returns the layer for an operand of a shape; its keywords are the attributes.

    ``choices`` returns the values that each attribute can have for it; ``None`` if the operator does not take such an
    operand.
    """

    make: Callable[..., nn.Module]
    choices: Callable[[Shape], Choices | None]


def _of(function: Callable[..., torch.Tensor]) -> Callable[..., nn.Module]:
    return lambda shape, **attributes: Call(lambda x: function(x, **attributes))


def _always(**choices: Sequence[object]) -> Callable[[Shape], Choices | None]:
    return lambda shape: choices


def _from_rank(rank: int, **choices: Sequence[object]) -> Callable[[Shape], Choices | None]:
    return lambda shape: choices if len(shape) >= rank else None


def _with_dim(rank: int, **choices: Sequence[object]) -> Callable[[Shape], Choices | None]:
    """Offer any dimension but the first, the batch."""
    return lambda shape: {"dim": range(1, len(shape)), **choices} if len(shape) >= rank else None


def _convolution(shape: Shape, **attributes: object) -> nn.Module:
    kind: type[nn.Module] = nn.Conv1d if len(shape) == 3 else nn.Conv2d
    return kind(shape[1], **attributes)


def _convolution_choices(shape: Shape) -> Choices | None:
    if len(shape) not in (3, 4) or shape[-1] < 3:
        return None
    groups = [count for count in (1, 2) if shape[1] % count == 0]
    return {
        "out_channels": (4, 6, 8),
        "kernel_size": (1, 2, 3),
        "stride": (1, 2),
        "padding": (0, 1, 2),
        "dilation": (1, 2),
        "groups": groups,
        "bias": (True, False),
    }


def _depthwise(shape: Shape, **attributes: object) -> nn.Module:
    return _convolution(shape, out_channels=shape[1], groups=shape[1], **attributes)


def _depthwise_choices(shape: Shape) -> Choices | None:
    if len(shape) != 4 or min(shape[2:]) < 3:
        return None
    return {
        "kernel_size": (1, 2, 3),
        "stride": (1, 2),
        "padding": (0, 1, 2),
        "dilation": (1, 2),
        "bias": (True, False),
    }


def _batch_norm(shape: Shape, eps: float) -> nn.Module:
    norm = nn.BatchNorm2d(shape[1], eps) if len(shape) == 4 else nn.BatchNorm1d(shape[1], eps)
    norm.get_buffer("running_mean").normal_(0, 0.2)
    norm.get_buffer("running_var").uniform_(0.5, 2.0)
    return norm


def _group_norm_choices(shape: Shape) -> Choices | None:
    groups = [count for count in (1, 2, 4) if len(shape) > 2 and shape[1] % count == 0]
    return {"num_groups": groups, "eps": (1e-5, 1e-3)} if groups else None


_POOLING: Mapping[tuple[str, int], type[nn.Module]] = {
    ("max", 3): nn.MaxPool1d,
    ("max", 4): nn.MaxPool2d,
    ("mean", 3): nn.AvgPool1d,
    ("mean", 4): nn.AvgPool2d,
}


def _pooling(shape: Shape, kind: str, **attributes: object) -> nn.Module:
    return _POOLING[kind, len(shape)](**attributes)


def _pooling_choices(shape: Shape) -> Choices | None:
    if len(shape) not in (3, 4) or shape[-1] < 4:
        return None
    return {
        "kind": ("max", "mean"),
        "kernel_size": (2, 3),
        "stride": (1, 2),
        "padding": (0, 1),
        "ceil_mode": (False, True),
    }


def _sized_dims(shape: Shape, least: int) -> list[int]:
    return [dim for dim in range(1, len(shape)) if shape[dim] >= least]


def _narrow_choices(shape: Shape) -> Choices | None:
    dims = _sized_dims(shape, 4)
    return {"dim": dims, "start": (0, 1), "length": (2, 3)} if dims else None


def _roll_choices(shape: Shape) -> Choices | None:
    dims = _sized_dims(shape, 3)
    return {"dim": dims, "shift": (1, 2)} if dims else None


def _attend(x: torch.Tensor, is_causal: bool, scale: float | None) -> torch.Tensor:
    return functional.scaled_dot_product_attention(x, x, x, is_causal=is_causal, scale=scale)


def _through(x: torch.Tensor, dtype: str) -> torch.Tensor:
    return x.to(getattr(torch, dtype)).to(x.dtype)


_SIMPLE: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu, "silu": functional.silu, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
    "hardswish": functional.hardswish, "sin": torch.sin, "abs": torch.abs, "softsign": functional.softsign,
}  # fmt: skip

OPERATORS: Mapping[str, Operator] = {
    "linear": Operator(
        lambda shape, out_features, bias: nn.Linear(shape[-1], out_features, bias),
        _from_rank(2, out_features=(3, 4, 6, 8), bias=(True, False)),
    ),
    "convolution": Operator(_convolution, _convolution_choices),
    "depthwise": Operator(_depthwise, _depthwise_choices),
    "batch_norm": Operator(_batch_norm, lambda shape: {"eps": (1e-5, 1e-3, 1e-1)} if len(shape) in (2, 3, 4) else None),
    "layer_norm": Operator(
        lambda shape, eps, elementwise_affine: nn.LayerNorm(shape[-1], eps, elementwise_affine),
        _from_rank(2, eps=(1e-5, 1e-3), elementwise_affine=(True, False)),
    ),
    "rms_norm": Operator(lambda shape, eps: nn.RMSNorm(shape[-1], eps), _from_rank(2, eps=(1e-6, 1e-3))),
    "group_norm": Operator(lambda shape, num_groups, eps: nn.GroupNorm(num_groups, shape[1], eps), _group_norm_choices),
    "pooling": Operator(_pooling, _pooling_choices),
    "simple": Operator(_of(lambda x, kind: _SIMPLE[kind](x)), _always(kind=tuple(_SIMPLE))),
    "gelu": Operator(_of(functional.gelu), _always(approximate=("none", "tanh"))),
    "leaky_relu": Operator(_of(functional.leaky_relu), _always(negative_slope=(0.01, 0.02, 0.1, 0.3))),
    "elu": Operator(_of(functional.elu), _always(alpha=(1.0, 0.5, 1.5))),
    "hardtanh": Operator(_of(functional.hardtanh), _always(min_val=(-1.0, -0.5), max_val=(1.0, 2.0))),
    "softplus": Operator(_of(functional.softplus), _always(beta=(1.0, 2.0), threshold=(20.0, 5.0))),
    "softmax": Operator(_of(lambda x, dim: x.softmax(dim)), _with_dim(2)),
    "log_softmax": Operator(_of(lambda x, dim: x.log_softmax(dim)), _with_dim(2)),
    "mean": Operator(_of(lambda x, dim, keepdim: x.mean(dim, keepdim)), _with_dim(3, keepdim=(False, True))),
    "largest": Operator(_of(lambda x, dim, keepdim: x.amax(dim, keepdim)), _with_dim(3, keepdim=(False, True))),
    "sums": Operator(_of(lambda x, dim: x.cumsum(dim) * 0.25), _with_dim(2)),
    "flip": Operator(_of(lambda x, dim: x.flip(dim)), _with_dim(2)),
    "roll": Operator(_of(lambda x, dim, shift: x.roll(shift, dim)), _roll_choices),
    "narrow": Operator(_of(lambda x, dim, start, length: x.narrow(dim, start, length)), _narrow_choices),
    "pad": Operator(
        _of(lambda x, before, after, value: functional.pad(x, (before, after), value=value)),
        _from_rank(2, before=(0, 1), after=(1, 2), value=(0.0, 1.0)),
    ),
    "transpose": Operator(
        _of(lambda x, dim: x.transpose(1, dim)),
        lambda shape: {"dim": range(2, len(shape))} if len(shape) > 2 else None,
    ),
    "flatten": Operator(
        _of(lambda x, start: x.flatten(start)),
        lambda shape: {"start": range(1, len(shape) - 1)} if len(shape) > 2 else None,
    ),
    "unsqueeze": Operator(
        _of(lambda x, dim: x.unsqueeze(dim)), lambda shape: {"dim": (1, 2)} if len(shape) in (2, 3) else None
    ),
    "attention": Operator(
        _of(_attend),
        lambda shape: {"is_causal": (False, True), "scale": (None, 0.5, 0.25)} if len(shape) == 3 else None,
    ),
    "through": Operator(_of(_through), _always(dtype=("float64", "bfloat16", "float16"))),
    "scaled": Operator(_of(lambda x, by, plus: x * by + plus), _always(by=(0.5, 0.75, 1.5), plus=(0.0, 0.1, -0.2))),
}
"""By name; each takes one floating operand whose first dimension is the batch, and keeps that dimension."""
