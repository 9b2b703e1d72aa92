"""Kernels by Triton for norms, attention, pooling and pointwise programs: compiled at build, put in place at load.

All but a program have one plan, pooling only where the model runs in channels-last memory. A pointwise program has one
for each way in which its inputs may lie in memory: as the graph was captured, and channels last where the model runs in
that; with any other way torch's own operators stay.
"""

import logging
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from autotune import environment
from autotune.backends.native.graph import value
from autotune.backends.native.sites import DTYPES, fused_nodes
from autotune.backends.native.triton_kernels import attention, norm, pointwise, pooling
from autotune.backends.native.triton_kernels.ahead import CompiledKernel, Refused, TritonCache, TritonCompiler
from autotune.backends.native.triton_kernels.attention import AttentionShape
from autotune.backends.native.triton_kernels.launch import LoadedPlan
from autotune.backends.native.triton_kernels.norm import NormShape
from autotune.backends.native.triton_kernels.packed import load_plan, pack_plan
from autotune.backends.native.triton_kernels.plan import POINTER_ALIGNMENT_BYTES, Plan
from autotune.backends.native.triton_kernels.pointwise import InputLayout
from autotune.backends.native.triton_kernels.pooling import PoolShape
from autotune.device import Device
from autotune.errors import WorkError
from autotune.kernel_problem import Window

log = logging.getLogger(__name__)

FOLDER = "triton"
NHWC, NCHW = (0, 2, 3, 1), (0, 3, 1, 2)

_FUSED = torch.ops.autotune_native
NORM, ADD_NORM, POINTWISE = _FUSED.norm.default, _FUSED.add_norm.default, _FUSED.pointwise.default
ATTENTION = _FUSED.attention.default
MAX_POOL, MEAN_POOL = _FUSED.max_pool2d.default, _FUSED.mean_pool2d.default
WRITTEN = (NORM, ADD_NORM, POINTWISE, ATTENTION, MAX_POOL, MEAN_POOL)

_Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides of a tensor, strides 0 where a dimension has one element."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A plan for one node; a program's with the layouts of its inputs, and whether its answer lies channels last."""

    plan: Plan
    layouts: tuple[_Layout, ...] = ()
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
        total=residual is not None and _reads(node, 0), early=early,
    )  # fmt: skip
    yield Written(plan=norm.plan(shape))


def _attention_shape(node: Node, *, early: bool) -> tuple[AttentionShape, tuple[_Layout, ...]]:
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
    return shape, tuple(map(_layout, known))


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


def _strides(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.stride()[:3])


def _reads(node: Node, index: int) -> bool:
    """Whether anybody reads one of a node's answers."""
    return any(user.target is not operator.getitem or user.args[1] == index for user in node.users)


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
        if any(_layout(one) != _layout(other) for one, other in zip(lying, known, strict=True)):
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
        plan=pointwise.plan(program, layouts, shape, early=early), layouts=tuple(map(_layout, inputs)),
        channels_last=channels_last,
    )  # fmt: skip


def _as_channels_last(tensor: Tensor) -> Tensor:
    """An input as it lies where convolutions answer in channels-last memory."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == len(NHWC) else tensor


def _layout(tensor: Tensor) -> _Layout:
    strides = (stride if size > 1 else 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tuple(tensor.shape), tuple(strides)


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


def stand_in(entry: Mapping[str, Any], node: Node, folder: Path, device: Device) -> nn.Module:
    """Load the plans of a record's entry, for the place of its node."""
    loaded = [load_plan(folder / FOLDER / one["file"], device.index) for one in entry["plans"]]
    if node.target is NORM:
        return NormSite(loaded[0])
    if node.target is ADD_NORM:
        return AddNormSite(loaded[0], total=_reads(node, 0))
    layouts = [tuple((tuple(shape), tuple(strides)) for shape, strides in one["layouts"]) for one in entry["plans"]]
    if node.target in (MAX_POOL, MEAN_POOL):
        return PoolSite(loaded[0], cast(Any, node.target), value(node))
    if node.target is ATTENTION:
        return AttentionSite(loaded[0], layouts[0])
    ways = zip(layouts, loaded, (bool(one["channels_last"]) for one in entry["plans"]), strict=True)
    return PointwiseSite({layout: (plan, last) for layout, plan, last in ways}, value(node))


class NormSite(nn.Module):
    """A kernel in the place of ``norm``."""

    def __init__(self, plan: LoadedPlan) -> None:
        super().__init__()
        self._plan = plan

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, *_: object) -> Tensor:
        """Compute into a fresh tensor."""
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        self._plan(_there(x=x, weight=weight, bias=bias, out=out))
        return out


class AddNormSite(nn.Module):
    """A kernel in the place of ``add_norm``."""

    def __init__(self, plan: LoadedPlan, *, total: bool) -> None:
        super().__init__()
        self._plan, self._total = plan, total

    def forward(
        self, x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, *_: object
    ) -> tuple[Tensor, Tensor]:
        """Compute the sum, where anybody reads it, and its norm into fresh tensors."""
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        total = torch.empty_like(out) if self._total else None
        self._plan(_there(x=x, residual=residual, weight=weight, bias=bias, total=total, out=out))
        return out if total is None else total, out


class AttentionSite(nn.Module):
    """A kernel in the place of ``attention``, for operands that lie as it was compiled for; else torch computes."""

    def __init__(self, plan: LoadedPlan, layouts: tuple[_Layout, ...]) -> None:
        super().__init__()
        self._plan, self._layouts = plan, layouts

    def forward(
        self, query: Tensor, key: Tensor, values: Tensor, mask: Tensor | None, causal: bool, scale: float | None
    ) -> Tensor:
        """Compute into a fresh tensor."""
        given = {"q": query, "k": key, "v": values, **({} if mask is None else {"mask": mask})}
        lies = tuple(map(_layout, given.values())) == self._layouts
        if not lies or any(tensor.data_ptr() % POINTER_ALIGNMENT_BYTES for tensor in given.values()):
            return cast(Tensor, ATTENTION(query, key, values, mask, causal, scale))
        batch, heads, rows, _ = query.shape
        out = query.new_empty((batch, rows, heads, values.shape[-1]))
        self._plan({**given, "out": out})
        return out.transpose(1, 2)


class PoolSite(nn.Module):
    """A kernel in the place of ``max_pool2d`` or ``mean_pool2d``, for images that lie channels last."""

    def __init__(self, plan: LoadedPlan, otherwise: Any, answer: Tensor | None) -> None:
        super().__init__()
        assert answer is not None  # it was planned for
        self._plan, self._otherwise, self._shape = plan, otherwise, tuple(answer.shape)

    def forward(self, x: Tensor, *sides: Sequence[int]) -> Tensor:
        """Compute into a fresh tensor, channels last too."""
        if not x.is_contiguous(memory_format=torch.channels_last) or x.data_ptr() % POINTER_ALIGNMENT_BYTES:
            return cast(Tensor, self._otherwise(x, *sides))
        out = torch.empty(self._shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        self._plan({"x": x, "out": out})
        return out


class PointwiseSite(nn.Module):
    """Kernels in the place of ``pointwise``, by the layouts of its inputs; torch computes where there is none."""

    def __init__(self, ways: Mapping[tuple[_Layout, ...], tuple[LoadedPlan, bool]], answer: Tensor | None) -> None:
        super().__init__()
        assert answer is not None  # it was planned for
        self._ways, self._shape, self._dtype = dict(ways), tuple(answer.shape), answer.dtype

    def forward(self, inputs: Sequence[Tensor], program: str) -> Tensor:
        """Compute into a fresh tensor, in channels-last memory where the inputs lie there."""
        plan, channels_last = self._ways.get(tuple(map(_layout, inputs)), (None, False))
        if plan is None or any(tensor.data_ptr() % POINTER_ALIGNMENT_BYTES for tensor in inputs):
            return cast(Tensor, POINTWISE(inputs, program))
        memory = torch.channels_last if channels_last else torch.contiguous_format
        out = torch.empty(self._shape, dtype=self._dtype, device=inputs[0].device, memory_format=memory)
        plan({**{f"in{index}": tensor for index, tensor in enumerate(inputs)}, "out": out})
        return out


def _there(**operands: Tensor | None) -> dict[str, Tensor]:
    """Operands that are there, as kernels read them: contiguous, and beginning where a vector may begin."""
    found = {}
    for name, tensor in operands.items():
        if tensor is not None:
            whole = tensor.contiguous()
            found[name] = whole.clone() if whole.data_ptr() % POINTER_ALIGNMENT_BYTES else whole
    return found
