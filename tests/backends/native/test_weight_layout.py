"""In channels-last memory only the weights of convolutions change their strides."""

import torch
from torch import nn
from torch.nn import functional

from autotune.backend import Configuration
from autotune.backends.native.backend import BACKEND, PROGRAM
from autotune.backends.native.graph import constant, value
from autotune.backends.native.sites import fused_nodes
from autotune.backends.native.triton_codegen_sites import ATTENTION, layout
from autotune.backends.native.weight_layout import convolutions_in_channels_last
from autotune.model import capture, source
from autotune.model.precision import flat_module
from autotune.model.program import load_program
from autotune.runtime import discovery
from autotune.testing.toy_models import build_artifact

CPU = discovery.find("cpu")
BATCH, SIDE, WINDOW, HEADS, WIDTH = 2, 8, 4, 2, 16
WINDOWS, TOKENS = (SIDE // WINDOW) ** 2, WINDOW**2


class ShiftedWindows(nn.Module):
    """Attention in windows of an image's patches; a table of positions and a mask of hidden pairs are added.

    The mask is [1, windows, 1, tokens, tokens] as in the usual Swin implementations, or [1, heads, tokens, tokens].
    """

    def __init__(self, *, mask_dimensions):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, WIDTH, 2, stride=2)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up = nn.ConvTranspose2d(WIDTH, 3, 2, stride=2)
        shape = (1, WINDOWS, 1, TOKENS, TOKENS) if mask_dimensions == 5 else (1, HEADS, TOKENS, TOKENS)
        self.register_buffer("mask", torch.randn(shape))

    def forward(self, image):
        x = self.patches(image)
        x = x.view(BATCH, WIDTH, SIDE // WINDOW, WINDOW, SIDE // WINDOW, WINDOW).permute(0, 2, 4, 3, 5, 1)
        q, k, v = self.qkv(x.reshape(-1, TOKENS, WIDTH)).reshape(-1, TOKENS, 3, HEADS, WIDTH // HEADS).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if self.mask.dim() == 5:
            scores = (q @ k.transpose(-1, -2)) * (WIDTH // HEADS) ** -0.5
            scores = scores.view(BATCH, WINDOWS, HEADS, TOKENS, TOKENS) + self.mask
            x = scores.view(-1, HEADS, TOKENS, TOKENS).softmax(-1) @ v
        else:
            x = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        x = self.out(x.transpose(1, 2).reshape(-1, TOKENS, WIDTH))
        x = x.view(BATCH, SIDE // WINDOW, SIDE // WINDOW, WINDOW, WINDOW, WIDTH).permute(0, 5, 1, 3, 2, 4)
        return self.up(x.reshape(BATCH, WIDTH, SIDE, SIDE))


def built(folder, *, mask_dimensions, channels_last):
    """Build and load the network; returns its answer, the expected one, and the folder of the artifact."""
    model = ShiftedWindows(mask_dimensions=mask_dimensions).eval()
    inputs = {"image": torch.randn(BATCH, 3, 2 * SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(1))}
    (folder / "source").mkdir()
    (artifact := folder / "artifact").mkdir()
    source.write(folder / "source", capture.capture("swin", BATCH, model, inputs), inputs, factory=None, seed=0)
    values = {"precision": "fp32", "channels_last": channels_last, "attention": True, "attention_kernel": True}
    configuration = Configuration.of("native", values)
    build_artifact(BACKEND, source.CapturedModel(folder / "source"), configuration, CPU, artifact)
    runner = BACKEND.load(artifact, CPU)
    with torch.no_grad():
        return runner(*inputs.values())[0], model(**inputs), artifact


def masked_attentions(module):
    """Return the number of attentions whose stored mask lies as the graph says, as their kernels expect."""
    masks = [node.args[3] for node in fused_nodes(module) if node.target is ATTENTION]
    return sum(
        layout(stored) == layout(value(mask)) for mask in masks if (stored := constant(module, mask)) is not None
    )


def test_a_mask_of_five_dimensions_loads_and_answers_like_the_model(tmp_path):
    answer, expected, artifact = built(tmp_path, mask_dimensions=5, channels_last=True)
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)
    module = flat_module(load_program(artifact / PROGRAM))
    assert any(buffer.dim() == 5 for buffer in module.buffers())


def test_a_mask_of_four_dimensions_keeps_the_strides_that_its_attention_was_planned_for(tmp_path):
    answer, expected, artifact = built(tmp_path, mask_dimensions=4, channels_last=True)
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)
    module = flat_module(load_program(artifact / PROGRAM))
    eager = masked_attentions(module)
    assert eager == 1
    assert convolutions_in_channels_last(module) == 2
    assert masked_attentions(module) == eager
    weights = [parameter for parameter in module.parameters() if parameter.dim() == 4]
    assert len(weights) == 2
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    module.to(memory_format=torch.channels_last)
    assert masked_attentions(module) == 0, "a mask whose strides do not matter proves nothing"
