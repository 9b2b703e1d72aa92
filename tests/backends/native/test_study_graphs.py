"""Graphs of real models: how many nodes simplification leaves, and that the answers stay."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from autotune.backends.native.fusions import Fused, fuse
from autotune.backends.native.graph import simplify
from autotune.backends.native.passes import EXACT
from autotune.backends.native.sites import sites
from autotune.model.capture import capture
from autotune.model.precision import flat_module
from studies import models


def fused(
    name: str, fusions: tuple[str, ...], **inputs: Tensor
) -> tuple[Fused, tuple[Tensor, ...], tuple[Tensor, ...]]:  # fmt: skip
    torch.manual_seed(0)
    program = capture(name, 1, getattr(models, name)(), inputs).program
    done = fuse(program, fusions)
    with torch.no_grad():
        return done, flat_module(program)(*inputs.values()), done.module(*inputs.values())


def targets(done: Fused) -> set[str]:
    return {str(node.target) for node in done.module.graph.nodes if node.op == "call_function"}


def pixels() -> Tensor:
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def text() -> dict[str, Tensor]:
    tokens = torch.arange(1000, 1128).reshape(1, 128)
    return {"input_ids": tokens, "attention_mask": torch.ones(1, 128, dtype=torch.int64)}


def epilogues(done: Fused, operator: str) -> Counter[tuple[bool, str]]:
    """How many of a fused operator there are, by whether they have a residual, and by activation."""
    nodes = [node for node in done.module.graph.nodes if str(node.target) == f"autotune_native.{operator}.default"]
    return Counter((node.args[3] is not None, str(node.args[-1])) for node in nodes)


def test_resnet50_is_made_of_fused_convolutions() -> None:
    done, before, after = fused("resnet50", ("conv_bn", "gemm_epilogue", "conv_act"), pixel_values=pixels())
    assert done.matches == {"conv_bn": 53, "gemm_epilogue": 1, "conv_act": 53}
    # each norm takes its answer's element with it, and three of five weights; a convolution without bias gains one
    assert done.nodes_after < done.nodes_before / 2
    # of 16 blocks each ends in a residual and a ReLU; two ReLUs inside each and one at the start; four shortcuts
    assert epilogues(done, "conv2d") == {(True, "relu"): 16, (False, "relu"): 33, (False, "none"): 4}
    assert not any("batch_norm" in one or "relu" in one or "add" in one for one in targets(done))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_resnet50_begins_with_blocks_of_pixels_and_pools_by_kernels() -> None:
    names = ("conv_bn", "space_to_depth", "conv_act", "pooling")
    done, before, after = fused("resnet50", names, pixel_values=pixels())
    assert done.matches == {"conv_bn": 53, "space_to_depth": 1, "conv_act": 53, "pooling": 2}
    stem = next(node for node in done.module.graph.nodes if str(node.target) == "autotune_native.conv2d.default")
    images, filters = (node.meta["val"].shape for node in stem.args[:2])
    assert (tuple(images), tuple(filters)) == ((1, 16, 115, 115), (64, 16, 4, 4))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_efficientnet_b0_takes_its_activations_and_its_padding_by_name() -> None:
    done, before, after = fused("efficientnet_b0", ("conv_bn", "conv_act"), pixel_values=pixels())
    assert done.matches == {"conv_bn": 49, "conv_act": 81}
    assert epilogues(done, "conv2d") == {
        (False, "silu"): 49,
        (False, "sigmoid"): 16,
        (True, "none"): 9,
        (False, "none"): 7,
    }
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_mobilenet_v2_takes_its_clipped_activations_along() -> None:
    done, before, after = fused("mobilenet_v2", ("conv_bn", "conv_act"), pixel_values=pixels())
    assert done.matches == {"conv_bn": 52, "conv_act": 52}
    assert epilogues(done, "conv2d") == {(False, "relu6"): 35, (True, "none"): 10, (False, "none"): 7}
    assert "aten.hardtanh.default" not in targets(done)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "counts", "activation"),
    [("mobilenet_v2", (17, 35), "relu6"), ("efficientnet_b0", (16, 65), "silu")],
)
def test_depthwise_convolutions_are_operators_of_their_own(
    model: str, counts: tuple[int, int], activation: str
) -> None:
    names = ("conv_bn", "space_to_depth", "depthwise", "conv_act")
    done, before, after = fused(model, names, pixel_values=pixels())
    assert (done.matches["depthwise"], done.matches["conv_act"]) == counts
    convolutions = [node for node in done.module.graph.nodes if "depthwise_conv2d" in str(node.target)]
    assert {str(node.args[-1]) for node in convolutions} == {activation}
    # EfficientNet pads by more on one side than on the other before a stride of 2
    assert not {"aten.conv2d.default", "aten.pad.default"} & targets(done)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_bert_base_is_made_of_fused_products() -> None:
    done, before, after = fused("bert_base", ("qkv", "gemm_epilogue"), **text())
    assert done.matches == {"qkv": 12, "gemm_epilogue": 49}  # four a layer, and the pooler's
    assert epilogues(done, "gemm") == {(False, "gelu"): 12, (True, "none"): 24, (False, "none"): 12, (False, "tanh"): 1}
    problems = Counter(site.problem for site in sites(done.module, channels_last=False))
    assert None not in problems and len(problems) == 5
    assert {(one.m, one.n, one.k): count for one, count in problems.items() if one} == {
        (128, 2304, 768): 12, (128, 768, 768): 12, (128, 3072, 768): 12, (128, 768, 3072): 12, (1, 768, 768): 1,
    }  # fmt: skip
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_vit_b16_has_pairs_of_products_and_norms_alone() -> None:
    names = ("space_to_depth", "qkv", "attention_kernel", "norm", "gemm_epilogue", "conv_act", "back_to_back_gemm")
    done, before, after = fused("vit_b16", names, pixel_values=pixels())
    matches = {"qkv": 12, "gemm_epilogue": 49, "conv_act": 1, "back_to_back_gemm": 12, "attention_kernel": 12}
    assert done.matches == {**matches, "space_to_depth": 1, "norm": 25}
    (patches,) = [site.problem for site in sites(done.module, channels_last=True) if site.operator == "conv2d"]
    assert patches is not None and (patches.m, patches.n, patches.k, patches.window) == (196, 768, 768, None)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_bert_base_simplified_keeps_every_bit() -> None:
    torch.manual_seed(0)
    program = capture("bert_base", 1, models.bert_base(), text()).program
    done = simplify(program, EXACT)
    with torch.no_grad():
        before, after = flat_module(program)(*text().values()), done.module(*text().values())
    left = {str(node.target) for node in done.module.graph.nodes}
    assert done.nodes_after < done.nodes_before
    assert done.matches["identities"] >= 25  # a dropout after the embeddings and two a layer
    assert "aten.clone.default" not in left and "aten.arange.default" not in left
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
