"""Modules that put compiled plans in the places of the operators that they were planned for."""

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Node

from autotune.backends.native.graph import value
from autotune.backends.native.triton_kernels.launch import LoadedPlan
from autotune.backends.native.triton_kernels.packed import load_plan
from autotune.backends.native.triton_kernels.plan import POINTER_ALIGNMENT_BYTES
from autotune.records.device import Device

FOLDER = "triton"

_FUSED = torch.ops.autotune_native
NORM, ADD_NORM, POINTWISE = _FUSED.norm.default, _FUSED.add_norm.default, _FUSED.pointwise.default
ATTENTION, SPACE_TO_DEPTH = _FUSED.attention.default, _FUSED.space_to_depth.default
MAX_POOL, MEAN_POOL = _FUSED.max_pool2d.default, _FUSED.mean_pool2d.default

Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides of a tensor, strides 0 where a dimension has one element."""


def layout(tensor: Tensor) -> Layout:
    """How a tensor lies in memory."""
    strides = (stride if size > 1 else 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tuple(tensor.shape), tuple(strides)


def reads(node: Node, index: int) -> bool:
    """Whether anybody reads one of a node's answers."""
    return any(user.target is not operator.getitem or user.args[1] == index for user in node.users)


def stand_in(entry: Mapping[str, Any], node: Node, folder: Path, device: Device) -> nn.Module:
    """Load the plans of a record's entry, for the place of its node."""
    loaded = [load_plan(folder / FOLDER / one["file"], device.index) for one in entry["plans"]]
    if node.target is NORM:
        return NormSite(loaded[0])
    if node.target is ADD_NORM:
        return AddNormSite(loaded[0], total=reads(node, 0))
    layouts = [tuple((tuple(shape), tuple(strides)) for shape, strides in one["layouts"]) for one in entry["plans"]]
    if node.target is SPACE_TO_DEPTH:
        return BlockSite(dict(zip((one for (one,) in layouts), loaded, strict=True)), value(node))
    if node.target in (MAX_POOL, MEAN_POOL):
        return PoolSite(loaded[0], cast(Any, node.target), value(node))
    if node.target is ATTENTION:
        return AttentionSite(loaded[0], layouts[0])
    ways = zip(layouts, loaded, (bool(one["channels_last"]) for one in entry["plans"]), strict=True)
    return PointwiseSite({way: (plan, last) for way, plan, last in ways}, value(node))


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

    def __init__(self, plan: LoadedPlan, layouts: tuple[Layout, ...]) -> None:
        super().__init__()
        self._plan, self._layouts = plan, layouts

    def forward(
        self, query: Tensor, key: Tensor, values: Tensor, mask: Tensor | None, causal: bool, scale: float | None
    ) -> Tensor:
        """Compute into a fresh tensor."""
        given = {"q": query, "k": key, "v": values, **({} if mask is None else {"mask": mask})}
        lies = tuple(map(layout, given.values())) == self._layouts
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


class BlockSite(nn.Module):
    """Kernels in the place of ``space_to_depth``, by the layout of its images."""

    def __init__(self, ways: Mapping[Layout, LoadedPlan], answer: Tensor | None) -> None:
        super().__init__()
        assert answer is not None  # it was planned for
        self._ways, self._shape, self._dtype = dict(ways), tuple(answer.shape), answer.dtype

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        """Compute into a fresh tensor in channels-last memory."""
        plan = self._ways.get(layout(x))
        if plan is None or x.data_ptr() % POINTER_ALIGNMENT_BYTES:
            return cast(Tensor, SPACE_TO_DEPTH(x, *rest))
        out = torch.empty(self._shape, dtype=self._dtype, device=x.device, memory_format=torch.channels_last)
        plan({"x": x, "out": out})
        return out


class PointwiseSite(nn.Module):
    """Kernels in the place of ``pointwise``, by the layouts of its inputs; torch computes where there is none."""

    def __init__(self, ways: Mapping[tuple[Layout, ...], tuple[LoadedPlan, bool]], answer: Tensor | None) -> None:
        super().__init__()
        assert answer is not None  # it was planned for
        self._ways, self._shape, self._dtype = dict(ways), tuple(answer.shape), answer.dtype

    def forward(self, inputs: Sequence[Tensor], program: str) -> Tensor:
        """Compute into a fresh tensor, in channels-last memory where the inputs lie there."""
        plan, channels_last = self._ways.get(tuple(map(layout, inputs)), (None, False))
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
