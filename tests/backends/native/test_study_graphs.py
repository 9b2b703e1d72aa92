"""Graphs of real models: how many nodes simplification leaves, and that the answers stay."""

import torch
from torch import Tensor

from autotune.backends.native.graph import Simplified, simplify
from autotune.backends.native.passes import ALL
from autotune.model.capture import capture
from autotune.model.precision import flat_module
from studies import models


def simplified(name: str, **inputs: Tensor) -> tuple[Simplified, tuple[Tensor, ...], tuple[Tensor, ...]]:
    torch.manual_seed(0)
    program = capture(name, 1, getattr(models, name)(), inputs).program
    done = simplify(program, ALL)
    with torch.no_grad():
        return done, flat_module(program)(*inputs.values()), done.module(*inputs.values())


def targets(done: Simplified) -> set[str]:
    return {str(node.target) for node in done.module.graph.nodes if node.op == "call_function"}


def test_resnet50_loses_every_batch_norm() -> None:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, 224, 224, generator=generator)
    done, before, after = simplified("resnet50", pixel_values=pixels)
    assert done.matches["batch_norm"] == 53
    # each norm takes its answer's element with it, and three of five weights; a convolution without bias gains one
    assert done.nodes_after < done.nodes_before / 2
    assert not any("batch_norm" in target for target in targets(done))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_bert_base_keeps_every_bit() -> None:
    tokens, mask = torch.arange(1000, 1128).reshape(1, 128), torch.ones(1, 128, dtype=torch.int64)
    done, before, after = simplified("bert_base", input_ids=tokens, attention_mask=mask)
    assert done.nodes_after < done.nodes_before
    assert done.matches["identities"] >= 25  # a dropout after the embeddings and two a layer
    assert "aten.clone.default" not in targets(done) and "aten.arange.default" not in targets(done)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
