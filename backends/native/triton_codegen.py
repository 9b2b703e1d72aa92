"""Triton kernels for all operators but GEMMs and convolutions over several channels, generated and compiled at build.

Norms, attention and pooling have one plan, pooling only if the model runs in channels-last memory. A depthwise
convolution has one for the memory that its images lie in. Programs and blocks of pixels have a plan for each memory
layout of their inputs: the layout in which the graph was captured, and channels-last if the model runs in it. For any
other layout torch's own operators stay.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import Argument

from autotune import environment
from autotune.backends.native.graph import is_view, value
from autotune.backends.native.native_kernels import SMS_OF_H200
from autotune.backends.native.native_record import PlanEntry
from autotune.backends.native.refusals import refuse
from autotune.backends.native.sites import DTYPES, fused_nodes
from autotune.backends.native.triton_codegen_sites import (
    ADD_NORM,
    ATTENTION,
    DEPTHWISE,
    FOLDER,
    GROUP_NORM,
    MAX_POOL,
    MEAN_POOL,
    NORM,
    POINTWISE,
    SPACE_TO_DEPTH,
    Layout,
    layout,
    reads,
)
from autotune.backends.native.triton_kernels import (
    attention,
    depthwise,
    group_norm,
    mean,
    norm,
    pointwise,
    pooling,
    space_to_depth,
)
from autotune.backends.native.triton_kernels.attention import AttentionShape, HalfType
from autotune.backends.native.triton_kernels.depthwise_tile import DepthwiseShape
from autotune.backends.native.triton_kernels.group_norm import GroupNormShape
from autotune.backends.native.triton_kernels.launch_plan import LaunchPlan, TritonSource
from autotune.backends.native.triton_kernels.mean_tile import MeanShape
from autotune.backends.native.triton_kernels.norm import NormKind, NormShape
from autotune.backends.native.triton_kernels.packed import pack_plan
from autotune.backends.native.triton_kernels.pointwise import InputLayout
from autotune.backends.native.triton_kernels.pooling import PoolShape
from autotune.backends.native.triton_kernels.space_to_depth import BlockShape, Pair, Sizes
from autotune.backends.native.triton_kernels.triton_compiler import (
    CompiledCubin,
    TritonCache,
    TritonCompiler,
    TritonRefusal,
)
from autotune.errors import WorkError
from autotune.records.device import Device
from autotune.records.kernel_problem import Activation, Window

log = logging.getLogger(__name__)

NHWC = (0, 2, 3, 1)
GENERATED = (NORM, ADD_NORM, POINTWISE, ATTENTION, GROUP_NORM, MAX_POOL, MEAN_POOL, SPACE_TO_DEPTH, DEPTHWISE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutPlan:
    """A plan for one node; a program's with the layouts of its inputs. ``channels_last`` describes its answer."""

    plan: LaunchPlan
    layouts: tuple[Layout, ...] = ()
    channels_last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedPlans:
    """The plans of one node as an artifact's record has them, with source digests by file; or ``why`` it has none."""

    plans: list[PlanEntry] = field(default_factory=list)
    sources: Mapping[str, str] = field(default_factory=dict)
    why: str = ""


def compile_triton_sites(
    module: GraphModule, device: Device, folder: Path, *, channels_last: bool, programmatic_launch: bool = False
) -> dict[int, PackedPlans]:
    """Compile kernels for the norms, attentions, poolings and programs of a graph and pack them into ``folder``.

    With ``programmatic_launch``, from sm_90 on, a launch may begin before the launch before it has ended.
    Returns the plans by the position among the fused nodes; empty on a CPU.
    """
    if device.kind != "cuda":
        return {}
    plans, reasons = planned_sites(
        module, channels_last=channels_last, programmatic_launch=programmatic_launch, sm_count=_sm_count(device)
    )
    refused = {index: PackedPlans(why=why) for index, why in reasons.items()}
    try:
        compiler = TritonCompiler.find(device)
    except WorkError as error:
        return dict.fromkeys([*plans, *refused], PackedPlans(why=str(error)))
    sources = list(dict.fromkeys(s for node_plans in plans.values() for plan in node_plans for s in plan.plan.sources))
    try:
        cache = TritonCache(environment.cache_folder() / "kernels" / "triton" / compiler.version)
        compiled = dict(zip(sources, cache.compile(compiler, sources), strict=True))
    except (WorkError, OSError) as error:
        log.warning("torch computes norms and pointwise operators: %s", error)
        return dict.fromkeys([*plans, *refused], PackedPlans(why=str(error)))
    return {**refused, **{index: _packed(node_plans, compiled, folder) for index, node_plans in plans.items()}}


def planned_sites(
    module: GraphModule, *, channels_last: bool, programmatic_launch: bool = False, sm_count: int = SMS_OF_H200
) -> tuple[dict[int, list[LayoutPlan]], dict[int, str]]:
    """Plan kernels without a compiler; returns the plans, and the reasons of sites without, by their positions."""
    plans: dict[int, list[LayoutPlan]] = {}
    reasons: dict[int, str] = {}
    for index, node in enumerate(fused_nodes(module)):
        if node.target in GENERATED:
            try:
                plans[index] = list(
                    _planned(
                        node, channels_last=channels_last, programmatic_launch=programmatic_launch, sm_count=sm_count
                    )
                )
            except (WorkError, ValueError) as error:
                reasons[index] = str(error)
                refuse(node, str(error))
    return plans, reasons


def _planned(
    node: Node, *, channels_last: bool, programmatic_launch: bool, sm_count: int
) -> Iterator[LayoutPlan]:  # fmt: skip
    """Plan the kernels of a node; raises WorkError or ValueError if torch has to compute it."""
    if node.target is POINTWISE:
        yield from _program_plans(node, channels_last=channels_last, programmatic_launch=programmatic_launch)
        return
    if node.target is DEPTHWISE:
        shape_of, images = _depthwise_shape(node, channels_last=channels_last, programmatic_launch=programmatic_launch)
        plan_of = depthwise.plan(shape_of, sm_count=sm_count)
        yield LayoutPlan(plan=plan_of, layouts=(images,), channels_last=shape_of.channels_last)
        return
    if node.target is ATTENTION:
        of_attention, layouts = _attention_shape(node, programmatic_launch=programmatic_launch)
        yield LayoutPlan(plan=attention.plan(of_attention), layouts=layouts)
        return
    if node.target is GROUP_NORM:
        yield from _group_norm_plans(node, channels_last=channels_last, programmatic_launch=programmatic_launch)
        return
    if node.target is SPACE_TO_DEPTH:
        yield from _block_plans(node, channels_last=channels_last, programmatic_launch=programmatic_launch)
        return
    if node.target is MAX_POOL:
        of_pool = _pool_shape(node, channels_last=channels_last, programmatic_launch=programmatic_launch)
        yield LayoutPlan(plan=pooling.max_pool(of_pool))
        return
    if node.target is MEAN_POOL:
        of_mean = _mean_shape(node, channels_last=channels_last, programmatic_launch=programmatic_launch)
        yield LayoutPlan(plan=mean.plan(of_mean, sm_count=sm_count))
        return
    x, residual, weight, bias, eps, kind, dtype = _norm_arguments(node)
    given = value(x)
    vectors = [None if operand is None else value(operand) for operand in (weight, bias)]
    if given is None or not given.numel() or given.dtype not in DTYPES:
        raise ValueError("its input is empty, or of a type that kernels do not read")
    if any(vector is not None and vector.dtype not in DTYPES for vector in vectors) or dtype not in (None, *DTYPES):
        raise ValueError("its weights are of a type that kernels do not read")
    columns = given.shape[-1]
    dtypes = [None if vector is None else DTYPES[vector.dtype] for vector in vectors]
    shape = NormShape(
        rows=given.numel() // columns, columns=columns, dtype=DTYPES[given.dtype], weight=dtypes[0], bias=dtypes[1],
        eps=eps, kind=cast(NormKind, kind), output=None if dtype is None else DTYPES[dtype],
        residual=residual is not None, total=residual is not None and reads(node, 0),
        programmatic_launch=programmatic_launch,
    )  # fmt: skip
    yield LayoutPlan(plan=norm.plan(shape))


def _attention_shape(node: Node, *, programmatic_launch: bool) -> tuple[AttentionShape, tuple[Layout, ...]]:
    """Return the sizes that the kernel of an attention is compiled for, and the memory layouts of its operands."""
    *operands, mask, causal, scale = node.args
    tensors = [value(operand) for operand in (*operands, *([] if mask is None else [mask]))]
    present = [tensor for tensor in tensors if tensor is not None]
    if len(present) != len(tensors) or any(operand.stride(-1) != 1 for operand in present[:3]):
        raise ValueError("its operands are not tensors whose rows lie in one piece")
    query, key, values, *masks = present
    if DTYPES.get(query.dtype) not in ("fp16", "bf16"):
        raise ValueError(f"its kernel computes in fp16 or bf16, and it is in {query.dtype}")
    batch, heads, rows, depth = query.shape
    visible = masks[0].expand(batch, heads, rows, key.shape[2]) if masks else None
    shape = AttentionShape(
        batch=batch, heads=heads, rows=rows, columns=key.shape[2], depth=depth,
        dtype=cast(HalfType, DTYPES[query.dtype]),
        scale=cast("float | None", scale) or depth**-0.5, q=_strides(query), k=_strides(key), v=_strides(values),
        mask=None if visible is None else tuple(visible.stride()), causal=bool(causal),
        programmatic_launch=programmatic_launch,
        mask_dtype="bool" if visible is None or visible.dtype is torch.bool else DTYPES[visible.dtype],
    )  # fmt: skip
    return shape, tuple(map(layout, present))


def _pool_shape(node: Node, *, channels_last: bool, programmatic_launch: bool) -> PoolShape:
    given, answer = _pooled(node, channels_last=channels_last)
    kernel, stride, padding, dilation = cast("list[list[int]]", node.args[1:])
    window = Window(
        height=given.shape[2], width=given.shape[3], channels=given.shape[1], kernel=(kernel[0], kernel[1]),
        stride=(stride[0], stride[1]), padding=(padding[0], padding[1]), dilation=(dilation[0], dilation[1]),
    )  # fmt: skip
    return PoolShape(
        images=given.shape[0], window=window, dtype=DTYPES[given.dtype], output=DTYPES[answer.dtype],
        programmatic_launch=programmatic_launch,
    )  # fmt: skip


def _mean_shape(node: Node, *, channels_last: bool, programmatic_launch: bool) -> MeanShape:
    given, answer = _pooled(node, channels_last=channels_last)
    images, channels, *sides = given.shape
    return MeanShape(
        images=images, pixels=math.prod(sides), channels=channels, dtype=DTYPES[given.dtype],
        output=DTYPES[answer.dtype], programmatic_launch=programmatic_launch,
    )  # fmt: skip


def _pooled(node: Node, *, channels_last: bool) -> tuple[Tensor, Tensor]:
    """Return the images and the answer of a pooling, which kernels compute in channels-last memory only."""
    given, answer = value(node.args[0]), value(node)
    if given is None or answer is None or not channels_last or not {given.dtype, answer.dtype} <= set(DTYPES):
        raise ValueError("pooling has kernels for images in channels-last memory of types that kernels read")
    return given, answer


def _depthwise_shape(
    node: Node, *, channels_last: bool, programmatic_launch: bool
) -> tuple[DepthwiseShape, Layout]:  # fmt: skip
    """Return the sizes that the kernel of a depthwise convolution is compiled for, and the layout of its images."""
    x, weight, bias, residual, stride, before, places, dilation, activation = cast(
        "tuple[Node, Node, Node | None, Node | None, Pair, Pair, Pair, Pair, Activation]", node.args
    )
    given, filters = value(x), value(weight)
    if given is None or filters is None or not {given.dtype, filters.dtype} <= set(DTYPES) or not given.numel():
        raise ValueError("its images are empty, or of a type that kernels do not read")
    # rows of a tensor of three dimensions lie as they were captured: channels last concerns images
    is_row = is_view(x) and (source := value(x.args[0])) is not None and source.dim() < len(NHWC)
    images = _as_channels_last(given) if channels_last and not is_row else given
    is_last = not images.is_contiguous()
    if is_last and not images.is_contiguous(memory_format=torch.channels_last):
        raise ValueError("its images have gaps in memory, or another order of dimensions")
    shape = DepthwiseShape(
        images=images.shape[0], channels=images.shape[1], image=_pair(images.shape[2:]), places=_pair(places),
        kernel=_pair(filters.shape[2:]), stride=_pair(stride), before=_pair(before), dilation=_pair(dilation),
        channels_last=is_last, dtype=DTYPES[given.dtype], output=DTYPES[filters.dtype], bias=bias is not None,
        residual=residual is not None, activation=activation, programmatic_launch=programmatic_launch,
    )  # fmt: skip
    return shape, layout(images)


def _group_norm_plans(node: Node, *, channels_last: bool, programmatic_launch: bool) -> Iterator[LayoutPlan]:
    x, groups, weight, bias, eps, activation = cast("tuple[Node, int, Node, Node, float, str]", node.args)
    given = value(x)
    vectors = [None if operand is None else value(operand) for operand in (weight, bias)]
    dtypes = [None if vector is None else DTYPES.get(vector.dtype) for vector in vectors]
    unread = any(vector is not None and dtype is None for vector, dtype in zip(vectors, dtypes, strict=True))
    if given is None or given.dtype not in DTYPES or unread:
        raise ValueError("its operands are of types that kernels do not read")
    lying = [given, *([_as_channels_last(given)] if channels_last else [])]
    for (shape, strides), tensor in {layout(tensor): tensor for tensor in lying}.items():
        is_last = not tensor.is_contiguous()
        if is_last and not (tensor.dim() == len(NHWC) and tensor.is_contiguous(memory_format=torch.channels_last)):
            raise ValueError("its input has gaps in memory, or another order of dimensions")
        of_images = GroupNormShape(
            images=shape[0], groups=groups, channels=shape[1] // groups, pixels=math.prod(shape[2:]),
            channels_last=is_last, dtype=DTYPES[given.dtype], weight=dtypes[0], bias=dtypes[1], eps=eps,
            activation=activation, programmatic_launch=programmatic_launch,
        )  # fmt: skip
        yield LayoutPlan(plan=group_norm.plan(of_images), layouts=((shape, strides),))


def _block_plans(node: Node, *, channels_last: bool, programmatic_launch: bool) -> Iterator[LayoutPlan]:
    x, block, before, size, channels, dtype = cast("tuple[Node, Pair, Pair, Pair, int, torch.dtype]", node.args)
    given = value(x)
    if given is None or not channels_last or not {given.dtype, dtype} <= set(DTYPES):
        raise ValueError("blocks have kernels for answers in channels-last memory of types that kernels read")
    lying = dict.fromkeys((layout(given), layout(_as_channels_last(given))))
    for shape, strides in lying:
        shape_of = BlockShape(
            shape=cast(Sizes, shape), strides=cast(Sizes, strides), dtype=DTYPES[given.dtype], output=DTYPES[dtype],
            block=_pair(block), before=_pair(before), size=_pair(size), channels=channels,
            programmatic_launch=programmatic_launch,
        )  # fmt: skip
        yield LayoutPlan(plan=space_to_depth.plan(shape_of), layouts=((shape, strides),))


def _sm_count(device: Device) -> int:
    """Read the number of SMs of a GPU; a machine without one builds for as many as an H200 has."""
    if not torch.cuda.is_available():
        return SMS_OF_H200
    return int(torch.cuda.get_device_properties(device.index).multi_processor_count)


def _pair(sides: Sequence[int]) -> Pair:
    return sides[0], sides[1]


def _strides(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.stride()[:3])


def _norm_arguments(
    node: Node,
) -> tuple[Argument, Argument, Argument, Argument, float, str, torch.dtype | None]:
    """Return x, residual, weight, bias, eps, kind and the answer's type of either norm."""
    x, *others = node.args
    residual = others.pop(0) if node.target is ADD_NORM else None
    weight, bias, eps, kind, *dtype = others
    return x, residual, weight, bias, cast(float, eps), str(kind), cast("torch.dtype | None", next(iter(dtype), None))


def _program_plans(node: Node, *, channels_last: bool, programmatic_launch: bool) -> Iterator[LayoutPlan]:
    inputs, program = cast("tuple[Sequence[Node], str]", node.args)
    tensors = [value(tensor) for tensor in inputs]
    answer = value(node)
    present = [tensor for tensor in tensors if tensor is not None]
    if answer is None or len(present) != len(tensors):
        raise ValueError("its inputs are not tensors")
    yield _program_plan(program, present, answer.shape, programmatic_launch=programmatic_launch)
    if channels_last and answer.dim() == len(NHWC):
        lying = [_as_channels_last(tensor) for tensor in present]
        if any(layout(tensor) != layout(other) for tensor, other in zip(lying, present, strict=True)):
            yield _program_plan(
                program, lying, answer.shape, programmatic_launch=programmatic_launch, channels_last=True
            )


def _program_plan(
    program: str,
    inputs: Sequence[Tensor],
    shape: Sequence[int],
    *,
    programmatic_launch: bool,
    channels_last: bool = False,
) -> LayoutPlan:
    """Plan a program; in channels-last memory, views of its inputs and its answer are in the order of that memory."""
    views = inputs
    if channels_last:
        views = [tensor.expand([1] * (4 - tensor.dim()) + list(tensor.shape)).permute(NHWC) for tensor in inputs]
        shape = [shape[dimension] for dimension in NHWC]
    layouts = [
        InputLayout(shape=tuple(view.shape), strides=tuple(view.stride()), dtype=str(view.dtype).partition(".")[2])
        for view in views
    ]
    return LayoutPlan(
        plan=pointwise.plan(program, layouts, shape, programmatic_launch=programmatic_launch),
        layouts=tuple(map(layout, inputs)),
        channels_last=channels_last,
    )  # fmt: skip


def _as_channels_last(tensor: Tensor) -> Tensor:
    """Return an input in the layout that it has if convolutions write channels-last memory."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == len(NHWC) else tensor


def _packed(
    plans: Sequence[LayoutPlan], compiled: Mapping[TritonSource, CompiledCubin | TritonRefusal], folder: Path
) -> PackedPlans:
    entries: list[PlanEntry] = []
    sources: dict[str, str] = {}
    why = ""
    for plan in plans:
        results = [compiled[source] for source in plan.plan.sources]
        kernels = [kernel for kernel in results if isinstance(kernel, CompiledCubin)]
        if len(kernels) < len(results):
            why = next(kernel.detail for kernel in results if isinstance(kernel, TritonRefusal))
            continue
        files = pack_plan(plan.plan, kernels, folder / FOLDER)
        sources |= {f"{FOLDER}/{name}": digest for name, digest in files.items()}
        entries.append(PlanEntry(file=list(files)[-1], layouts=plan.layouts, channels_last=plan.channels_last))
    return PackedPlans(plans=entries, sources=sources) if entries else PackedPlans(why=why)
