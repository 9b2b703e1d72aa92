import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autotune.model.capture import capture
from autotune.model.masks import drop_neutral_masks

LENGTH, SIZE = 6, 8
SDPA = nn.functional.scaled_dot_product_attention


class Attention(nn.Module):
    """Attention of an input to itself under a mask that ``kind`` makes; ``keyword`` says how it is passed."""

    def __init__(self, kind: str, *, keyword: bool = True) -> None:
        super().__init__()
        self.kind, self.keyword = kind, keyword
        self.register_buffer("stored", torch.ones(LENGTH, LENGTH, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unsqueeze(1)
        mask = self.mask(x)
        if self.keyword:
            return SDPA(heads, heads, heads, attn_mask=mask).squeeze(1)
        return SDPA(heads, heads, heads, mask).squeeze(1)

    def mask(self, x: Tensor) -> Tensor | None:
        positions = torch.arange(LENGTH)
        if self.kind == "all true":
            return (positions >= 0).expand(x.shape[0], 1, LENGTH, LENGTH)
        if self.kind == "zeros":
            return torch.zeros(LENGTH, LENGTH)
        if self.kind == "causal":
            return positions[:, None] >= positions[None, :]
        if self.kind == "bias":
            return positions.float().expand(LENGTH, LENGTH)
        if self.kind == "of the input":
            return (x.sum(-1) > -1e9)[:, None, None, :]
        if self.kind == "stored":
            return self.stored
        return None


def masked(program: torch.export.ExportedProgram) -> bool:
    attention = torch.ops.aten.scaled_dot_product_attention.default
    (node,) = (node for node in program.graph.nodes if node.target is attention)
    return (node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")) is not None


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize(
    ("kind", "stays"),
    [
        ("all true", False),
        ("zeros", False),
        ("none", False),
        ("causal", True),
        ("bias", True),
        ("of the input", True),
        ("stored", True),
    ],
)
def test_only_a_mask_of_constants_that_masks_nothing_is_dropped(kind: str, stays: bool, keyword: bool) -> None:
    module, x = Attention(kind, keyword=keyword).eval(), torch.randn(2, LENGTH, SIZE)
    program = capture("toy", 2, module, {"x": x}).program
    assert masked(program) is stays
    torch.testing.assert_close(program.module()(x)[0], module(x))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=4, max_size=4))
def test_whatever_a_literal_mask_holds_the_answer_stays(rows: list[list[bool]]) -> None:
    keep = torch.tensor(rows) | torch.eye(4, dtype=torch.bool)  # every query keeps a key

    class Literal(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return SDPA(x, x, x, attn_mask=keep)

    x = torch.randn(1, 1, 4, SIZE)
    program = torch.export.export(Literal(), (x,))
    dropped = drop_neutral_masks(program)
    assert dropped == int(bool(keep.all()))
    torch.testing.assert_close(program.module()(x), Literal()(x))


def test_the_same_model_with_and_without_the_mask_is_one_workload() -> None:
    x = torch.randn(2, LENGTH, SIZE)
    workloads = [capture("toy", 2, Attention(kind).eval(), {"x": x}).workload for kind in ("none", "all true")]
    assert workloads[0].structure == workloads[1].structure
