"""A module becomes a graph: flat tensors in, flat tensors out, by torch.export."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autotune.errors import ModelError
from autotune.model import fingerprint, schema
from autotune.model.masks import drop_neutral_masks
from autotune.workload import TensorSpec, Workload

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """A captured model: its graph on the CPU, its workload, and how its own answer is put together."""

    program: "ExportedProgram"
    workload: Workload
    output_schema: schema.Node


def flat(module: "torch.nn.Module", names: tuple[str, ...]) -> "torch.nn.Module":
    """Wrap a module so that it takes its named inputs as flat tensors and returns a tuple of flat tensors."""
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            answer = self.inner(**dict(zip(names, tensors, strict=True)))
            return tuple(schema.flatten_output(answer)[0])

    return Flat().eval()


def capture(name: str, batch: int, module: "torch.nn.Module", inputs: Mapping[str, "torch.Tensor"]) -> Captured:
    """Capture ``module`` as it answers the named ``inputs`` (tensors on the CPU).

    Raises ModelError where the module refuses the inputs, answers with something else than tensors, or cannot be
    captured.
    """
    import torch

    names = tuple(inputs)
    tensors = tuple(inputs.values())
    with torch.no_grad():
        answers, output_schema = _answer(module, inputs)
        try:
            program = torch.export.export(flat(module, names), tensors)
        except Exception as error:
            raise ModelError(
                f"{name} cannot be captured by torch.export",
                found=_first_line(error),
                expected="a forward without control flow that depends on the values of its inputs",
                run=f"torch.export.export(module, (), kwargs) with the inputs {', '.join(names)}",
            ) from error
        drop_neutral_masks(program)
    output_names = schema.output_names(output_schema)
    workload = Workload(
        name=name,
        batch=batch,
        structure=fingerprint.structure(program),
        weights=fingerprint.weights(program),
        inputs=tuple(map(_spec, names, tensors)),
        outputs=tuple(map(_spec, output_names, answers)),
        features=fingerprint.features(program),
    )
    return Captured(program=program, workload=workload, output_schema=output_schema)


def _answer(
    module: "torch.nn.Module", inputs: Mapping[str, "torch.Tensor"]
) -> "tuple[list[torch.Tensor], schema.Node]":
    try:
        answer = module(**inputs)
    except Exception as error:
        shapes = ", ".join(f"{name} {str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for name, t in inputs.items())
        raise ModelError(
            "the model refuses its inputs",
            found=f"{type(error).__name__}: {_first_line(error)}",
            expected=f"a forward that takes {shapes}",
        ) from error
    tensors, output_schema = schema.flatten_output(answer)
    if not tensors:
        raise ModelError("the model's answer has no tensor", found=repr(answer)[:80], expected="at least one tensor")
    return tensors, output_schema


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _spec(name: str, tensor: Any) -> TensorSpec:
    return TensorSpec(name=name, shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))
