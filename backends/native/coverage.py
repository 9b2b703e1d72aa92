"""The launches of a call before and after the rewriting: their bytes, their operations, and who computes each.

Nothing is compiled or computed. An operator that torch computes is one launch (an LSTM too), with further ones for the
steps that torch does not fuse with a convolution or a product, and for the fill of a pad. A generated kernel's second
launch counts, too, but not that of a product, which depends on its tile. Copies that a kernel's module makes of
operands in another layout are launches, as far as the graph shows them.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.node import Argument, map_arg
from torch.utils.flop_counter import FlopCounterMode

from autotune.backends.native.fusions import fuse
from autotune.backends.native.graph import aten, is_view, place, simplify, value
from autotune.backends.native.native_kernels import COMPILED
from autotune.backends.native.passes import EXACT
from autotune.backends.native.refusals import Refused, operator_name, recording, refuse
from autotune.backends.native.sites import CONV2D, GEMM, fused_nodes, sites
from autotune.backends.native.triton_codegen import planned_sites
from autotune.backends.native.triton_codegen_sites import DEPTHWISE, NORM
from autotune.backends.native.triton_kernels.launch_plan import LaunchPlan
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.graph_coverage import GraphCoverage, GraphLaunch, OperatorRefusal
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces import native as spaces

log = logging.getLogger(__name__)

_FUSED = torch.ops.autotune_native
_NO_PRODUCTS = {aten.scaled_dot_product_attention.default, _FUSED.attention.default, DEPTHWISE}
"""Operators with a kernel that is not chosen among tiles."""

_PADS = {aten.pad.default, aten.constant_pad_nd.default}
_FILL = "fill"
_READ_BY_ROWS = {aten.embedding.default, aten.gather.default, aten.index.Tensor, aten.index_select.default}
_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
_CONVOLUTIONS |= {aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding}
_CONVOLUTIONS |= {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
_COPIED = OperatorRefusal(function="binding", reason="a kernel reads rows that lie in one piece")
_WITHOUT_LAUNCH = {aten._assert_tensor_metadata.default}


def coverage(program: ExportedProgram, configuration: Configuration, device: Device) -> GraphCoverage:
    """Return the launches of a captured graph, simplified alone and with the fusions of a configuration."""
    channels_last = bool(configuration.get("channels_last", False))
    before = simplify(program, EXACT).module
    with recording() as refused:
        fused = fuse(program, spaces.fusions(configuration))
        own = _own_nodes(fused.module, device, channels_last=channels_last)
    return GraphCoverage(
        before=tuple(_launches(before, {}, {})), after=tuple(_launches(fused.module, own, refused)),
        fusions=fused.matches,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _OwnKernel:
    """The kernel problem of a product, or the plan of a generated kernel."""

    problem: GemmProblem | None = None
    plan: LaunchPlan | None = None


_Own = dict[Node, _OwnKernel]
"""The operators that kernels of ours compute."""


def _own_nodes(module: GraphModule, device: Device, *, channels_last: bool) -> _Own:
    """Return the operators that have a plan of generated kernels, or a kernel problem with at least one tile."""
    nodes = list(fused_nodes(module))
    plans, _ = planned_sites(module, channels_last=channels_last)
    own: _Own = {nodes[index]: _OwnKernel(plan=node_plans[-1].plan) for index, node_plans in plans.items()}
    has_tile: dict[GemmProblem, bool] = {}
    for site in sites(module, channels_last=channels_last):
        problem, node = site.problem, nodes[site.index]
        if problem is None:
            continue
        if problem not in has_tile:
            has_tile[problem] = any(kind.builds(device, problem) for kind in COMPILED.values())
        if has_tile[problem]:
            own[node] = _OwnKernel(problem=problem)
        else:
            refuse(node, f"no kind of kernels has a tile for {problem.m}×{problem.n}×{problem.k}")
    return own


def _launches(module: GraphModule, own: _Own, refused: Refused) -> Iterator[GraphLaunch]:
    for node in module.graph.nodes:
        if node.op == "call_function" and not is_view(node) and node.target not in _WITHOUT_LAUNCH:
            yield from _of_node(node, own, refused)


def _of_node(node: Node, own: _Own, refused: Refused) -> Iterator[GraphLaunch]:
    """Yield the launch of an operator, and those that torch or a kernel's module needs beside it."""
    flops, written = _flops(node), sum(map(_bytes, _tensors(node)))
    launch = GraphLaunch(
        operator=_words(node), node=node.name, place=place(node), owner="own" if node in own else "torch",
        traffic_bytes=_read(node) + written, flops=flops, is_product=flops > 0 and node.target not in _NO_PRODUCTS,
        refusals=tuple(refused.get(node, ())),
    )  # fmt: skip
    beside = replace(launch, owner="torch", flops=0, is_product=False)
    if node in own:
        beside = replace(beside, operator=f"copy of an operand of {launch.operator}", refusals=(_COPIED,))
        yield from (replace(beside, traffic_bytes=2 * _bytes(operand)) for operand in _copied(node, own[node].problem))
        plan = own[node].plan
        if plan is not None and len(plan.launches) > 1:
            kept = plan.workspace_bytes
            yield replace(launch, traffic_bytes=launch.traffic_bytes - written + kept)
            yield replace(
                launch, operator=f"sum of parts of {launch.operator}", traffic_bytes=kept + written, flops=0,
                is_product=False,
            )  # fmt: skip
            return
    yield launch
    for step in _more_steps(node) if node not in own else ():
        # a fill writes the answer; any other step reads it, too
        moved = written if step == _FILL else 2 * written
        yield replace(beside, operator=f"{step} of {launch.operator}", traffic_bytes=moved)


def _words(node: Node) -> str:
    """Return an operator's name; a convolution with groups is another one, since other kernels compute it."""
    name = operator_name(node)
    groups = node.args[7] if node.target is CONV2D else 1
    return name if groups == 1 else f"{name} with groups"


def _more_steps(node: Node) -> list[str]:
    """Return the steps that torch launches after the first one: cuDNN fuses all of them, if they end in a ReLU."""
    if node.target in _PADS:
        return [_FILL]
    if node.target in _CONVOLUTIONS:
        return ["bias"] if any(operand is not None for operand in node.args[2:3]) else []
    if node.target not in (CONV2D, GEMM, DEPTHWISE):
        return []
    bias, residual, activation = node.args[2], node.args[3], str(node.args[-1])
    if node.target is CONV2D and activation == "relu":
        return []
    steps = {"bias": bias is not None and node.target is not GEMM, "residual": residual is not None}
    return [*(step for step, is_needed in steps.items() if is_needed), *([activation] if activation != "none" else [])]


def _copied(node: Node, problem: GemmProblem | None) -> list[Tensor]:
    """Return the operands that the module of a kernel copies, as far as the layouts in the graph show it."""
    if node.target is GEMM:
        operands = [value(node.args[0]), value(node.args[3])]
        return [operand for operand in operands if operand is not None and not operand.is_contiguous()]
    if node.target is NORM:
        rows = value(node.args[0])
        return [rows] if rows is not None and not _lies_in_rows(node.args[0]) else []
    x, weight = value(node.args[0]), value(node.args[1]) if node.target is CONV2D else None
    if x is None or weight is None or problem is None or problem.window is not None or weight.shape[2:].numel() == 1:
        return []
    return [x]


def _lies_in_rows(node: Argument) -> bool:
    """Return true if a tensor is contiguous, or is a view of images that is if they lie in channels-last memory."""
    views: list[Node] = []
    tensor, source = value(node), node
    while isinstance(source, Node) and is_view(source):
        views.append(source)
        source = source.args[0]
    images = value(source)
    if tensor is None or tensor.is_contiguous() or images is None or images.dim() != len("NCHW"):
        return tensor is None or tensor.is_contiguous()
    viewed: Tensor = images.new_empty(images.shape).contiguous(memory_format=torch.channels_last)
    try:
        for view in reversed(views):
            viewed = view.target(viewed, *view.args[1:], **view.kwargs)  # type: ignore[operator]
    except RuntimeError:
        return False
    return viewed.is_contiguous()


def _read(node: Node) -> int:
    """Return the bytes that an operator reads; of a table that is looked up, as many as its answer has."""
    if node.target in _READ_BY_ROWS:
        table, *indices = node.all_input_nodes
        answer = sum(map(_bytes, _tensors(node)))
        return min(_bytes(value(table)), answer) + sum(_bytes(value(index)) for index in indices)
    return sum(_bytes(value(source)) for source in node.all_input_nodes)


def _tensors(node: Node) -> Sequence[Tensor]:
    answers = node.meta.get("val")
    if isinstance(answers, Tensor):
        return [answers]
    read = {user.args[1] for user in node.users}  # an answer that nothing reads is not written
    return [answer for at, answer in enumerate(answers or ()) if at in read and isinstance(answer, Tensor)]


def _bytes(tensor: Tensor | None) -> int:
    """Return the size of a tensor's own elements: a dimension that is expanded counts once."""
    if tensor is None:
        return 0
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride else min(size, 1)
    return int(elements * tensor.element_size())


def _flops(node: Node) -> int:
    """Count the operations of one node by running it on tensors without data."""
    mapping = {
        _FUSED.gemm: _gemm_flops, _FUSED.conv2d: _conv_flops, _FUSED.depthwise_conv2d: _conv_flops,
        _FUSED.attention: _attention_flops, _FUSED.gemm_gemm: _pair_flops,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    }  # fmt: skip
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    args = map_arg(node.args, lambda source: source.meta.get("val"))
    kwargs = map_arg(node.kwargs, lambda source: source.meta.get("val"))
    try:
        with torch.no_grad(), counter:
            node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception as error:  # the figure is an estimate, so no operator may end the program
        log.info("the operations of %s are not counted: %s: %s", node.name, type(error).__name__, error)
        return 0
    return int(counter.get_total_flops())


Sizes = Sequence[int]


def _gemm_flops(a: Sizes, b: Sizes, *_: object, **_named: object) -> int:
    return 2 * _count(a) * b[0]


def _pair_flops(
    a: Sizes, b0: Sizes, bias0: object, activation0: object, b1: Sizes, *_: object, **_named: object
) -> int:
    return 2 * _count(a) * b0[0] + 2 * (_count(a) // a[-1]) * b1[0] * b1[1]


def _conv_flops(x: Sizes, weight: Sizes, *_: object, out_shape: Sizes, **_named: object) -> int:
    return 2 * _count(out_shape) * _count(weight[1:])


def _attention_flops(query: Sizes, key: Sizes, values: Sizes, *_: object, **_named: object) -> int:
    return 2 * _count(query[:-1]) * key[-2] * (query[-1] + values[-1])


def _count(sizes: Sizes) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count
