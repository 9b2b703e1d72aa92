"""What 15 of 100 programs have: state, random numbers, parts in train mode, writes into inputs, shapes from values."""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

from autotune.programs.drawn.operators import Attributes, Call, Shape


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


LAYERS: Mapping[str, Callable[[Attributes, list[Shape]], nn.Module]] = {
    "noise": lambda a, s: Call(lambda x: x + 0.1 * torch.randn_like(x)),
    "dropout": lambda a, s: Call(lambda x: functional.dropout(x, 0.3, training=True)),
    "trained dropout": lambda a, s: Trained(nn.Dropout(0.3)),
    "trained norm": lambda a, s: Trained(nn.BatchNorm1d(s[0][1]) if len(s[0]) < 4 else nn.BatchNorm2d(s[0][1])),
    "trained activation": lambda a, s: Trained(nn.ReLU()),
    "counter": lambda a, s: Counter(matters=False),
    "counted answer": lambda a, s: Counter(matters=True),
    "doubled input": lambda a, s: Call(_doubled),
    "filled input": lambda a, s: Call(_filled),
    "in place": lambda a, s: Call(lambda x: x.clone().relu_().add_(0.5)),
    "branch on values": lambda a, s: Call(lambda x: x * 2 if float(x.mean()) > 0.02 else x - 1),
}
"""By the name that a step gives."""

STATE = ("writer", "trained norm", "counter", "counted answer")
RANDOM = ("noise", "dropout", "trained dropout")
VALUES = ("branch on values",)
WRITING = ("doubled input", "filled input")
HARMLESS = ("trained activation", "in place")
