"""The computation of a TorchScript module as a module that torch.export captures.

There are two ways, tried in order. torch's own converter translates the graph: a branch that depends on values stays a
branch. It does not translate every model (torch 2.13: no early return, no loop over a list of modules). The other way
records the operators of one call of the module, and so keeps the branches that the call takes. The caller compares the
result with the module in both cases.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from autotune.errors import ModelError
from autotune.model import schema, torchscript
from autotune.model.behaviour import main_line
from autotune.model.form import flatten
from autotune.model.precision import flat_module
from autotune.model.silence import silenced

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

Way = Callable[["torch.nn.Module", "Mapping[str, torch.Tensor]"], "torch.nn.Module"]
_READS_VALUE = "_local_scalar_dense"


def converted(module: "torch.nn.Module", example: "Mapping[str, torch.Tensor]") -> "torch.nn.Module":
    """Translate a copy of a module by torch's converter; the result takes the example's tensors in their order.

    Whatever the converter raises is raised here, and ValueError if a number in the graph depends on values.
    """
    from torch._export.converter import TS2EPConverter

    arguments, copy = _arguments(module, example), cast("torch.jit.ScriptModule", torchscript.copied(module))
    # It remarks on weights without a use, and on sizes that vary: the graph is specialised afterwards.
    with silenced("torch._export.non_strict_utils"):
        program = TS2EPConverter(copy, tuple(arguments.values())).convert()
    graph = flat_module(program)
    if _reads_values(graph):
        _fold_numbers(graph, tuple(arguments.values()))
    if _reads_values(graph):
        raise ValueError("a size or another number in the graph depends on values")
    _name_convolutions(graph)
    return _by_example(graph, arguments, tuple(example))


def recorded(
    module: "torch.nn.Module", example: "Mapping[str, torch.Tensor]", *, with_gradients: bool = False
) -> "torch.nn.Module":
    """Record the operators of one call of a copy of a module; the result takes the example's tensors in their order.

    Whatever the recording raises is raised here. With gradients enabled, a module of torch's own (an encoder layer,
    say) computes by plain operators instead of a fused one that only torch has; an operator in place may be refused.
    """
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    copy, arguments, names = torchscript.copied(module), _arguments(module, example), tuple(example)
    weights = [parameter for parameter in copy.parameters() if parameter.is_floating_point()]
    for weight in weights:
        weight.requires_grad_(with_gradients)

    def call(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = {**arguments, **dict(zip(names, tensors, strict=True))}
        return tuple(flatten(copy(*given.values()))[0])

    def convolution(*given: object) -> object:
        return torch.ops.aten.convolution.default(*given[:9])  # the others are flags of cuDNN

    table: dict[Any, Callable[..., Any]] = {torch.ops.aten._convolution.default: convolution}
    with torch.set_grad_enabled(with_gradients):
        graph = make_fx(call, decomposition_table=table, pre_dispatch=True)(*(t.clone() for t in example.values()))
    graph.graph.eliminate_dead_code()
    _name_convolutions(graph)
    for weight in weights:
        weight.requires_grad_(False)  # the graph holds these very tensors
    return graph


WAYS: Mapping[str, Way] = {
    "torch's converter": converted,
    "recording a call with gradients": functools.partial(recorded, with_gradients=True),
    "recording a call": recorded,
}


def first_graph(
    name: str,
    module: "torch.nn.Module",
    example: "Mapping[str, torch.Tensor]",
    accept: "Callable[[torch.nn.Module], ExportedProgram]",
) -> "ExportedProgram":
    """Return the graph of a TorchScript module by the first way that finds one that ``accept`` exports.

    ``accept`` raises ModelError for a graph that does not answer like the module. Raises ModelError if no way is left.
    """
    reasons = []
    for way, find in WAYS.items():
        try:
            return accept(find(module, example))
        except ModelError as error:
            reasons.append(f"{way}: {error.asked}: {error.found}")
        except Exception as error:  # torch's converter asserts, and the interpreter raises errors of its own
            reasons.append(f"{way}: {type(error).__name__}: {main_line(error)}")
    raise ModelError(
        f"no graph can be made of the TorchScript module {name}",
        found="; ".join(reasons),
        expected="operators of torch on tensors, whose order does not depend on the values of the inputs",
        run="autotune with a factory (path.py:callable) that returns the eager module that was scripted",
    )


def _arguments(module: "torch.nn.Module", example: "Mapping[str, torch.Tensor]") -> dict[str, Any]:
    """Return the values of all parameters of forward, in order: those of the example, and defaults for the others."""
    parameters = schema.signature_of(module.forward).parameters.values()
    return {
        parameter.name: example[parameter.name].clone() if parameter.name in example else parameter.default
        for parameter in parameters
    }


def _by_example(graph: "torch.nn.Module", arguments: Mapping[str, object], names: Sequence[str]) -> "torch.nn.Module":
    """Wrap a graph that takes all parameters so that it takes the example's tensors alone."""
    import torch

    class ByExample(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph = graph

        def forward(self, *tensors: torch.Tensor) -> object:
            given = {**arguments, **dict(zip(names, tensors, strict=True))}
            return self.graph(*given.values())

    return ByExample()


def _reads_values(graph: "GraphModule") -> bool:
    """Return whether a graph reads a number from a tensor."""
    return any(_READS_VALUE in str(node.target) for node in graph.graph.nodes)


def _fold_numbers(graph: "GraphModule", inputs: Sequence[object]) -> None:
    """Replace numbers that depend on shapes alone by their values.

    A traced graph computes sizes by tensors of one number, and reads numbers from them; torch.export would take each
    for a size that is not known.
    """
    import torch

    class Numbers(torch.fx.Interpreter):
        def __init__(self) -> None:
            super().__init__(graph)
            self.on_values: set[Node] = set()
            self.found: dict[Node, bool | int | float] = {}

        def run_node(self, n: "Node") -> Any:
            value = super().run_node(n)
            random = torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ())
            sources = () if "sym_size" in str(n.target) else n.all_input_nodes
            of_values = any(source in self.on_values for source in sources)
            weight = n.op == "get_attr" and not _is_number(value)
            if n.op == "placeholder" or random or weight or of_values:
                self.on_values.add(n)
            elif n.op == "call_function" and isinstance(value, bool | int | float):
                self.found[n] = value
            return value

    numbers = Numbers()
    with torch.no_grad():
        numbers.run(*inputs)
    nodes = list(graph.graph.nodes)
    for node in nodes:
        replaced = {source: numbers.found[source] for source in node.all_input_nodes if source in numbers.found}
        if replaced:
            node.args = _with_values(node.args, replaced)
            node.kwargs = _with_values(node.kwargs, replaced)
    for node in reversed(nodes):
        asserts = "_assert" in str(node.target) and node not in numbers.on_values
        if not node.users and (asserts or node in numbers.found):
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _is_number(value: object) -> bool:
    """Return whether a constant is a tensor of one number that no user trains."""
    import torch

    return isinstance(value, torch.Tensor) and not value.dim() and not isinstance(value, torch.nn.Parameter)


def _with_values(arguments: Any, values: "Mapping[Node, bool | int | float]") -> Any:
    from torch.fx.node import map_arg

    return map_arg(arguments, lambda node: values.get(node, node))


def _name_convolutions(graph: "GraphModule") -> None:
    """Call a convolution by its number of dimensions, as the graph of an eager module does.

    TorchScript traces the general operator, and backends match the others.
    """
    import torch

    aten = torch.ops.aten
    by_dimensions = {3: aten.conv1d.default, 4: aten.conv2d.default, 5: aten.conv3d.default}
    for node in graph.graph.nodes:
        if node.target is aten.convolution.default and len(node.args) >= 9 and not node.args[6]:
            data, weight, bias, stride, padding, dilation, _, _, groups = node.args[:9]
            value = cast("Any", node).meta.get("val")
            if isinstance(value, torch.Tensor) and value.dim() in by_dimensions:
                node.target = by_dimensions[value.dim()]
                node.args = (data, weight, bias, stride, padding, dilation, groups)
    graph.recompile()
