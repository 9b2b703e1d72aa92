"""Where fusions match: paths of the modules that a model is made of, through precision, fusion and a second capture."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, ResNetConfig, ResNetForImageClassification

from autotune.backends.native.fusions import FUSIONS, fuse
from autotune.backends.native.graph import place, put_in_place
from autotune.backends.native.sites import sites
from autotune.model.capture import capture
from autotune.model.precision import flat_module, in_precision

TOKENS = torch.arange(8).reshape(1, 8)
IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def bert(**changes):
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 20}
    return BertModel(BertConfig(num_hidden_layers=2, **sizes, **changes)).eval()


def resnet():
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2]}
    return ResNetForImageClassification(ResNetConfig(**sizes)).eval()


def program_of(model, precision="fp32", **inputs):
    return in_precision(capture("toy", 1, model, inputs).program, tuple(inputs.values()), precision)


def layers(*parts):
    return tuple(f"encoder.layer.{number}.{part}" for number in (0, 1) for part in parts)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_transformer_s_fusions_are_in_its_layers(precision):
    program = program_of(bert(attn_implementation="eager"), precision, input_ids=TOKENS)
    names = [name for name in FUSIONS if name != "back_to_back_gemm"]
    done = fuse(program, names)
    found = {name: places for name, places in done.places.items() if places}
    assert found["qkv"] == found["attention"] == layers("attention.self")
    assert found["norm"][-4:] == layers("attention.output.LayerNorm", "output.LayerNorm")
    products = layers("attention.self", "attention.output.dense", "intermediate.dense", "output.dense")
    assert found["gemm_epilogue"] == (*products, "pooler.dense")
    assert done.matches == {name: len(done.places[name]) for name in names}
    assert list(done.places) == names


def test_a_pair_of_products_is_in_the_module_around_both():
    done = fuse(program_of(bert(), input_ids=TOKENS), ["gemm_epilogue", "back_to_back_gemm"])
    assert done.places["back_to_back_gemm"] == ("encoder.layer.0", "encoder.layer.1")


def test_convolutions_and_their_norms_are_where_they_stand_in_the_model():
    done = fuse(program_of(resnet(), pixel_values=IMAGE), ["conv_bn", "conv_act"])
    for name, part in (("conv_bn", "normalization"), ("conv_act", "convolution")):
        assert len(done.places[name]) == 12  # the first, three in each of three layers, and two shortcuts
        assert done.places[name][0] == f"resnet.embedder.embedder.{part}"
        assert f"resnet.encoder.stages.1.layers.0.shortcut.{part}" in done.places[name]


def test_sites_keep_their_places_when_the_graph_is_captured_again():
    done = fuse(program_of(bert(), "fp16", input_ids=TOKENS), ["qkv", "gemm_epilogue"])
    with torch.no_grad():
        again = torch.export.export(done.module, (TOKENS,))
    found = sites(flat_module(again), channels_last=False)
    assert tuple(site.place for site in found) == done.places["gemm_epilogue"]


def test_code_outside_every_module_has_no_path():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(x) @ torch.ones(4, 4)

    done = fuse(program_of(Own().eval(), x=torch.ones(2, 4)), ["gemm_epilogue"])
    assert done.places["gemm_epilogue"] == ("inner", "")  # the model's own `inner`, not the one it is captured in


def test_a_node_without_a_capture_has_no_path():
    graph = torch.fx.Graph()
    one, other = graph.placeholder("one"), graph.placeholder("other")
    put_in_place(one, other)
    assert place(one) == place(other) == ""
