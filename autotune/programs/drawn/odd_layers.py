"""Oddities of 15 in 100 programs: state, random numbers, train mode, writes into inputs, branches on values."""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

from autotune.programs.drawn.operators import Call


class Trained(nn.Module):
    """A layer that stays in train mode though the whole model is in eval mode."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def train(self, mode: bool = True) -> "Trained":
        """Leave the layer in train mode."""
        self.training = mode
        self.layer.train()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Call the layer."""
        return self.layer(x)  # type: ignore[no-any-return]


class Counter(nn.Module):
    """Counts its calls in a plain attribute; the answer may depend on the count."""

    def __init__(self, *, matters: bool) -> None:
        super().__init__()
        self.matters = matters
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Count, and perhaps add the count."""
        self.calls += 1
        return x + 0.01 * self.calls if self.matters else x + 0.5


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return x.mul_(2.0)


def _filled(x: torch.Tensor) -> torch.Tensor:
    x[:, 0] = 0.25
    return x * 1.5


LAYERS: Mapping[str, Callable[..., nn.Module]] = {
    "noise": lambda shapes: Call(lambda x: x + 0.1 * torch.randn_like(x)),
    "dropout": lambda shapes: Call(lambda x: functional.dropout(x, 0.3, training=True)),
    "trained dropout": lambda shapes: Trained(nn.Dropout(0.3)),
    "trained norm": lambda shapes: Trained(
        nn.BatchNorm1d(shapes[0][1]) if len(shapes[0]) < 4 else nn.BatchNorm2d(shapes[0][1])
    ),
    "trained activation": lambda shapes: Trained(nn.ReLU()),
    "counter": lambda shapes: Counter(matters=False),
    "counted answer": lambda shapes: Counter(matters=True),
    "doubled input": lambda shapes: Call(_doubled),
    "filled input": lambda shapes: Call(_filled),
    "in place": lambda shapes: Call(lambda x: x.clone().relu_().add_(0.5)),
    "branch on values": lambda shapes: Call(lambda x: x * 2 if float(x.mean()) > 0.02 else x - 1),
}
"""By the operator of a step."""

STATE = ("writer", "trained norm", "counter", "counted answer")
RANDOM = ("noise", "dropout", "trained dropout")
VALUES = ("branch on values",)
WRITING = ("doubled input", "filled input")
HARMLESS = ("trained activation", "in place")
