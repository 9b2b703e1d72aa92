"""The captured graph in another precision and on another device; the dtypes of its inputs and outputs stay."""

import copy
import inspect
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch.export import ExportedProgram
    from torch.fx.node import Argument

    Narrow = Callable[[object], object]

REDUCED = {"bf16": "bfloat16", "fp16": "float16"}


def flat_module(program: "ExportedProgram") -> "torch.fx.GraphModule":
    """Return the captured graph as a module: flat tensors in, a tuple of flat tensors out."""
    options = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
    return program.module(**options)


def in_precision(program: "ExportedProgram", inputs: tuple[object, ...], precision: str) -> "ExportedProgram":
    """Return the graph with weights and arithmetic in ``precision``; fp32, tf32 and default leave it as it is.

    Floating inputs and outputs are cast at the border. Constants that the narrower type cannot hold, such as the most
    negative float32 in an attention mask, become its own largest or smallest value.
    """
    import torch

    if precision not in REDUCED:
        return program
    dtype: torch.dtype = getattr(torch, REDUCED[precision])
    module = copy.deepcopy(flat_module(program))  # it shares its weights with the program
    _narrow_graph(module, dtype)
    module = module.to(dtype)
    _cast_at_border(module, dtype, _output_dtypes(program))
    with torch.no_grad():
        return torch.export.export(module, inputs)


def on_device(program: "ExportedProgram", device: str) -> "ExportedProgram":
    """Return the graph with its weights, and every node that names a device, on ``device``."""
    if device == "cpu":
        return program
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, device)


def border(module: "torch.nn.Module", dtype: "torch.dtype", outputs: "tuple[torch.dtype, ...]") -> "torch.nn.Module":
    """Wrap a flat module that computes in ``dtype`` so that its callers see the original dtypes."""
    import torch

    class Border(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            answers = self.inner(*(t.to(dtype) if t.is_floating_point() else t for t in tensors))
            return tuple(answer.to(original) for answer, original in zip(answers, outputs, strict=True))

    wrapped = Border()
    wrapped.training = False  # a captured graph refuses eval()
    return wrapped


def _cast_at_border(module: "torch.fx.GraphModule", dtype: "torch.dtype", outputs: "tuple[torch.dtype, ...]") -> None:
    """Cast in a captured graph as :func:`border` does around a module: its nodes then keep their origin."""
    import torch

    def converted(node: "torch.fx.Node", to: "torch.dtype") -> "torch.fx.Node":
        conversion = module.graph.call_function(torch.ops.aten.to.dtype, (node, to))
        conversion.meta["val"] = node.meta["val"].to(to)
        return conversion

    for node in [node for node in module.graph.nodes if node.op == "placeholder"]:
        if node.users and node.meta["val"].is_floating_point():
            with module.graph.inserting_after(node):
                narrowed = converted(node, dtype)
            node.replace_all_uses_with(narrowed, delete_user_cb=lambda user, narrowed=narrowed: user is not narrowed)
    answer = next(node for node in module.graph.nodes if node.op == "output")
    with module.graph.inserting_before(answer):
        values = cast("Sequence[torch.fx.Node]", answer.args[0])
        answer.args = (tuple(converted(value, to) for value, to in zip(values, outputs, strict=True)),)
    module.recompile()


def _output_dtypes(program: "ExportedProgram") -> "tuple[torch.dtype, ...]":
    values = next(node for node in program.graph.nodes if node.op == "output").args[0]
    return tuple(value.meta["val"].dtype for value in values)


def _narrow_graph(module: "torch.fx.GraphModule", dtype: "torch.dtype") -> None:
    import torch

    from autotune.model.fingerprint import graphs

    limits = torch.finfo(dtype)

    def narrow(value: object) -> object:
        if value in (torch.float32, torch.float64) and isinstance(value, torch.dtype):
            return dtype
        if isinstance(value, float) and value == value and abs(value) != float("inf"):
            return max(limits.min, min(limits.max, value))
        return value

    for part in graphs(module):
        _narrow_nodes(part, dtype, narrow)


def _narrow_nodes(module: "torch.fx.GraphModule", dtype: "torch.dtype", narrow: "Narrow") -> None:
    """Narrow the nodes of one graph; the caller narrows graphs within it."""
    import torch

    for node in list(module.graph.nodes):
        if "_assert_tensor_metadata" in str(node.target):
            module.graph.erase_node(node)  # it asserts the dtypes of the wider graph
        elif node.op == "get_attr":
            _narrow_attribute(module, str(node.target), dtype)
        elif node.op == "call_function":
            node.args = cast("tuple[Argument, ...]", _map(node.args, narrow))
            node.kwargs = cast("dict[str, Argument]", _map(node.kwargs, narrow))
            if _makes_floats(node):
                with module.graph.inserting_after(node):
                    narrowed = module.graph.call_function(torch.ops.aten.to.dtype, (node, dtype))
                narrowed.meta["val"] = node.meta["val"]
                node.replace_all_uses_with(
                    narrowed, delete_user_cb=lambda user, narrowed=narrowed: user is not narrowed
                )
    module.recompile()


def _makes_floats(node: "torch.fx.Node") -> bool:
    """Return whether a node makes floating values, such as a table of zeros, without floating inputs."""
    import torch

    def floating(value: object) -> bool:
        return isinstance(value, torch.Tensor) and value.is_floating_point()

    sources = (source.meta.get("val") for source in node.all_input_nodes)
    return floating(node.meta.get("val")) and not any(map(floating, sources))


def _map(value: object, function: "Narrow") -> object:
    if isinstance(value, tuple | list):
        mapped = [_map(item, function) for item in value]
        return tuple(mapped) if isinstance(value, tuple) else mapped
    if isinstance(value, dict):
        return {key: _map(item, function) for key, item in value.items()}
    return function(value)


def _narrow_attribute(module: "torch.fx.GraphModule", path: str, dtype: "torch.dtype") -> None:
    """Cast a tensor that a node takes from its module, clamped to the range of the narrower dtype."""
    import torch

    owner, _, name = path.rpartition(".")
    holder = module.get_submodule(owner) if owner else module
    tensor = getattr(holder, name)
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        return
    limits = torch.finfo(dtype)
    narrowed = tensor.detach().clamp(limits.min, limits.max)
    if name in holder._parameters:
        tensor.data = narrowed
    elif name in holder._buffers:
        holder._buffers[name] = narrowed
    else:
        setattr(holder, name, narrowed.to(dtype))
