"""A model small enough to tune in a test, as a factory that a study file could name."""

import torch

from autotune.model.factory import weights_follow


def make() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))


def once() -> torch.nn.Module:
    """A model that can be made at the beginning of a study, and not again from its stored weights."""
    if weights_follow():
        raise RuntimeError("it can be made only once")
    return make()


def broken() -> torch.nn.Module:
    raise RuntimeError("no weights to be found")


def constant() -> torch.nn.Module:
    class Constant(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ones(x.shape[0], 4) + 0 * x.mean()

    return Constant()
