"""Each fused operator is what torch's own calls say, and what torch is told of it without computing is true."""

import pytest
import torch
from torch.nn import functional

from autotune.backends.native import operators

FUSED = torch.ops.autotune_native


def tensor(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, W, BIAS, ADDED = tensor(2, 3, 8), tensor(5, 8, seed=1), tensor(5, seed=2), tensor(2, 3, 5, seed=3)
IMAGE, KERNEL = tensor(2, 3, 6, 6), tensor(4, 3, 3, 3, seed=4)


@pytest.mark.parametrize("activation", sorted(operators.ACTIVATIONS))
@pytest.mark.parametrize(("bias", "residual"), [(None, None), (BIAS, None), (None, ADDED), (BIAS, ADDED)])
def test_gemm(activation, bias, residual):
    inner = functional.linear(X, W, bias) + (0 if residual is None else residual)
    found = FUSED.gemm(X, W, bias, residual, activation)
    torch.testing.assert_close(found, operators.ACTIVATIONS[activation](inner))
    torch.library.opcheck(FUSED.gemm, (X, W, bias, residual, activation))


def test_two_gemms_in_a_row():
    second = tensor(7, 5, seed=5)
    found = FUSED.gemm_gemm(X, W, BIAS, "relu", second, None, None, "none")
    torch.testing.assert_close(found, functional.linear(torch.relu(functional.linear(X, W, BIAS)), second))
    torch.library.opcheck(FUSED.gemm_gemm, (X, W, BIAS, "relu", second, None, None, "none"))


def test_convolution():
    residual = tensor(2, 4, 6, 6, seed=6)
    arguments = (IMAGE, KERNEL, None, residual, [1, 1], [1, 1], [1, 1], 1, "relu")
    torch.testing.assert_close(FUSED.conv2d(*arguments), torch.relu(torch.conv2d(IMAGE, KERNEL, padding=1) + residual))
    torch.library.opcheck(FUSED.conv2d, arguments)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("pads", "places"), [((1, 1, 1, 1), (3, 3)), ((1, 3, 2, 1), (4, 4)), ((0, -2, 0, -1), (2, 1))])
def test_depthwise_convolution(pads, places, memory):
    x, filters = IMAGE.contiguous(memory_format=memory), tensor(3, 1, 3, 3, seed=4)
    bias, residual = tensor(3, seed=2), tensor(2, 3, *places, seed=3)
    expected = torch.conv2d(functional.pad(x, pads), filters, bias, 2, 0, 1, 3)
    arguments = (x, filters, bias, residual, [2, 2], [pads[2], pads[0]], list(places), [1, 1], "relu")
    answer = FUSED.depthwise_conv2d(*arguments)
    torch.testing.assert_close(answer, torch.relu(expected + residual))
    assert answer.is_contiguous(memory_format=memory)
    torch.library.opcheck(FUSED.depthwise_conv2d, arguments)
    assert FUSED.depthwise_conv2d(x.float(), filters.half(), None, None, *arguments[4:]).dtype is torch.float16


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms(kind):
    weight, bias = tensor(8, seed=7), tensor(8, seed=8)
    normed = FUSED.norm(X, weight, bias, 1e-5, kind)
    mean = X.mean(-1, keepdim=True) if kind == "layer" else 0
    expected = (X - mean) / ((X - mean).square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias
    torch.testing.assert_close(normed, expected)
    other = tensor(2, 3, 8, seed=9)
    total, normed = FUSED.add_norm(X, other, weight, bias, 1e-5, kind)
    torch.testing.assert_close(total, X + other)
    torch.testing.assert_close(normed, FUSED.norm(X + other, weight, bias, 1e-5, kind))
    torch.library.opcheck(FUSED.add_norm, (X, other, weight, bias, 1e-5, kind))


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_blocks_of_pixels_become_channels(memory):
    given = (IMAGE.contiguous(memory_format=memory), [2, 3], [2, 1], [4, 2], 20, torch.float32)
    found = FUSED.space_to_depth(*given)
    assert found.shape == (2, 20, 4, 2) and found.dtype is torch.float32
    # block (2, 1) begins at the pixel (2, 2); its pixel (1, 2) is the one at (3, 4)
    torch.testing.assert_close(found[:, (1 * 3 + 2) * 3 :, 2, 1][:, :3], IMAGE[:, :, 3, 4].float())
    assert not found[:, 18:].any() and not found[:, :, 0].any()
    torch.library.opcheck(FUSED.space_to_depth, given)
