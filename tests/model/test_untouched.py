"""A caller's module, random state and process are put back, whatever happens in between."""

import os
import random

import numpy
import pytest
import torch
from torch import nn

from autotune.errors import ModelError
from autotune.model.capture import capture
from autotune.model.untouched import process_state, same_values, untouched


class Restless(nn.Module):
    """Changes everything about itself and its process that a forward can."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("seen", torch.zeros(3))
        self.log, self.names = [1], {"a": 1}
        self.plain = torch.ones(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        self.plain.add_(1)
        self.log.append(2)
        self.names["b"] = 2
        self.fresh = x
        self.layer.train()
        self.layer.weight.requires_grad_(False)
        self.layer.register_forward_hook(lambda *_: None)
        self.extra = nn.Linear(1, 1)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(1)
        os.chdir("/")
        torch.rand(1), random.random(), numpy.random.rand()
        raise RuntimeError("and fails")


def state(module):
    return (
        [(name, part.training, sorted(vars(part))) for name, part in module.named_modules()],
        {name: value.clone() for name, value in module.state_dict().items()},
        [one.requires_grad for one in module.parameters()],
        list(module.log), dict(module.names), module.plain.tolist(), len(module.layer._forward_hooks),
        (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), os.getcwd()),
        (torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()),
    )  # fmt: skip


def test_a_capture_that_fails_leaves_everything_as_it_was():
    module, x = Restless().eval(), torch.rand(2, 3)
    before = state(module)
    try:
        with pytest.raises(ModelError, match="and fails"):
            capture("restless", 2, module, {"x": x})
        after = state(module)
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(before, after, strict=True):
        if isinstance(one, dict) and one and isinstance(next(iter(one.values())), torch.Tensor):
            assert one.keys() == other.keys() and all(same_values(one[name], other[name]) for name in one)
        else:
            assert one == other


def test_a_module_in_train_mode_after_a_step_is_captured_as_in_eval_mode_and_stays_in_train_mode():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    module(torch.rand(8, 4)).sum().backward()
    module[2].eval()
    flags = [part.training for part in module.modules()]
    buffers = {name: one.clone() for name, one in module.named_buffers()}
    found = capture("trained", 8, module, {"input": torch.rand(8, 4)}, {"input": torch.rand(8, 4)})
    assert "eval mode" in " ".join(found.notes)
    assert [part.training for part in module.modules()] == flags
    assert all(same_values(one, buffers[name]) for name, one in module.named_buffers())
    assert all(one.grad is not None for one in module[0].parameters())


def test_an_exception_passes_and_the_state_is_put_back():
    before = torch.get_rng_state()
    with pytest.raises(KeyError), process_state():
        torch.manual_seed(7)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_parts_that_were_added_or_swapped_are_taken_out_again():
    module = nn.Sequential(nn.Linear(2, 2))
    first = module[0]
    with untouched(module):
        module[0] = nn.ReLU()
        module.add_module("late", nn.ReLU())
    assert module[0] is first and len(module) == 1


def test_equal_bits_are_equal_values():
    assert same_values(torch.tensor([float("nan"), -0.0]), torch.tensor([float("nan"), -0.0]))
    assert not same_values(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_values(torch.ones(2), torch.ones(2, dtype=torch.float64))
