"""The work of a captured graph, counted without computing it: floating-point operations, and bytes that must move."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node

log = logging.getLogger(__name__)

FP32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The work of one call; a number is ``None`` if it could not be counted.

    ``flops`` are the operations of matrix products, convolutions and attention, two for a multiplication with its
    addition; all others are left out. ``traffic_bytes`` is the compulsory traffic in fp32: parameters, buffers, inputs
    and outputs that the graph uses, each moved once. Of a table that is only looked up, the rows that are read count.
    """

    flops: int | None = None
    traffic_bytes: int | None = None


def work(program: "ExportedProgram") -> Work:
    """Count the work of a graph on its own example shapes; nothing is computed and no memory is allocated."""
    try:
        return Work(flops=_flops(program), traffic_bytes=sum(_traffic(program)))
    except Exception as error:  # the count serves reports alone, so no model may be refused because of it
        log.info("the work of the captured graph is not counted: %s: %s", type(error).__name__, error)
        return Work()


def _flops(program: "ExportedProgram") -> int:
    import torch
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.utils.flop_counter import FlopCounterMode

    # torch's own table lacks the attention that scaled_dot_product_attention becomes on a CPU.
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={on_cpu: _attention_flops})
    inputs = [_value(node) for node in program.graph.nodes if node.op == "placeholder"]
    fake_mode = next(value.fake_mode for value in inputs if isinstance(value, FakeTensor))
    with torch.no_grad(), fake_mode, counter:
        torch.fx.Interpreter(program.graph_module).run(*inputs)
    return int(counter.get_total_flops())


def _attention_flops(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: object, **_named: object
) -> int:
    """Count both products of an attention by the shapes of its operands."""
    queries, keys = math.prod(query[:-1]), key[-2]
    return 2 * queries * keys * (query[-1] + value[-1])


def _traffic(program: "ExportedProgram") -> Iterator[int]:
    """Yield the bytes of each tensor that crosses the border of the graph; tensors of one storage count once."""
    seen: set[int] = set()
    held = {**program.state_dict, **program.constants}
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(nodes, program.graph_signature.input_specs, strict=True):
        stored = held.get(spec.target) if spec.target is not None else None
        storage = _storage(stored)
        if not node.users or storage in seen:
            continue
        if storage:
            seen.add(storage)
        yield _bytes_read(node)
    (outputs,) = (node.args[0] for node in program.graph.nodes if node.op == "output")
    yield from (_bytes(_value(node)) for node in outputs)


def _storage(tensor: object) -> int:
    """Return the address of a tensor's memory; 0 if it has none."""
    import torch

    return tensor.untyped_storage().data_ptr() if isinstance(tensor, torch.Tensor) else 0


def _bytes_read(node: "Node") -> int:
    """Return the bytes of an input; of a table that is only looked up, no more than its results have."""
    import torch

    own = _bytes(_value(node))
    if all(user.target is torch.ops.aten.embedding.default and user.args[0] is node for user in node.users):
        return min(own, sum(_bytes(_value(user)) for user in node.users))
    return own


def _value(node: object) -> object:
    return getattr(node, "meta", {}).get("val")


def _bytes(value: "torch.Tensor | object") -> int:
    """Return the size of a tensor, with four bytes for each floating-point number; 0 for another value."""
    import torch

    if not isinstance(value, torch.Tensor):
        return 0
    size = FP32_BYTES if value.is_floating_point() else value.element_size()
    return int(value.numel()) * size
