"""Modules that run plans of Triton kernels in the place of the operators that they were planned for."""

import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import Node

from autotune.backends.native import operators, pointwise  # noqa: F401 (they register the operators below)
from autotune.backends.native.binding import site_bias
from autotune.backends.native.graph import constant, value
from autotune.backends.native.native_record import PlanEntry
from autotune.backends.native.triton_kernels.launch import LoadedPlan
from autotune.backends.native.triton_kernels.launch_plan import POINTER_ALIGNMENT_BYTES
from autotune.backends.native.triton_kernels.packed import load_plan
from autotune.records.device import Device

FOLDER = "triton"

_FUSED = torch.ops.autotune_native
NORM, ADD_NORM, POINTWISE = _FUSED.norm.default, _FUSED.add_norm.default, _FUSED.pointwise.default
ATTENTION, SPACE_TO_DEPTH = _FUSED.attention.default, _FUSED.space_to_depth.default
GROUP_NORM = _FUSED.group_norm.default
MAX_POOL, MEAN_POOL = _FUSED.max_pool2d.default, _FUSED.mean_pool2d.default
DEPTHWISE = _FUSED.depthwise_conv2d.default

Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides of a tensor, strides 0 if a dimension has one element."""


def layout(tensor: Tensor) -> Layout:
    """Return the memory layout of a tensor."""
    strides = (stride if size > 1 else 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tuple(tensor.shape), tuple(strides)


def reads(node: Node, index: int) -> bool:
    """Return true if a node reads the answer ``index`` of another."""
    return any(user.target is not operator.getitem or user.args[1] == index for user in node.users)


def load_site_module(entries: Sequence[PlanEntry], node: Node, folder: Path, device: Device) -> nn.Module:
    """Load the plans of a site, as a module for the place of its node."""
    plans = [load_plan(folder / FOLDER / entry["file"], device.index) for entry in entries]
    if node.target is NORM:
        return NormSite(plans[0], value(node))
    if node.target is ADD_NORM:
        return AddNormSite(plans[0], node.meta["val"][1], total=reads(node, 0))
    layouts = [tuple((tuple(shape), tuple(strides)) for shape, strides in entry["layouts"]) for entry in entries]
    if node.target is SPACE_TO_DEPTH:
        return BlockSite(dict(zip((only for (only,) in layouts), plans, strict=True)), value(node))
    if node.target is GROUP_NORM:
        return GroupNormSite(dict(zip((only for (only,) in layouts), plans, strict=True)))
    if node.target in (MAX_POOL, MEAN_POOL):
        return PoolSite(plans[0], cast("Callable[..., Tensor]", node.target), value(node))
    if node.target is ATTENTION:
        return AttentionSite(plans[0], layouts[0])
    channels_last = [bool(entry["channels_last"]) for entry in entries]
    by_layouts = dict(zip(layouts, zip(plans, channels_last, strict=True), strict=True))
    if node.target is DEPTHWISE:
        owner = node.graph.owning_module
        assert owner is not None
        weight, bias = (constant(owner, operand) for operand in node.args[1:3])
        assert weight is not None  # it was planned for
        return DepthwiseSite({only: plan for (only,), plan in by_layouts.items()}, weight, bias, value(node))
    return PointwiseSite(by_layouts, value(node))


class NormSite(nn.Module):
    """A kernel in the place of ``norm``."""

    def __init__(self, plan: LoadedPlan, answer: Tensor | None) -> None:
        super().__init__()
        assert answer is not None  # it was planned for
        self._plan, self._dtype = plan, answer.dtype

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, *_: object) -> Tensor:
        """Compute into a fresh tensor."""
        out = torch.empty_like(x, dtype=self._dtype, memory_format=torch.contiguous_format)
        self._plan(_prepared(x=x, weight=weight, bias=bias, out=out))
        return out


class AddNormSite(nn.Module):
    """A kernel in the place of ``add_norm``."""

    def __init__(self, plan: LoadedPlan, answer: Tensor, *, total: bool) -> None:
        super().__init__()
        self._plan, self._dtype, self._total = plan, answer.dtype, total

    def forward(
        self, x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, *_: object
    ) -> tuple[Tensor, Tensor]:
        """Compute the sum, if another operator reads it, and its norm into fresh tensors."""
        out = torch.empty_like(x, dtype=self._dtype, memory_format=torch.contiguous_format)
        total = torch.empty_like(x, memory_format=torch.contiguous_format) if self._total else None
        self._plan(_prepared(x=x, residual=residual, weight=weight, bias=bias, total=total, out=out))
        return out if total is None else total, out


class AttentionSite(nn.Module):
    """A kernel in the place of ``attention``, for the layouts that it was compiled for; else torch computes."""

    def __init__(self, plan: LoadedPlan, layouts: tuple[Layout, ...]) -> None:
        super().__init__()
        self._plan, self._layouts = plan, layouts

    def forward(
        self, query: Tensor, key: Tensor, values: Tensor, mask: Tensor | None, causal: bool, scale: float | None
    ) -> Tensor:
        """Compute into a fresh tensor."""
        given = {"q": query, "k": key, "v": values, **({} if mask is None else {"mask": mask})}
        as_planned = tuple(map(layout, given.values())) == self._layouts
        if not as_planned or any(tensor.data_ptr() % POINTER_ALIGNMENT_BYTES for tensor in given.values()):
            return cast(Tensor, ATTENTION(query, key, values, mask, causal, scale))
        batch, heads, rows, _ = query.shape
        out = query.new_empty((batch, rows, heads, values.shape[-1]))
        self._plan({**given, "out": out})
        return out.transpose(1, 2)


class PoolSite(nn.Module):
    """A kernel in the place of ``max_pool2d`` or ``mean_pool2d``, for images in channels-last memory."""

    def __init__(self, plan: LoadedPlan, fallback: Callable[..., Tensor], answer: Tensor | None) -> None:
        super().__init__()
        assert answer is not None  # it was planned for
        self._plan, self._fallback, self._shape, self._dtype = plan, fallback, tuple(answer.shape), answer.dtype

    def forward(self, x: Tensor, *sides: object) -> Tensor:
        """Compute into a fresh tensor, channels last too."""
        if not x.is_contiguous(memory_format=torch.channels_last) or x.data_ptr() % POINTER_ALIGNMENT_BYTES:
            return self._fallback(x, *sides)
        out = torch.empty(self._shape, dtype=self._dtype, device=x.device, memory_format=torch.channels_last)
        self._plan({"x": x, "out": out})
        return out


class DepthwiseSite(nn.Module):
    """Kernels in the place of ``depthwise_conv2d``, by the layout of its input; torch computes if there is none for it.

    Each has its answer in channels-last memory or not. The weights are stored as kernels read them, the elements of a
    window before the channels, and the bias is a vector of fp32.
    """

    def __init__(
        self, by_layout: Mapping[Layout, tuple[LoadedPlan, bool]], weight: Tensor, bias: Tensor | None,
        answer: Tensor | None,
    ) -> None:  # fmt: skip
        super().__init__()
        assert answer is not None  # it was planned for
        self._by_layout, self._shape = dict(by_layout), tuple(answer.shape)
        self.weight: Tensor
        self.register_buffer("weight", weight.flatten(1).t().contiguous())
        self.bias: Tensor | None
        self.register_buffer("bias", site_bias(bias, wanted=False, length=len(weight), device=weight.device))

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *rest: object) -> Tensor:
        """Compute into a fresh tensor, in channels-last memory if the input is."""
        plan, channels_last = self._by_layout.get(layout(x), (None, False))
        if plan is None or x.data_ptr() % POINTER_ALIGNMENT_BYTES:
            return cast(Tensor, DEPTHWISE(x, weight, bias, residual, *rest))
        memory = torch.channels_last if channels_last else torch.contiguous_format
        out = torch.empty(self._shape, dtype=weight.dtype, device=x.device, memory_format=memory)
        added = None if residual is None else residual.contiguous(memory_format=memory)
        if added is not None and added.data_ptr() % POINTER_ALIGNMENT_BYTES:
            added = added.clone()
        given = {"x": x, "weight": self.weight, "bias": self.bias, "residual": added, "out": out}
        plan({name: tensor for name, tensor in given.items() if tensor is not None})
        return out


class GroupNormSite(nn.Module):
    """Kernels in the place of ``group_norm``, by the layout of its input; torch computes if there is none for it."""

    def __init__(self, by_layout: Mapping[Layout, LoadedPlan]) -> None:
        super().__init__()
        self._by_layout = dict(by_layout)

    def forward(self, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, *rest: object) -> Tensor:
        """Compute into a fresh tensor of the same layout."""
        plan = self._by_layout.get(layout(x))
        if plan is None or x.data_ptr() % POINTER_ALIGNMENT_BYTES:
            return cast(Tensor, GROUP_NORM(x, groups, weight, bias, *rest))
        out = torch.empty_like(x)
        plan({"x": x, **_prepared(weight=weight, bias=bias), "out": out})
        return out


class BlockSite(nn.Module):
    """Kernels in the place of ``space_to_depth``, by the layout of its images."""

    def __init__(self, by_layout: Mapping[Layout, LoadedPlan], answer: Tensor | None) -> None:
        super().__init__()
        assert answer is not None  # it was planned for
        self._by_layout, self._shape, self._dtype = dict(by_layout), tuple(answer.shape), answer.dtype

    def forward(self, x: Tensor, *rest: object) -> Tensor:
        """Compute into a fresh tensor in channels-last memory."""
        plan = self._by_layout.get(layout(x))
        if plan is None or x.data_ptr() % POINTER_ALIGNMENT_BYTES:
            return cast(Tensor, SPACE_TO_DEPTH(x, *rest))
        out = torch.empty(self._shape, dtype=self._dtype, device=x.device, memory_format=torch.channels_last)
        plan({"x": x, "out": out})
        return out


class PointwiseSite(nn.Module):
    """Kernels in the place of ``pointwise``, by the layouts of its inputs; torch computes if there is none for them."""

    def __init__(self, by_layout: Mapping[tuple[Layout, ...], tuple[LoadedPlan, bool]], answer: Tensor | None) -> None:
        super().__init__()
        assert answer is not None  # it was planned for
        self._by_layout, self._shape, self._dtype = dict(by_layout), tuple(answer.shape), answer.dtype

    def forward(self, inputs: Sequence[Tensor], program: str) -> Tensor:
        """Compute into a fresh tensor, in channels-last memory if the inputs are."""
        plan, channels_last = self._by_layout.get(tuple(map(layout, inputs)), (None, False))
        if plan is None or any(tensor.data_ptr() % POINTER_ALIGNMENT_BYTES for tensor in inputs):
            return cast(Tensor, POINTWISE(inputs, program))
        memory = torch.channels_last if channels_last else torch.contiguous_format
        out = torch.empty(self._shape, dtype=self._dtype, device=inputs[0].device, memory_format=memory)
        plan({**{f"in{index}": tensor for index, tensor in enumerate(inputs)}, "out": out})
        return out


def _prepared(**operands: Tensor | None) -> dict[str, Tensor]:
    """Return the operands that are not ``None``, contiguous and aligned as kernels read them."""
    ready = {}
    for name, tensor in operands.items():
        if tensor is not None:
            whole = tensor.contiguous()
            ready[name] = whole.clone() if whole.data_ptr() % POINTER_ALIGNMENT_BYTES else whole
    return ready
