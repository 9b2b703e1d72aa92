"""Convolutions of a frozen TorchScript graph whose weights are packed once, as the file is loaded: pack.

torch's convolution on a CPU reorders its weights into oneDNN's blocked layout at every call. Here a child module of the
file packs them as it is loaded, and saves them as they were: a packed tensor cannot be saved, and its layout is that of
the processor that packed it. A convolution also does the addition and the activation behind it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch._C import Graph, Node, Value

CHILD = "packed_weights"
"""The name of the child module that packs the weights."""

CONVOLUTIONS = ("aten::_convolution", "aten::convolution")
VIEWS = ("aten::view", "aten::_unsafe_view")

ACTIVATIONS: Mapping[str, tuple[str, Callable[["Node"], list[float]]]] = {
    "aten::relu": ("relu", lambda node: []),
    "aten::relu6": ("hardtanh", lambda node: [0.0, 6.0]),
    "aten::hardtanh": ("hardtanh", lambda node: [float(_constant(value)) for value in list(node.inputs())[1:]]),  # type: ignore[arg-type]
    "aten::silu": ("swish", lambda node: []),
    "aten::hardswish": ("hardswish", lambda node: []),
    "aten::hardsigmoid": ("hardsigmoid", lambda node: []),
}
"""The activations that oneDNN computes with a convolution: the name for torch's operator, and the numbers they need."""

Convolution = tuple[torch.Tensor, list[int], list[int], list[int], int, list[int]]
"""A weight and what its packing depends on: padding, stride, dilation, groups, and the sizes of the image batch."""


class PackedWeights(torch.nn.Module):
    """The weights of convolutions, which are packed as the module is loaded; ``tensors`` are the packed ones.

    It has no parameters and no buffers, so it adds nothing to a ``state_dict``. The packed weights stay on the CPU.
    """

    plain: list[Convolution]
    tensors: list[torch.Tensor]

    def __init__(self, plain: list[Convolution]) -> None:
        super().__init__()
        self.plain = plain
        self.tensors = [convolution[0] for convolution in plain]
        self.training = False

    @torch.jit.export
    def __getstate__(self) -> tuple[list[Convolution], bool]:
        """Return the weights as they were before packing."""
        return self.plain, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[list[Convolution], bool]) -> None:
        """Pack the weights. Only one thread loads a module, so that calls need no lock."""
        plain: list[Convolution] = []
        tensors: list[torch.Tensor] = []
        for loaded, padding, stride, dilation, groups, sizes in state[0]:
            weight = loaded.to(torch.device("cpu"))
            plain.append((weight, padding, stride, dilation, groups, sizes))
            tensors.append(
                torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, sizes)
            )
        self.plain = plain
        self.tensors = tensors
        self.training = state[1]


def pack(frozen: torch.jit.ScriptModule, example: Sequence[torch.Tensor]) -> None:
    """Replace the two-dimensional convolutions of a frozen module on a CPU; it is to be saved then, and not called.

    The sizes of images are those of the example. Outputs that are contiguous stay so, though the images in between are
    in channels-last memory. Raises RuntimeError if no convolution can be packed, or if the graph depends on strides.
    """
    graph = frozen.graph
    torch._C._jit_pass_constant_propagation(graph)
    torch._C._jit_pass_remove_mutation(graph)
    if _nodes(graph, "aten::as_strided"):
        raise RuntimeError("packed_weights: this graph reads memory by strides, and packing changes them")
    packing = _Packing(graph, _layouts(graph, example))
    for node in [node for node in graph.nodes() if node.kind() in CONVOLUTIONS]:
        packing.replace(node)
    if not packing.convolutions:
        raise RuntimeError("packed_weights: this graph has no convolution that can be packed")
    _keep_forms(graph, packing.layouts)
    child = torch.jit.script(PackedWeights(packing.convolutions))
    frozen._c._register_attribute(CHILD, child._c._type(), child._c)
    part = _read(graph, next(iter(graph.inputs())), CHILD, child._c._type())
    tensors = _read(graph, part.output(), "tensors", torch._C.ListType.ofTensors())
    packing.weights.addInput(tensors.output())  # type: ignore[arg-type]  # torch's stub is wrong
    for node in (packing.weights, tensors, part):
        graph.prependNode(node)
    torch._C._jit_pass_dce(graph)
    torch._C._jit_pass_lint(graph)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """The sizes of a tensor, the number of its dtype, and whether it is contiguous."""

    sizes: list[int]
    dtype: int
    is_contiguous: bool


class _Packing:
    """Replaces convolutions in a graph; ``weights`` is the node that gives the packed weight of each."""

    def __init__(self, graph: "Graph", layouts: dict[str, _Layout]) -> None:
        self.layouts, self.convolutions = layouts, list[Convolution]()
        self.weights = graph.create("prim::ListUnpack", [], 0)
        self._graph = graph
        self._top = {value.debugName() for node in graph.nodes() for value in node.outputs()}

    def replace(self, node: "Node") -> None:
        """Replace a node and those behind it that can be computed with it, if it is a convolution to be packed."""
        convolution = self._convolution(node)
        if convolution is None:
            return
        _, padding, stride, dilation, groups, _ = convolution
        chain, other = self._chain(node)
        image, _, bias, *_ = node.inputs()
        weight = self.weights.addOutput()
        weight.setType(torch._C.TensorType.get())
        self.convolutions.append(convolution)
        graph, end = self._graph, chain[-1]
        graph.setInsertPoint(end)
        name, numbers = "none", list[float]()
        if end.kind() in ACTIVATIONS:
            name, numbers_of = ACTIVATIONS[end.kind()]
            numbers = numbers_of(end)
        scalars = graph.create("prim::ListConstruct", [_inserted(graph, number) for number in numbers], 1)
        scalars.output().setType(torch._C.ListType(torch._C.OptionalType(torch._C.NumberType.get())))
        graph.insertNode(scalars)
        none = _inserted(graph, None)
        how = [weight, bias, *(_inserted(graph, given) for given in (padding, stride, dilation, groups))]
        if other is None:
            given = [image, *how, _inserted(graph, name), scalars.output(), none]
        else:
            activation = none if name == "none" else _inserted(graph, name)
            added = [_inserted(graph, "add"), _inserted(graph, 1.0)]
            given = [image, other, *how, *added, activation, scalars.output(), none]
        fused = graph.create("mkldnn::_convolution_pointwise", given, 1)
        graph.insertNode(fused)
        self.layouts[fused.output().debugName()] = self.layouts[node.output().debugName()]
        end.output().replaceAllUsesWith(fused.output())
        graph.setInsertPoint(graph.block())
        for replaced in reversed(chain):
            replaced.destroy()

    def _convolution(self, node: "Node") -> Convolution | None:
        """Return the weight of a two-dimensional convolution that is a constant, and what its packing depends on."""
        image, weight, _, *rest = node.inputs()
        tensor, (stride, padding, dilation, transposed, _, groups) = _constant(weight), map(_constant, rest[:6])
        layout = self.layouts[image.debugName()]
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in (torch.float32, torch.bfloat16):
            return None
        if tensor.dim() != 4 or len(layout.sizes) != 4 or 0 in layout.sizes or transposed is not False:
            return None
        if not isinstance(groups, int) or not all(isinstance(given, list) for given in (stride, padding, dilation)):
            return None
        return tensor.detach().contiguous(), _pair(padding), _pair(stride), _pair(dilation), groups, layout.sizes

    def _chain(self, convolution: "Node") -> "tuple[list[Node], Value | None]":
        """Return the nodes that one operator computes, each the only reader of the one before, and the added tensor."""
        chain, other = [convolution], None
        behind = self._only_reader(convolution)
        if behind is not None and behind.kind() == "aten::add":
            added = self._added(convolution, behind)
            if added is not None and self._can_join(chain, behind):
                chain, other = [convolution, behind], added
                behind = self._only_reader(behind)
        # With an addition the operator knows ReLU only.
        kinds = ACTIVATIONS if other is None else ("aten::relu",)
        if behind is not None and behind.kind() in kinds and self._can_join(chain, behind):
            chain = [*chain, behind]
        return chain, other

    def _added(self, convolution: "Node", addition: "Node") -> "Value | None":
        """Return the tensor that is added to a convolution's output, if it has the same sizes and dtype."""
        first, second, factor = addition.inputs()
        right = self.layouts[convolution.output().debugName()]
        other = second if first.debugName() == convolution.output().debugName() else first
        layout = self.layouts.get(other.debugName())
        fits = layout is not None and (layout.sizes, layout.dtype) == (right.sizes, right.dtype)
        return other if fits and _constant(factor) == 1 else None

    def _only_reader(self, node: "Node") -> "Node | None":
        uses = list(node.output().uses())
        if len(uses) != 1 or not (outputs := list(uses[0].user.outputs())):
            return None
        # A reader in an inner block may run many times, or never.
        return uses[0].user if outputs[0].debugName() in self._top else None

    def _can_join(self, chain: "list[Node]", reader: "Node") -> bool:
        """Move the nodes in front of their reader, unless a tensor that they read is written to in between."""
        aliases = self._graph.alias_db()
        target = reader
        for node in reversed(chain):
            if not aliases.move_before_topologically_valid(node, target):  # type: ignore[attr-defined]
                return False
            target = node
        return True


def _layouts(graph: "Graph", example: Sequence[torch.Tensor]) -> dict[str, _Layout]:
    """Return the layouts of images, of what is added and of outputs, by the names of their values."""
    copy = graph.copy()
    values = dict(zip(_values(graph), _values(copy).values(), strict=True))
    wanted: dict[str, Value] = {}
    for node in graph.nodes():
        if node.kind() in (*CONVOLUTIONS, "aten::add", "prim::TupleConstruct"):
            wanted |= {value.debugName(): value for value in (*node.inputs(), *node.outputs())}
    names = [name for name, value in wanted.items() if name in values and value.type().kind() == "TensorType"]
    kinds = {
        "aten::size": torch._C.ListType.ofInts(), "prim::dtype": torch._C.IntType.get(),
        "aten::is_contiguous": torch._C.BoolType.get(),
    }  # fmt: skip
    before = len(list(copy.outputs()))
    for name in names:
        for kind, answer in kinds.items():
            node = copy.create(kind, [values[name]], 1)
            node.output().setType(answer)
            producer = values[name].node()
            # Behind the tensor's producer, so that the tensor does not stay in memory for longer than in a usual call.
            if producer.kind() == "prim::Param":
                copy.prependNode(node)
            else:
                node.insertAfter(producer)
            copy.registerOutput(node.output())
    for _ in range(before):
        copy.eraseOutput(0)
    copy.makeMultiOutputIntoTuple()
    copy.eraseInput(0)  # the module itself
    answers = iter(torch._C._create_function_from_graph("layouts", copy)(*example) if names else ())
    return {
        name: _Layout(sizes=list(sizes), dtype=dtype, is_contiguous=is_contiguous)
        for name, sizes, dtype, is_contiguous in zip(names, answers, answers, answers, strict=True)
    }


def _values(graph: "Graph") -> "dict[str, Value]":
    """Return the values of a graph that are in no inner block, by name and in order."""
    values = [*graph.inputs(), *(value for node in graph.nodes() for value in node.outputs())]
    return {value.debugName(): value for value in values}


def _keep_forms(graph: "Graph", layouts: Mapping[str, _Layout]) -> None:
    """Let views take images in channels-last memory, and return contiguous outputs if they were so."""
    aliases = graph.alias_db()
    views = [
        node
        for kind in VIEWS
        for node in _nodes(graph, kind)
        if list(node.inputs())[1].type().kind() == "ListType" and not aliases.has_writers(node.output())  # type: ignore[attr-defined]
    ]
    for node in views:
        copied = graph.create("aten::reshape", list(node.inputs()), 1)
        copied.insertBefore(node)
        node.output().replaceAllUsesWith(copied.output())
        node.destroy()
    answer = graph.return_node().inputsAt(0).node()
    if answer.kind() != "prim::TupleConstruct":
        return
    graph.setInsertPoint(answer)
    for index, value in enumerate(list(answer.inputs())):
        layout = layouts.get(value.debugName())
        if layout is not None and layout.is_contiguous and len(layout.sizes) == 4:
            contiguous = graph.create("aten::contiguous", [value, _inserted(graph, 0)], 1)
            graph.insertNode(contiguous)
            answer.replaceInput(index, contiguous.output())
    graph.setInsertPoint(graph.block())


def _read(graph: "Graph", owner: "Value", name: str, kind: "torch._C.JitType") -> "Node":
    node = graph.create("prim::GetAttr", [owner], 1)
    node.s_("name", name)
    node.output().setType(kind)
    return node


def _nodes(graph: "Graph", kind: str) -> "list[Node]":
    """Return the nodes of a kind, those of inner blocks included."""
    return list(graph.findAllNodes(kind))  # type: ignore[attr-defined]


def _inserted(graph: "Graph", value: object) -> "Value":
    """Insert a constant at the graph's insertion point."""
    constant: Value = graph.insertConstant(value)  # type: ignore[attr-defined]
    return constant


def _constant(value: "Value") -> object:
    """Return the value of a constant, and ``None`` for all others."""
    return value.toIValue()


def _pair(numbers: object) -> list[int]:
    """Return the numbers of two dimensions, of which a list may hold one for both."""
    if not isinstance(numbers, list):
        raise TypeError(f"a list of numbers expected, found {numbers!r}")
    return numbers * (2 // len(numbers))
