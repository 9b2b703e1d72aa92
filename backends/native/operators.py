"""The fused operators that a rewritten graph is made of, registered with torch as ``torch.ops.autotune_native``.

Each computes by torch's own calls, on any device. These define its result, which a fast kernel must equal within
rounding, and run if there is no fast kernel. A loaded artifact replaces operators by kernels, node by node.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

NAMESPACE = "autotune_native"

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "none": lambda x: x,
        "relu": torch.relu,
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "silu": functional.silu,
        "relu6": functional.relu6,
        "hardswish": functional.hardswish,
        "hardsigmoid": functional.hardsigmoid,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }
)
"""By the names of :data:`autotune.records.kernel_problem.Activation`."""


@torch.library.custom_op(f"{NAMESPACE}::gemm", mutates_args=())
def gemm(a: Tensor, b: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str) -> Tensor:
    """Return activation(a·bᵀ + bias + residual): ``a`` [..., k], ``b`` [n, k], ``bias`` [n], ``residual`` [..., n]."""
    product = functional.linear(a, b, bias)
    if residual is not None:
        product = product + residual
    return _fresh(ACTIVATIONS[activation](product), a, b)


@gemm.register_fake
def _(a: Tensor, b: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str) -> Tensor:
    return a.new_empty((*a.shape[:-1], b.shape[0]))


@torch.library.custom_op(f"{NAMESPACE}::gemm_gemm", mutates_args=())
def gemm_gemm(
    a: Tensor, b0: Tensor, bias0: Tensor | None, activation0: str, b1: Tensor, bias1: Tensor | None,
    residual: Tensor | None, activation1: str,
) -> Tensor:  # fmt: skip
    """Return two GEMMs in a row, the second of the first's answer; shapes as in :func:`gemm`."""
    between = ACTIVATIONS[activation0](functional.linear(a, b0, bias0))
    product = functional.linear(between, b1, bias1)
    if residual is not None:
        product = product + residual
    return _fresh(ACTIVATIONS[activation1](product), a)


@gemm_gemm.register_fake
def _(
    a: Tensor, b0: Tensor, bias0: Tensor | None, activation0: str, b1: Tensor, bias1: Tensor | None,
    residual: Tensor | None, activation1: str,
) -> Tensor:  # fmt: skip
    return a.new_empty((*a.shape[:-1], b1.shape[0]))


@torch.library.custom_op(f"{NAMESPACE}::conv2d", mutates_args=())
def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int, activation: str,
) -> Tensor:  # fmt: skip
    """Return activation(convolution + bias + residual); ``x`` [batch, channels, height, width] in any memory format."""
    answer = torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if residual is not None:
        answer = answer + residual
    return ACTIVATIONS[activation](answer)


@conv2d.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int, activation: str,
) -> Tensor:  # fmt: skip
    return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)


@torch.library.custom_op(f"{NAMESPACE}::depthwise_conv2d", mutates_args=())
def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: Sequence[int],
    before: Sequence[int], places: Sequence[int], dilation: Sequence[int], activation: str,
) -> Tensor:  # fmt: skip
    """Return activation(convolution + bias + residual) of each channel with a filter of its own, in ``weight``'s type.

    ``x`` is [batch, channels, height, width], ``weight`` [channels, 1, *kernel]. The answer is [batch, channels,
    *``places``], contiguous, or in channels-last memory if ``x`` is. The window of the place (Y, X) begins at the pixel
    (Y·stride[0] - before[0], X·stride[1] - before[1]); pixels outside the image are zeros.
    """
    kernel, padding = weight.shape[2:], before
    sides = list(zip(x.shape[2:], kernel, stride, before, places, dilation, strict=True))
    after = [(count - 1) * step + (taps - 1) * gap + 1 - first - size for size, taps, step, first, count, gap in sides]
    # torch pads both sides alike; further zeros after the image are read by no window if there are as many places
    if any((size + 2 * first - (taps - 1) * gap - 1) // step + 1 != count
           for size, taps, step, first, count, gap in sides):  # fmt: skip
        x, padding = functional.pad(x, (before[1], after[1], before[0], after[0])), (0, 0)
    answer = torch.conv2d(x.to(weight.dtype), weight, bias, stride, padding, dilation, weight.shape[0])
    if residual is not None:
        answer = answer + residual
    return ACTIVATIONS[activation](answer).contiguous(memory_format=_memory_format(x))


@depthwise_conv2d.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: Sequence[int],
    before: Sequence[int], places: Sequence[int], dilation: Sequence[int], activation: str,
) -> Tensor:  # fmt: skip
    answer = x.new_empty((*x.shape[:2], *places), dtype=weight.dtype)
    return answer.contiguous(memory_format=_memory_format(x))


@torch.library.custom_op(f"{NAMESPACE}::norm", mutates_args=())
def norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, kind: str, dtype: torch.dtype | None = None
) -> Tensor:
    """Normalise over the last dimension: ``kind`` ``layer`` (mean and variance) or ``rms`` (mean of squares).

    ``weight`` and ``bias`` have the last dimension's length; statistics are fp32 at least. The answer is contiguous, of
    ``dtype``, or of the type of ``x`` without it.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    if kind == "layer" and dtype is None:
        return functional.layer_norm(x, x.shape[-1:], weight, bias, eps).contiguous()
    gain, shift = (None if vector is None else vector.to(wide) for vector in (weight, bias))
    answer = x.to(wide)
    if kind == "layer":
        answer = functional.layer_norm(answer, x.shape[-1:], gain, shift, eps)
    else:
        answer = answer * (answer.square().mean(-1, keepdim=True) + eps).rsqrt()
        answer = answer if gain is None else answer * gain
        answer = answer if shift is None else answer + shift
    return answer.to(dtype or x.dtype).contiguous()


@norm.register_fake
def _(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, kind: str, dtype: torch.dtype | None = None
) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


@torch.library.custom_op(f"{NAMESPACE}::add_norm", mutates_args=())
def add_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, kind: str,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the sum of two tensors of one shape and dtype, and the sum normalised as by :func:`norm`."""
    total = x + residual
    return total, norm(total, weight, bias, eps, kind, dtype)


@add_norm.register_fake
def _(
    x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, kind: str,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=dtype)


@torch.library.custom_op(f"{NAMESPACE}::group_norm", mutates_args=())
def group_norm(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str
) -> Tensor:
    """Return activation(norm) over ``groups`` of the channels of ``x`` [batch, channels, ...].

    The answer is contiguous, or in channels-last memory if ``x`` is.
    """
    answer = ACTIVATIONS[activation](torch.group_norm(x, groups, weight, bias, eps))
    return answer.contiguous(memory_format=_memory_format(x))


@group_norm.register_fake
def _(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str) -> Tensor:
    return torch.empty_like(x, memory_format=_memory_format(x))


@torch.library.custom_op(f"{NAMESPACE}::max_pool2d", mutates_args=())
def max_pool2d(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Return the largest of each window of ``x`` [batch, channels, height, width], in any memory format."""
    return torch.max_pool2d(x, kernel, stride, padding, dilation)  # type: ignore[arg-type]


@max_pool2d.register_fake
def _(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    return torch.max_pool2d(x, kernel, stride, padding, dilation)  # type: ignore[arg-type]


@torch.library.custom_op(f"{NAMESPACE}::mean_pool2d", mutates_args=())
def mean_pool2d(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return the mean of each channel of each image: [batch, channels, 1, 1] of [batch, channels, height, width].

    It is of ``dtype``, or of the type of ``x`` without it.
    """
    wide = x if dtype in (None, x.dtype) else x.to(torch.promote_types(x.dtype, torch.float32))
    return functional.adaptive_avg_pool2d(wide, 1).to(dtype or x.dtype)


@mean_pool2d.register_fake
def _(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return functional.adaptive_avg_pool2d(x, 1).to(dtype or x.dtype)


@torch.library.custom_op(f"{NAMESPACE}::space_to_depth", mutates_args=())
def space_to_depth(
    x: Tensor, block: Sequence[int], before: Sequence[int], size: Sequence[int], channels: int, dtype: torch.dtype
) -> Tensor:
    """Divide images [batch, c, height, width] into blocks of pixels, whose elements become channels, as ``dtype``.

    Returns [batch, ``channels``, *``size``]: block (Y, X) begins at the pixel (Y·block[0] - before[0], X·block[1] -
    before[1]), and of its pixel (y, x) the channel i is the channel (y·block[1] + x)·c + i. Pixels outside the image
    and remaining channels are zeros.
    """
    (down, right), (above, left) = block, before
    below, beside = (
        steps * side - first - whole for steps, side, first, whole in zip(size, block, before, x.shape[2:], strict=True)
    )
    whole = functional.pad(x.to(dtype), (left, beside, above, below))
    parts = whole.reshape(*x.shape[:2], size[0], down, size[1], right).permute(0, 3, 5, 1, 2, 4)
    answer = parts.reshape(x.shape[0], -1, *size)
    return functional.pad(answer, (0, 0, 0, 0, 0, channels - answer.shape[1]))


@space_to_depth.register_fake
def _(
    x: Tensor, block: Sequence[int], before: Sequence[int], size: Sequence[int], channels: int, dtype: torch.dtype
) -> Tensor:
    return x.new_empty((x.shape[0], channels, *size), dtype=dtype)


@torch.library.custom_op(f"{NAMESPACE}::attention", mutates_args=())
def attention(
    query: Tensor, key: Tensor, values: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """Return the scaled dot product attention of [batch, heads, rows, depth] as torch defines it.

    ``mask`` broadcasts to [batch, heads, rows, columns]: true if a key is seen, or of the queries' type and added.
    The answer's memory is in the order [batch, rows, heads, depth], in which the next layer reads it.
    """
    answer = functional.scaled_dot_product_attention(query, key, values, mask, 0.0, causal, scale=scale)
    return answer.transpose(1, 2).contiguous().transpose(1, 2)


@attention.register_fake
def _(query: Tensor, key: Tensor, values: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    batch, heads, rows, _ = query.shape
    return query.new_empty((batch, rows, heads, values.shape[-1])).transpose(1, 2)


def _memory_format(x: Tensor) -> torch.memory_format:
    """Return channels last for images that lie in it and not in contiguous memory, too."""
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not x.is_contiguous() else torch.contiguous_format


def _fresh(answer: Tensor, *operands: Tensor) -> Tensor:
    """Return an answer that shares no memory with the operands."""
    return answer.clone() if any(answer is tensor for tensor in operands) else answer.contiguous()
