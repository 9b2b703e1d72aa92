"""Fusions run in their order, each by its name, and are counted."""

import pytest
import torch
from torch import nn

from autotune.backends.native.fusions import FUSIONS, fuse, matches
from autotune.errors import WorkError
from autotune.search_spaces import native


def program() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4), nn.SiLU())
    with torch.no_grad():
        return torch.export.export(layers.eval(), (torch.randn(1, 3, 2, 2),))


def test_the_order_is_that_of_the_search_space() -> None:
    assert tuple(FUSIONS) == native.FUSIONS
    assert [one.name for one in FUSIONS.values()] == list(FUSIONS)


def test_only_what_is_asked_for_is_fused_and_all_is_counted() -> None:
    assert fuse(program(), ()).matches == {}
    assert fuse(program(), ["conv_act", "conv_bn"]).matches == {"conv_bn": 1, "conv_act": 1}
    found = matches(program())
    assert list(found) == list(FUSIONS)
    assert {name: count for name, count in found.items() if count} == {"conv_bn": 1, "gemm_epilogue": 1, "conv_act": 1}


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(WorkError, match="no fusion named batch_norm"):
        fuse(program(), ["batch_norm"])


def test_a_fused_graph_can_be_captured_again() -> None:
    x = torch.randn(1, 3, 2, 2)
    done = fuse(program(), FUSIONS)
    with torch.no_grad():
        again = torch.export.export(done.module, (x,)).module()
        torch.testing.assert_close(again(x), done.module(x))
