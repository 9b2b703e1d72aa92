"""Operators that drawn models are made of: what each one is, and what can be chosen of it for an operand.

Unlike most of autotune these modules import torch as they are imported: each of them defines layers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Attributes = Mapping[str, Any]
Shape = tuple[int, ...]
Choices = Mapping[str, Sequence[Any]]


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
    """``make`` makes the layer of its attributes for an operand of a shape.

    ``choices`` lists what each attribute can be for it, and is ``None`` if the operator does not take such an operand.
    """

    make: Callable[[Attributes, Shape], nn.Module]
    choices: Callable[[Shape], Choices | None]


def _of(function: Callable[[torch.Tensor, Attributes], torch.Tensor]) -> Callable[[Attributes, Shape], nn.Module]:
    return lambda attributes, shape: Call(lambda x: function(x, attributes))


def _always(**choices: Sequence[Any]) -> Callable[[Shape], Choices | None]:
    return lambda shape: choices


def _from_rank(rank: int, **choices: Sequence[Any]) -> Callable[[Shape], Choices | None]:
    return lambda shape: choices if len(shape) >= rank else None


def _with_dim(rank: int, **choices: Sequence[Any]) -> Callable[[Shape], Choices | None]:
    """Any dimension but the first, the batch."""
    return lambda shape: {"dim": range(1, len(shape)), **choices} if len(shape) >= rank else None


def _convolution(attributes: Attributes, shape: Shape) -> nn.Module:
    kind: Any = nn.Conv1d if len(shape) == 3 else nn.Conv2d
    return kind(shape[1], **attributes)  # type: ignore[no-any-return]


def _convolution_choices(shape: Shape) -> Choices | None:
    if len(shape) not in (3, 4) or shape[-1] < 3:
        return None
    groups = [each for each in (1, 2) if shape[1] % each == 0]
    return {
        "out_channels": (4, 6, 8), "kernel_size": (1, 2, 3), "stride": (1, 2), "padding": (0, 1, 2),
        "dilation": (1, 2), "groups": groups, "bias": (True, False),
    }  # fmt: skip


def _batch_norm(attributes: Attributes, shape: Shape) -> nn.Module:
    kind: Any = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    norm = kind(shape[1], **attributes)
    norm.running_mean.normal_(0, 0.2)
    norm.running_var.uniform_(0.5, 2.0)
    return norm  # type: ignore[no-any-return]


def _group_norm_choices(shape: Shape) -> Choices | None:
    groups = [each for each in (1, 2, 4) if len(shape) > 2 and shape[1] % each == 0]
    return {"num_groups": groups, "eps": (1e-5, 1e-3)} if groups else None


def _pooling(attributes: Attributes, shape: Shape) -> nn.Module:
    kind: Any = {("max", 3): nn.MaxPool1d, ("max", 4): nn.MaxPool2d, ("mean", 3): nn.AvgPool1d,
                 ("mean", 4): nn.AvgPool2d}[attributes["kind"], len(shape)]  # fmt: skip
    return kind(**{key: value for key, value in attributes.items() if key != "kind"})  # type: ignore[no-any-return]


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


def _attend(x: torch.Tensor, chosen: Attributes) -> torch.Tensor:
    return functional.scaled_dot_product_attention(x, x, x, is_causal=chosen["is_causal"], scale=chosen["scale"])


def _through(x: torch.Tensor, chosen: Attributes) -> torch.Tensor:
    return x.to(getattr(torch, chosen["dtype"])).to(x.dtype)


_SIMPLE: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu, "silu": functional.silu, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
    "hardswish": functional.hardswish, "sin": torch.sin, "abs": torch.abs, "softsign": functional.softsign,
}  # fmt: skip

OPERATORS: Mapping[str, Operator] = {
    "linear": Operator(
        lambda a, s: nn.Linear(s[-1], **a), _from_rank(2, out_features=(3, 4, 6, 8), bias=(True, False))
    ),
    "convolution": Operator(_convolution, _convolution_choices),
    "batch_norm": Operator(_batch_norm, lambda s: {"eps": (1e-5, 1e-3, 1e-1)} if len(s) in (2, 3, 4) else None),
    "layer_norm": Operator(
        lambda a, s: nn.LayerNorm(s[-1], **a), _from_rank(2, eps=(1e-5, 1e-3), elementwise_affine=(True, False))
    ),
    "rms_norm": Operator(lambda a, s: nn.RMSNorm(s[-1], **a), _from_rank(2, eps=(1e-6, 1e-3))),
    "group_norm": Operator(lambda a, s: nn.GroupNorm(num_channels=s[1], **a), _group_norm_choices),
    "pooling": Operator(_pooling, _pooling_choices),
    "simple": Operator(_of(lambda x, a: _SIMPLE[a["kind"]](x)), _always(kind=tuple(_SIMPLE))),
    "gelu": Operator(_of(lambda x, a: functional.gelu(x, **a)), _always(approximate=("none", "tanh"))),
    "leaky_relu": Operator(
        _of(lambda x, a: functional.leaky_relu(x, **a)), _always(negative_slope=(0.01, 0.02, 0.1, 0.3))
    ),
    "elu": Operator(_of(lambda x, a: functional.elu(x, **a)), _always(alpha=(1.0, 0.5, 1.5))),
    "hardtanh": Operator(
        _of(lambda x, a: functional.hardtanh(x, **a)), _always(min_val=(-1.0, -0.5), max_val=(1.0, 2.0))
    ),
    "softplus": Operator(
        _of(lambda x, a: functional.softplus(x, **a)), _always(beta=(1.0, 2.0), threshold=(20.0, 5.0))
    ),
    "softmax": Operator(_of(lambda x, a: x.softmax(a["dim"])), _with_dim(2)),
    "log_softmax": Operator(_of(lambda x, a: x.log_softmax(a["dim"])), _with_dim(2)),
    "mean": Operator(_of(lambda x, a: x.mean(**a)), _with_dim(3, keepdim=(False, True))),
    "largest": Operator(_of(lambda x, a: x.amax(**a)), _with_dim(3, keepdim=(False, True))),
    "sums": Operator(_of(lambda x, a: x.cumsum(a["dim"]) * 0.25), _with_dim(2)),
    "flip": Operator(_of(lambda x, a: x.flip(a["dim"])), _with_dim(2)),
    "roll": Operator(_of(lambda x, a: x.roll(a["shift"], a["dim"])), _roll_choices),
    "narrow": Operator(_of(lambda x, a: x.narrow(**a)), _narrow_choices),
    "pad": Operator(
        _of(lambda x, a: functional.pad(x, (a["before"], a["after"]), value=a["value"])),
        _from_rank(2, before=(0, 1), after=(1, 2), value=(0.0, 1.0)),
    ),
    "transpose": Operator(
        _of(lambda x, a: x.transpose(1, a["dim"])), lambda s: {"dim": range(2, len(s))} if len(s) > 2 else None
    ),
    "flatten": Operator(
        _of(lambda x, a: x.flatten(a["start"])), lambda s: {"start": range(1, len(s) - 1)} if len(s) > 2 else None
    ),
    "unsqueeze": Operator(
        _of(lambda x, a: x.unsqueeze(a["dim"])), lambda s: {"dim": (1, 2)} if len(s) in (2, 3) else None
    ),
    "attention": Operator(
        _of(_attend), lambda s: {"is_causal": (False, True), "scale": (None, 0.5, 0.25)} if len(s) == 3 else None
    ),
    "through": Operator(_of(_through), _always(dtype=("float64", "bfloat16", "float16"))),
    "scaled": Operator(_of(lambda x, a: x * a["by"] + a["plus"]), _always(by=(0.5, 0.75, 1.5), plus=(0.0, 0.1, -0.2))),
}
"""By name; each takes one floating operand whose first dimension is the batch, and keeps that dimension."""
