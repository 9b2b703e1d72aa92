"""The question of a file that takes its original's place: whether a call is one that its plan was made for.

The answer is source of TorchScript, see :func:`guard`. :class:`ForwardSignature` and :class:`ModuleState` say what a
call depends on: its arguments, and the tensors, values and modes of the modules.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from autotune.errors import ModelError
from autotune.model import torchscript

if TYPE_CHECKING:
    import torch

FITS = "_autotune_fits"
"""The name of the method that answers the question."""

UNREAD = "num_batches_tracked"
"""The counter of a batch norm, which no call for inference reads; its version costs as much time as that of weights."""

SCALAR_TYPES = {
    "uint8": 0, "int8": 1, "int16": 2, "int32": 3, "int64": 4, "float16": 5, "float32": 6, "float64": 7,
    "complex64": 9, "complex128": 10, "bool": 11, "bfloat16": 15,
}  # fmt: skip
"""The numbers by which TorchScript knows dtypes (``c10::ScalarType``)."""


def refuse_unlike(module: "torch.nn.Module", path: Path) -> None:
    """Refuse a model whose calls no file can dispatch on, before anything is searched."""
    inner = cast("Any", module)._c
    if not inner._has_method("forward"):
        raise refused(path, "a module without forward", "a module with a method forward")
    schema = inner._get_method("forward").schema
    for argument in schema.arguments[1:]:
        kind = argument.type.annotation_str
        if kind not in ("Tensor", "Optional[Tensor]"):
            raise refused(path, f"argument {argument.name} is {kind}", "tensors as arguments")
    answer = schema.returns[0].type.annotation_str
    if not re.fullmatch(r"(Tensor|Tuple|List|Dict|str|[][, ])+", answer):
        raise refused(path, f"an answer of type {answer}", "tensors in tuples, lists and dicts")
    ModuleState.of(module, path)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardSignature:
    """Forward's arguments as TorchScript writes them, by name, and its return type."""

    arguments: Mapping[str, str]
    optional: frozenset[str]
    returns: str

    @classmethod
    def of(cls, module: "torch.nn.Module", path: Path, example: "Mapping[str, torch.Tensor]") -> "ForwardSignature":
        """Read the signature of a module from ``path``; raises ModelError if the example is no call of it."""
        schema = cast("Any", module)._c._get_method("forward").schema
        arguments, optional = {}, set()
        for argument in schema.arguments[1:]:
            kind = argument.type.annotation_str
            if argument.name not in example and not (kind == "Optional[Tensor]" and argument.has_default_value()):
                raise refused(path, f"no input for argument {argument.name}", "an input for each argument")
            default = " = None" if kind == "Optional[Tensor]" and argument.has_default_value() else ""
            arguments[argument.name] = f"{argument.name}: {kind}{default}"
            if kind == "Optional[Tensor]":
                optional.add(argument.name)
        if unknown := set(example) - set(arguments):
            raise refused(path, f"no argument {', '.join(sorted(unknown))}", ", ".join(arguments))
        return cls(
            arguments=arguments, optional=frozenset(optional), returns=schema.returns[0].type.annotation_str
        )  # fmt: skip


def guard(
    module: "torch.nn.Module", path: Path, signature: ForwardSignature, example: "Mapping[str, torch.Tensor]",
    device_kind: str,
) -> str:  # fmt: skip
    """Return the method that says whether a call is one of the plan's."""
    state = ModuleState.of(module, path)
    first = next((name for name, tensor in state.tensors.items() if tensor.is_floating_point()), None)
    lines = [f"def {FITS}(self, {', '.join(signature.arguments.values())}) -> bool:"]

    def unless(condition: str) -> None:
        lines.extend((f"    if not ({condition}):", "        return False"))

    trained = any(parameter.requires_grad for parameter in module.parameters())
    if trained:
        unless("not torch.is_grad_enabled()")
    for name in signature.arguments:
        if name not in example:
            unless(f"{name} is None")
            continue
        if name in signature.optional:
            lines += [f"    if {name} is None:", "        return False"]
        tensor = example[name]
        unless(f"{name}.size() == {list(tensor.shape)} and {name}.dtype == {_number(tensor.dtype)}")
        unless(f'{name}.device.type == "{device_kind}"')
        if not trained and tensor.is_floating_point():
            unless(f"not (torch.is_grad_enabled() and {name}.requires_grad)")
    if first is not None:
        lines.append(f"    weight = torch.jit._unwrap_optional({_place(first)})")
        unless(
            f"weight.dtype == {_number(state.tensors[first].dtype)} and weight.device == {next(iter(example))}.device"
        )
        unless("not weight.is_inference()")
    for name, value in state.values.items():
        unless(f"{_place(name)} == {json.dumps(value) if isinstance(value, str) else repr(value)}")
    # A tensor that was changed in place, as load_state_dict does, has another version than a loaded one.
    lines.append("    changes = 0")
    counted = (name for name in state.tensors if not name.endswith(UNREAD))
    lines += [f"    changes += torch.ops.aten._version(torch.jit._unwrap_optional({_place(name)}))" for name in counted]
    lines.append("    return changes == 0")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleState:
    """All that a call may depend on besides its arguments: tensors and plain values of the modules, by their names.

    An attribute, and the mode of a module, counts if the code of any of them reads it.
    """

    tensors: "Mapping[str, torch.Tensor]"
    values: Mapping[str, Any]

    @classmethod
    def of(cls, module: "torch.nn.Module", path: Path) -> "ModuleState":
        """Read the state of a module from ``path``; raises ModelError for a value that has no literal."""
        import torch

        parts = [(f"{place}." if place else "", cast("Any", part)) for place, part in module.named_modules()]
        read = {
            (node.input().type().annotation_str, node.s("name"))
            for _, part in parts
            for method in part._c._method_names()
            for node in part._c._get_method(method).graph.findAllNodes("prim::GetAttr")
        }
        tensors: dict[str, torch.Tensor] = dict(module.named_parameters()) | dict(module.named_buffers())
        values: dict[str, Any] = {}
        for prefix, part in parts:
            own = part._c._type().annotation_str
            if (own, "training") in read:
                values[f"{prefix}training"] = part.training
            for name, value in torchscript.attributes(part):
                if (own, name) not in read or value is None:
                    continue
                if isinstance(value, torch.Tensor):
                    tensors[prefix + name] = value
                elif _is_plain(value):
                    values[prefix + name] = value
                elif not isinstance(value, torch.ScriptModule):
                    kind = type(value).__name__
                    raise refused(path, f"an attribute {prefix}{name} of type {kind}", "plain values")
        return cls(tensors=tensors, values=values)


def _is_plain(value: object) -> bool:
    """Return whether TorchScript compares a value with a literal: a finite number, a text, or a list of numbers."""
    if isinstance(value, list):
        return bool(value) and all(map(_is_number, value))
    return isinstance(value, str) or _is_number(value)


def _is_number(value: object) -> bool:
    return isinstance(value, bool | int | float) and math.isfinite(value)


def _number(dtype: "torch.dtype") -> int:
    return SCALAR_TYPES[str(dtype).removeprefix("torch.")]


def _place(name: str) -> str:
    """Return the expression of a parameter of the module, whose parts may be numbers."""
    expression = "self"
    for part in name.split("."):
        expression = f'getattr({expression}, "{part}")' if not part.isidentifier() else f"{expression}.{part}"
    return expression


def refused(path: Path, found: str, expected: str) -> ModelError:
    """Return the error for a model that no file can take the place of."""
    return ModelError(
        f"no file can take the place of {path}", found=found, expected=expected,
        run="autotune export, which writes the plan as a file of its own",
    )  # fmt: skip
