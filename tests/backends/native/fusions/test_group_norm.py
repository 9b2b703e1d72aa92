"""Group norms become an operator with the activation after them, within rounding."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.backends.native.fusions.comparing import DTYPES, FEW, fused, nodes
from tests.backends.native.graphs import operators, program_of

AFTER: dict[str, Any] = {
    "none": lambda x: x.sin(), "silu": functional.silu, "relu": torch.relu, "spelled": lambda x: x * torch.sigmoid(x),
}  # fmt: skip


@FEW
@given(data=st.data())
def test_group_norms_stay_within_rounding(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    dtype, name = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(sorted(AFTER)))
    groups, shape = draw(st.integers(1, 3)), draw(st.lists(st.integers(2, 5), min_size=1, max_size=2))
    channels, affine, tapped = groups * draw(st.integers(2, 3)), draw(st.booleans()), draw(st.booleans())
    x, weight, bias = torch.randn(2, channels, *shape).to(dtype), torch.randn(channels), torch.randn(channels)

    def forward(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        normed = functional.group_norm(x, groups, *((m.weight, m.bias) if affine else ()))
        return (AFTER[name](normed), normed.sum()) if tapped else (AFTER[name](normed),)

    program = program_of(forward, x, weight=weight.to(dtype), bias=bias.to(dtype))
    done, before, after = fused(program, ["norm"], x)
    assert done.matches == {"norm": 1}
    (node,) = nodes(done, "group_norm")
    assert node.args[5] == ("none" if tapped or name == "none" else {"spelled": "silu"}.get(name, name))
    tolerance = 32 * torch.finfo(dtype).eps
    torch.testing.assert_close(after[0], before[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_the_operator_keeps_the_layout_of_its_input(memory: torch.memory_format) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 6, 3, 4, dtype=torch.float64), *torch.randn(2, 6, dtype=torch.float64)
    given = (x.contiguous(memory_format=memory), 3, weight, bias, 1e-5, "silu")
    answer = torch.ops.autotune_native.group_norm(*given)
    grouped = x.reshape(2, 3, -1)
    mean, deviation = grouped.mean(-1, keepdim=True), (grouped.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    normed = ((grouped - mean) / deviation).reshape(x.shape) * weight[:, None, None] + bias[:, None, None]
    torch.testing.assert_close(answer, normed * torch.sigmoid(normed))
    assert answer.is_contiguous(memory_format=memory)
    torch.library.opcheck(torch.ops.autotune_native.group_norm, given, test_utils=("test_schema", "test_faketensor"))


def test_another_activation_stays_behind_the_norm() -> None:
    x = torch.randn(2, 6, 3, 4)
    program = program_of(lambda m, x: functional.gelu(functional.group_norm(x, 3)), x)
    done, before, after = fused(program, ["norm"], x)
    assert operators(done) == ["autotune_native.group_norm.default", "gelu.default"]
    torch.testing.assert_close(after, before)
