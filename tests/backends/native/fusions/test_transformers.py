"""How often attention, norms and elementwise trees are found in models as they are, and that their answers stay."""

from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.export import ExportedProgram

from autotune.backends.native.fusions import fuse
from autotune.model.capture import capture
from autotune.model.precision import flat_module
from studies import models
from tests.backends.native.graphs import operators

LAYERS = 2
OURS = ("attention", "norm", "pointwise")
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": LAYERS}
TOKENS = torch.arange(1, 13).reshape(1, 12)
PADDED = (torch.arange(12) < 9).long()[None]


def check(program: ExportedProgram, *inputs: Tensor, tolerance: float) -> tuple[dict[str, int], Counter[str]]:
    """The matches and the operators that are left; the answers must be close."""
    done = fuse(program, OURS)
    with torch.no_grad():
        before, after = flat_module(program)(*inputs), done.module(*inputs)
    torch.testing.assert_close(after, before, rtol=tolerance, atol=tolerance)
    left = Counter(one.removeprefix("autotune_native.").partition(".")[0] for one in operators(done))
    return dict(done.matches), left


def small(name: str, implementation: str, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Tensor]]:
    given: dict[str, Any] = {"attn_implementation": implementation}
    inputs = {"input_ids": TOKENS}
    if name == "Bert":
        config = transformers.BertConfig(vocab_size=99, **SIZES, **given)
        inputs["attention_mask"] = PADDED
    elif name == "Llama":
        config = transformers.LlamaConfig(vocab_size=99, num_key_value_heads=2, use_cache=False, **SIZES, **given)
    elif name == "T5Encoder":
        config = transformers.T5Config(
            vocab_size=99, num_layers=LAYERS, d_model=32, d_kv=8, num_heads=4, d_ff=64, **given
        )
    else:
        config = transformers.ViTConfig(image_size=32, patch_size=8, **SIZES, **given)
        inputs = {"pixel_values": torch.randn(1, 3, 32, 32).to(dtype)}
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")(config).eval().to(dtype)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # weights of ones and biases of zeros would be taken for granted
            parameter.data += torch.randn_like(parameter) / 8
    return model, inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["Bert", "Llama", "T5Encoder", "ViT"])
def test_small_transformers(name: str, implementation: str, dtype: torch.dtype) -> None:
    model, inputs = small(name, implementation, dtype)
    program = capture(name, 1, model, inputs).program
    found, left = check(program, *inputs.values(), tolerance=1e-5 if dtype is torch.float32 else 3e-2)
    # two norms a layer and the last one or, after a sum of tables of one shape, the first one
    assert found["norm"] == 2 * LAYERS + 1
    clamped = name == "T5Encoder" and dtype is torch.float16  # T5 clamps float16 sums before it normalises them
    fused = 0 if clamped else 2 * LAYERS + (name in ("Bert", "ViT"))
    assert (left["add_norm"], left["norm"]) == (fused, 2 * LAYERS + 1 - fused)
    # a float16 mask of the lowest number is a matter of rows that are masked from end to end
    kept = name == "Bert" and implementation == "eager" and dtype is torch.float16
    assert left["scaled_dot_product_attention"] == (0 if kept else LAYERS)
    assert left["softmax"] == (LAYERS if kept else 0)
    if implementation == "eager":
        assert found["attention"] == (0 if kept else LAYERS)
    if name == "Llama":
        assert found["pointwise"] >= LAYERS  # the gated activation; rotations have slices between


def study(name: str, **inputs: Tensor) -> tuple[dict[str, int], Counter[str]]:
    torch.manual_seed(0)
    program = capture(name, 1, getattr(models, name)(), inputs).program
    return check(program, *inputs.values(), tolerance=1e-4)


def test_bert_base() -> None:
    tokens = torch.arange(1000, 1128).reshape(1, 128)
    found, left = study("bert_base", input_ids=tokens, attention_mask=torch.ones(1, 128, dtype=torch.int64))
    assert left["scaled_dot_product_attention"] == 12
    assert found["norm"] == left["add_norm"] == 25  # two a layer, and the embeddings' sum


def test_vit_b16() -> None:
    found, left = study("vit_b16", pixel_values=torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1)))
    assert left["scaled_dot_product_attention"] == 12
    assert found["norm"] == left["add_norm"] == 25
