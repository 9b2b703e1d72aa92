"""A pass that removes nodes that no output needs, and the weights that no node reads."""

from torch import Tensor
from torch.fx import GraphModule, Node

from autotune.backends.native.graph import Pass, aten


def dead_code(module: GraphModule) -> int:
    """Remove nodes and tensors that no output needs; returns the number of removed nodes.

    Random operators stay, since later ones would draw other numbers without them.
    """
    before = len(module.graph.nodes)
    for node in list(module.graph.nodes):
        if _asserts_what_is_fixed(node):
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    _drop_unread(module)
    return before - len(module.graph.nodes)


def _asserts_what_is_fixed(node: Node) -> bool:
    """Return true if a node checks the dtype of a value that the graph determines; that of an input may vary."""
    asserted = node.args[0] if node.target is aten._assert_tensor_metadata.default else None
    return isinstance(asserted, Node) and asserted.op != "placeholder"


def _drop_unread(module: GraphModule) -> None:
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    called = tuple(f"{node.target}." for node in module.graph.nodes if node.op in ("call_module", "get_attr"))
    for path, part in list(module.named_modules()):
        prefix = f"{path}." if path else ""
        plain = [name for name, attribute in vars(part).items() if isinstance(attribute, Tensor)]
        for name in [*part._parameters, *part._buffers, *plain]:
            if prefix + name not in read and not (called and (prefix + name).startswith(called)):
                delattr(part, name)
    module.delete_all_unused_submodules()


DEAD_CODE = Pass(name="dead_code", apply=dead_code)
