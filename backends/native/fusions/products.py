"""Products of a value with a constant matrix, however they are spelled."""

from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule, Node

from autotune.backends.native.fusions.patterns import of_one_dtype
from autotune.backends.native.graph import add_constant, aten, constant, same_layout, value
from autotune.backends.native.refusals import refuse

_TURNS = {aten.t.default, aten.transpose.int, aten.permute.default}


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearProduct:
    """``a`` [..., k] times the transpose of ``matrix`` [n, k], plus an addend; ``weight`` is the matrix's node.

    At most one of ``bias`` [n], a constant, and ``residual``, of the answer's shape, is present.
    """

    a: Node
    weight: Node
    matrix: Tensor
    bias: Node | None = None
    residual: Node | None = None


def product_of(module: GraphModule, node: Node) -> LinearProduct | None:
    """Read a node as a product with a constant matrix in one dtype throughout; ``None`` if it is none."""
    added: object = None
    if node.target is aten.linear.default:
        a, weight, added = (*node.args, None)[:3]
    elif node.target in (aten.mm.default, aten.matmul.default):
        a, weight = node.args
    elif node.target is aten.addmm.default and not any(scale != 1 for scale in node.kwargs.values()):
        added, a, weight = node.args
    else:
        return None
    if node.kwargs and node.target is not aten.addmm.default:
        return None
    if not isinstance(a, Node) or not isinstance(weight, Node) or not (added is None or isinstance(added, Node)):
        return None
    matrix, left, answer = _constant_matrix(module, weight), value(a), value(node)
    if matrix is None or left is None or answer is None or not of_one_dtype(a, weight, added, node):
        refuse(node, "a product of two computed tensors" if matrix is None else "its operands differ in type")
        return None
    matrix = matrix if node.target is aten.linear.default else matrix.t()
    if not left.dim() or not left.numel() or not matrix.numel():
        return None
    bias = residual = None
    if added is not None:
        tensor, meta = constant(module, added), value(added)
        if tensor is not None and tensor.shape == matrix.shape[:1]:
            bias = added
        elif meta is not None and meta.shape == answer.shape:
            residual = added
        else:
            refuse(node, "its addend is neither a vector of constants nor of the answer's shape")
            return None
    return LinearProduct(a=a, weight=weight, matrix=matrix, bias=bias, residual=residual)


def weight_of(module: GraphModule, product: LinearProduct, *, before: Node) -> Node:
    """Return a node that reads a product's matrix as [n, k] in rows; a new constant if there is none."""
    read = constant(module, product.weight)
    if read is not None and same_layout(read, product.matrix) and read.is_contiguous():
        return product.weight
    meta = value(product.weight)
    assert meta is not None
    rows = product.matrix.contiguous()
    return add_constant(module, "rows", rows, meta.new_empty(rows.shape), before=before)


def _constant_matrix(module: GraphModule, node: Node) -> Tensor | None:
    """Return the matrix that a node reads, or a transposition of it."""
    turns = []
    while node.target in _TURNS and isinstance(node.args[0], Node):
        turns.append(node)
        node = node.args[0]
    tensor = constant(module, node)
    for turn in reversed(turns):
        tensor = None if tensor is None else turn.target(tensor, *turn.args[1:])  # type: ignore[operator]
    return tensor if tensor is not None and tensor.dim() == 2 else None
