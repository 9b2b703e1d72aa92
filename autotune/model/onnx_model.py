"""ONNX models that come in: the inputs that a file declares, and a copy of it whose sizes are fixed.

Of a model in ONNX no torch graph is made: backends that read ONNX build from the file.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from autotune.errors import ArtifactError, ModelError
from autotune.model import onnx_graph
from autotune.model.file_kind import ONNX, DeclaredInput
from autotune.model.onnx_file import check_onnx

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto, ValueInfoProto

SUFFIX = ".onnx"
EXPECTED = "a whole ONNX model of known operators, with its weights in the file or in plain files beside it"
WEIGHTS_END = ".data"
"""The end of the name of the file with a copy's weights."""
INLINE_BYTES = 1024
"""Tensors below this size stay in the file of a copy; shapes and axes, which inference needs, are smaller."""

_DTYPES = {
    "FLOAT": "float32", "DOUBLE": "float64", "FLOAT16": "float16", "INT64": "int64", "INT32": "int32",
    "INT16": "int16", "INT8": "int8", "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""The types of inputs and outputs that NumPy and torch share, by their names in ONNX."""


class OnnxFile:
    """An ONNX model, told by the end of its name: its content begins like that of any protobuf."""

    name, model_format = "ONNX", ONNX

    def module(self, path: Path, device: str) -> "torch.nn.Module":
        """Raise ModelError: there is no torch module in it."""
        raise ModelError(
            f"{path} has no torch module", found="an ONNX model", expected="a TorchScript file or a .pt2 file",
            run=f"autotune tune {path}, then autotune.load by the name of its study",
        )  # fmt: skip


FILE = OnnxFile()


def is_named(path: Path) -> bool:
    """Return whether a path is that of an ONNX model, by its suffix."""
    return path.suffix.lower() == SUFFIX


def inputs(path: Path) -> tuple[DeclaredInput, ...]:
    """Return the inputs of an ONNX file, in its order; raises ModelError if it cannot be taken."""
    graph = _described(path).graph
    held = {tensor.name for tensor in graph.initializer}
    taken = tuple(_declared(path, value) for value in graph.input if value.name not in held)
    if not taken:
        _refuse(path, "no input", "a model with an input")
    for value in graph.output:
        _dtype(path, value)
    if any(len({value.name for value in values}) != len(values) for values in (graph.input, graph.output)):
        _refuse(path, "two inputs or outputs of one name", "names that differ")
    return taken


def write_fixed(path: Path, example: "Mapping[str, torch.Tensor]", target: Path) -> None:
    """Write a copy of a model with the sizes of its inputs fixed, and its weights in one file beside the copy.

    ``example`` has a tensor for each input. Raises ModelError if the file is refused, or does not take these inputs.
    """
    import onnx

    for beside in sorted(_weight_files(_described(path))):
        with (path.parent / beside).open("rb"):
            pass  # onnx opens it by C++, which no record of what was read would see
    try:
        model = onnx.load(str(path))
    except Exception as error:  # onnx reads by C++ and protobuf, which raise errors of their own
        _refuse(path, f"{type(error).__name__}: {error}".splitlines()[0][:300], EXPECTED)
    held = {tensor.name for tensor in model.graph.initializer}
    named: dict[str, int] = {}
    taken = [value for value in model.graph.input if value.name not in held]
    if [value.name for value in taken] != list(example):
        _refuse(path, f"inputs {', '.join(example)}", f"its own inputs: {', '.join(value.name for value in taken)}")
    for value in taken:
        dtype, given = _dtype(path, value), str(example[value.name].dtype).removeprefix("torch.")
        if dtype != given:
            _refuse(path, f"{value.name} of {given}", f"the dtype that the file declares, {dtype}")
        _fix(path, value, tuple(example[value.name].shape), named)
    for value in model.graph.output:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in named:
                dimension.dim_value = named[dimension.dim_param]
    del model.graph.value_info[:]  # it may repeat sizes that varied
    onnx.save(
        model, str(target), save_as_external_data=True, all_tensors_to_one_file=True,
        location=f"{target.name}{WEIGHTS_END}", size_threshold=INLINE_BYTES,
    )  # fmt: skip


def _described(path: Path) -> "ModelProto":
    """Return a model without the weights that are in other files; raises ModelError if the file is refused."""
    if find_spec("onnx") is None:
        _refuse(
            path, "onnx is not installed", "the packages that read and run ONNX models", "pip install onnx onnxruntime"
        )
    import onnx

    try:
        check_onnx(path)
        model = onnx.load(str(path), load_external_data=False)
    except ArtifactError as error:
        _refuse(path, error.found, EXPECTED)
    except Exception as error:  # see write_fixed
        _refuse(path, f"{type(error).__name__}: {error}".splitlines()[0][:300], EXPECTED)
    if not model.graph.node:
        _refuse(path, "no operator" if model.ByteSize() else "an empty file", EXPECTED)
    return model


def _weight_files(model: "ModelProto") -> set[str]:
    """Return the names of the files beside a model that hold weights of it."""
    return {
        entry.value for tensor in onnx_graph.constants(model) for entry in tensor.external_data
        if entry.key == "location"
    }  # fmt: skip


def _declared(path: Path, value: "ValueInfoProto") -> DeclaredInput:
    dtype = _dtype(path, value)
    described = value.type.tensor_type
    if not described.HasField("shape"):
        return DeclaredInput(name=value.name, dtype=dtype)
    return DeclaredInput(name=value.name, shape=tuple(_sizes(described.shape.dim)), dtype=dtype)


def _sizes(dimensions: Any) -> Iterator[int | str]:
    for dimension in dimensions:
        yield dimension.dim_value if dimension.HasField("dim_value") else dimension.dim_param


def _dtype(path: Path, value: "ValueInfoProto") -> str:
    """Return the dtype of an input or output; raises ModelError if it is no tensor of numbers."""
    from onnx import TensorProto

    kind = value.type.WhichOneof("value")
    number = value.type.tensor_type.elem_type if kind == "tensor_type" else 0
    name = TensorProto.DataType.Name(number)
    if name not in _DTYPES:
        what = f"{value.name}, a {'tensor of ' + name if kind == 'tensor_type' else str(kind).removesuffix('_type')}"
        _refuse(path, what, f"inputs and outputs that are tensors of {', '.join(_DTYPES.values())}")
    return _DTYPES[name]


def _fix(path: Path, value: "ValueInfoProto", sizes: Sequence[int], named: dict[str, int]) -> None:
    """Fix the sizes of an input; ``named`` collects the sizes that have a name, which are the same everywhere."""
    described = value.type.tensor_type
    own = list(_sizes(described.shape.dim)) if described.HasField("shape") else [""] * len(sizes)
    fits = len(own) == len(sizes) and all(
        size == given if isinstance(size, int) else not size or named.setdefault(size, given) == given
        for size, given in zip(own, sizes, strict=True)
    )
    if not fits:
        known = ", ".join(f"{name} = {size}" for name, size in named.items())
        _refuse(
            path, f"{value.name} of shape {list(sizes)}",
            f"the shape that the file declares, {[size or 'any' for size in own]}{known and ', with ' + known}",
        )  # fmt: skip
    described.shape.ClearField("dim")
    for size in sizes:
        described.shape.dim.add().dim_value = size


def _refuse(path: Path, found: str, expected: str, run: str = "") -> NoReturn:
    raise ModelError(f"the ONNX model {path} cannot be taken", found=found, expected=expected, run=run)
