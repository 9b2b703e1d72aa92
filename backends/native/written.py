"""Kernels by Triton for all but GEMMs and convolutions, planned and compiled at build.

Norms, attention and pooling have one plan, the latter only where the model runs in channels-last memory. Programs and
blocks of pixels have one for each way in which their inputs may lie in memory: as the graph was captured, and channels
last where the model runs in that; with any other way torch's own operators stay.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from autotune import environment
from autotune.backends.native.graph import value
from autotune.backends.native.sites import DTYPES, fused_nodes
from autotune.backends.native.triton_kernels import attention, norm, pointwise, pooling, space_to_depth
from autotune.backends.native.triton_kernels.ahead import CompiledKernel, Refused, TritonCache, TritonCompiler
from autotune.backends.native.triton_kernels.attention import AttentionShape
from autotune.backends.native.triton_kernels.norm import NormShape
from autotune.backends.native.triton_kernels.packed import pack_plan
from autotune.backends.native.triton_kernels.plan import Plan
from autotune.backends.native.triton_kernels.pointwise import InputLayout
from autotune.backends.native.triton_kernels.pooling import PoolShape
from autotune.backends.native.triton_kernels.space_to_depth import BlockShape
from autotune.backends.native.written_sites import (
    ADD_NORM,
    ATTENTION,
    FOLDER,
    MAX_POOL,
    MEAN_POOL,
    NORM,
    POINTWISE,
    SPACE_TO_DEPTH,
    Layout,
    layout,
    reads,
)
from autotune.errors import WorkError
from autotune.records.device import Device
from autotune.records.kernel_problem import Window

log = logging.getLogger(__name__)

NHWC = (0, 2, 3, 1)
WRITTEN = (NORM, ADD_NORM, POINTWISE, ATTENTION, MAX_POOL, MEAN_POOL, SPACE_TO_DEPTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A plan for one node; a program's with the layouts of its inputs, and whether its answer lies channels last."""

    plan: Plan
    layouts: tuple[Layout, ...] = ()
    channels_last: bool = False


def write_kernels(
    module: GraphModule, device: Device, folder: Path, *, channels_last: bool, early: bool = False
) -> dict[int, Any]:
    """Compile kernels for the norms and programs of a graph and pack them into ``folder``.

    With ``early`` their launches may begin before those before them have ended, from sm_90 on.
    Gives by the place among the fused nodes what the artifact's record says of it: ``plans``, or ``why`` there are
    none; and under ``sources`` of each the digests by file. Nothing on a CPU.
    """
    if device.kind != "cuda":
        return {}
    found: dict[int, list[Written] | str] = {}
    for index, node in enumerate(fused_nodes(module)):
        if node.target in WRITTEN:
            try:
                found[index] = list(_planned(node, channels_last=channels_last, early=early))
            except (WorkError, ValueError) as error:
                found[index] = str(error)
    try:
        compiler = TritonCompiler.find(device)
    except WorkError as error:
        return {index: {"why": str(error)} for index in found}
    sources = [s for each in found.values() if not isinstance(each, str) for one in each for s in one.plan.sources]
    distinct = list(dict.fromkeys(sources))
    try:
        cache = TritonCache(environment.cache_folder() / "kernels" / "triton" / compiler.version)
        made = dict(zip(distinct, cache.compile(compiler, distinct), strict=True))
    except (WorkError, OSError) as error:
        log.warning("norms and pointwise operators are left to torch: %s", error)
        return {index: {"why": str(error)} for index in found}
    return {
        index: {"why": each} if isinstance(each, str) else _packed(each, made, folder) for index, each in found.items()
    }


def _planned(node: Node, *, channels_last: bool, early: bool) -> Iterator[Written]:
    """Plan a node; raises WorkError or ValueError where it is torch's."""
    if node.target is POINTWISE:
        yield from _program_plans(node, channels_last=channels_last, early=early)
        return
    if node.target is ATTENTION:
        of_attention, layouts = _attention_shape(node, early=early)
        yield Written(plan=attention.plan(of_attention), layouts=layouts)
        return
    if node.target is SPACE_TO_DEPTH:
        yield from _block_plans(node, channels_last=channels_last, early=early)
        return
    if node.target in (MAX_POOL, MEAN_POOL):
        plan = pooling.max_pool if node.target is MAX_POOL else pooling.mean_pool
        yield Written(plan=plan(_pool_shape(node, channels_last=channels_last, early=early)))
        return
    x, residual, weight, bias, eps, kind = _norm_arguments(node)
    given = value(x)
    vectors = [None if each is None else value(each) for each in (weight, bias)]
    if given is None or not given.numel() or given.dtype not in DTYPES:
        raise ValueError("its input is empty, or of a type that kernels do not read")
    if any(one is not None and one.dtype not in DTYPES for one in vectors):
        raise ValueError("its weights are of a type that kernels do not read")
    columns = given.shape[-1]
    dtypes = [None if one is None else DTYPES[one.dtype] for one in vectors]
    shape = NormShape(
        rows=given.numel() // columns, columns=columns, dtype=DTYPES[given.dtype], weight=dtypes[0], bias=dtypes[1],
        eps=eps, kind=cast(Any, kind), residual=residual is not None,
        total=residual is not None and reads(node, 0), early=early,
    )  # fmt: skip
    yield Written(plan=norm.plan(shape))


def _attention_shape(node: Node, *, early: bool) -> tuple[AttentionShape, tuple[Layout, ...]]:
    """What the kernel of an attention is compiled for: sizes, and how its operands lie in memory."""
    *operands, mask, causal, scale = node.args
    tensors = [value(one) for one in (*operands, *([] if mask is None else [mask]))]
    known = [tensor for tensor in tensors if tensor is not None]
    if len(known) != len(tensors) or any(one.stride(-1) != 1 for one in known[:3]):
        raise ValueError("its operands are not tensors whose rows lie in one piece")
    query, key, values, *masks = known
    if DTYPES.get(query.dtype) not in ("fp16", "bf16"):
        raise ValueError(f"its kernel computes in fp16 or bf16, and it is in {query.dtype}")
    batch, heads, rows, depth = query.shape
    seen = masks[0].expand(batch, heads, rows, key.shape[2]) if masks else None
    shape = AttentionShape(
        batch=batch, heads=heads, rows=rows, columns=key.shape[2], depth=depth, dtype=cast(Any, DTYPES[query.dtype]),
        scale=cast("float | None", scale) or depth**-0.5, q=_strides(query), k=_strides(key), v=_strides(values),
        mask=None if seen is None else tuple(seen.stride()), causal=bool(causal), early=early,
        mask_dtype="bool" if seen is None or seen.dtype is torch.bool else cast(Any, DTYPES[seen.dtype]),
    )  # fmt: skip
    return shape, tuple(map(layout, known))


def _pool_shape(node: Node, *, channels_last: bool, early: bool) -> PoolShape:
    x, *sides = node.args
    given = value(x)
    if given is None or not channels_last or given.dtype not in DTYPES:
        raise ValueError("pooling has kernels for images in channels-last memory of types that kernels read")
    kernel, stride, padding, dilation = cast("list[list[int]]", sides or [[1, 1], [1, 1], [0, 0], [1, 1]])
    window = Window(
        height=given.shape[2], width=given.shape[3], channels=given.shape[1], kernel=(kernel[0], kernel[1]),
        stride=(stride[0], stride[1]), padding=(padding[0], padding[1]), dilation=(dilation[0], dilation[1]),
    )  # fmt: skip
    return PoolShape(images=given.shape[0], window=window, dtype=DTYPES[given.dtype], early=early)


def _block_plans(node: Node, *, channels_last: bool, early: bool) -> Iterator[Written]:
    x, block, before, size, channels, dtype = cast("tuple[Any, ...]", node.args)
    given = value(x)
    if given is None or not channels_last or not {given.dtype, dtype} <= set(DTYPES):
        raise ValueError("blocks have kernels for answers in channels-last memory of types that kernels read")
    lying = dict.fromkeys((layout(given), layout(_as_channels_last(given))))
    for shape, strides in lying:
        shape_of = BlockShape(
            shape=cast(Any, shape), strides=cast(Any, strides), dtype=DTYPES[given.dtype], output=DTYPES[dtype],
            block=tuple(block), before=tuple(before), size=tuple(size), channels=channels, early=early,
        )  # fmt: skip
        yield Written(plan=space_to_depth.plan(shape_of), layouts=((shape, strides),))


def _strides(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.stride()[:3])


def _norm_arguments(node: Node) -> tuple[Any, Any, Any, Any, float, str]:
    """x, residual, weight, bias, eps and kind of either norm."""
    if node.target is NORM:
        x, weight, bias, eps, kind = node.args
        return x, None, weight, bias, cast(float, eps), str(kind)
    x, residual, weight, bias, eps, kind = node.args
    return x, residual, weight, bias, cast(float, eps), str(kind)


def _program_plans(node: Node, *, channels_last: bool, early: bool) -> Iterator[Written]:
    inputs, program = cast("tuple[Sequence[Node], str]", node.args)
    tensors = [value(one) for one in inputs]
    answer = value(node)
    known = [tensor for tensor in tensors if tensor is not None]
    if answer is None or len(known) != len(tensors):
        raise ValueError("its inputs are not tensors")
    yield _program_plan(program, known, answer.shape, early=early)
    if channels_last and answer.dim() == len(NHWC):
        lying = [_as_channels_last(tensor) for tensor in known]
        if any(layout(one) != layout(other) for one, other in zip(lying, known, strict=True)):
            yield _program_plan(program, lying, answer.shape, early=early, channels_last=True)


def _program_plan(
    program: str, inputs: Sequence[Tensor], shape: Sequence[int], *, early: bool, channels_last: bool = False
) -> Written:
    """Plan a program; in channels-last memory on views of its inputs and its answer in the order of that memory."""
    views = inputs
    if channels_last:
        views = [tensor.expand([1] * (4 - tensor.dim()) + list(tensor.shape)).permute(NHWC) for tensor in inputs]
        shape = [shape[dimension] for dimension in NHWC]
    layouts = [
        InputLayout(shape=tuple(view.shape), strides=tuple(view.stride()), dtype=str(view.dtype).partition(".")[2])
        for view in views
    ]
    return Written(
        plan=pointwise.plan(program, layouts, shape, early=early), layouts=tuple(map(layout, inputs)),
        channels_last=channels_last,
    )  # fmt: skip


def _as_channels_last(tensor: Tensor) -> Tensor:
    """An input as it lies where convolutions answer in channels-last memory."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == len(NHWC) else tensor


def _packed(written: Sequence[Written], made: Mapping[Any, CompiledKernel | Refused], folder: Path) -> dict[str, Any]:
    plans: list[dict[str, Any]] = []
    sources: dict[str, str] = {}
    why = ""
    for one in written:
        kernels = [made[source] for source in one.plan.sources]
        compiled = [kernel for kernel in kernels if isinstance(kernel, CompiledKernel)]
        if len(compiled) < len(kernels):
            why = next(kernel.detail for kernel in kernels if isinstance(kernel, Refused))
            continue
        files = pack_plan(one.plan, compiled, folder / FOLDER)
        sources |= {f"{FOLDER}/{name}": digest for name, digest in files.items()}
        plans.append({"file": list(files)[-1], "layouts": one.layouts, "channels_last": one.channels_last})
    return {"plans": plans, "sources": sources} if plans else {"why": why}
