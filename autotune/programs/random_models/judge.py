"""One random program through capture, build and load, compared with its module: ProgramResult."""

import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.errors import AutotuneError, ModelError
from autotune.programs.random_models.odd_models import Program, draw_program
from autotune.programs.random_models.same_answer import WHOLE_NUMBERS, differences
from autotune.scratch import ScratchFolder

if TYPE_CHECKING:
    import torch

    from autotune.deploy.model import OptimizedModel
    from autotune.deploy.prepared import Prepared
    from autotune.records.device import Device

CALLS = 50
NUDGE = 1e-5
"""Whole numbers that change if the inputs are moved by this share are ties, and are not compared."""
LONGEST_REASON = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramResult:
    """The result of one program.

    ``refusal`` is the reason why capture refused it, before anything was built. By backend, ``failed`` is the reason
    why it was not built or not loaded, ``rejected`` the reason why a study would not promote it (its answers to the
    held-out inputs are too far off), ``wrong`` the difference in the answers of one that would be promoted, and
    ``calls`` the number of compared calls. ``noise`` counts those of them in which an output was left out that is
    nothing but rounding error.
    """

    seed: str
    odd: tuple[str, ...]
    may_be_refused: bool
    operators: tuple[str, ...]
    refusal: str = ""
    failed: dict[str, str] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    noise: dict[str, int] = field(default_factory=dict)


def judge(seed: str, backends: Sequence[str], calls: int = CALLS) -> ProgramResult:
    """Draw a program, and take it through each backend unless it is refused."""
    import torch

    from autotune.deploy.prepared import prepare
    from autotune.runtime import discovery

    program = draw_program(random.Random(seed))
    torch._dynamo.reset()
    torch.manual_seed(0)
    module, device = program.module(), discovery.find("cpu")
    result = ProgramResult(
        seed=seed,
        odd=program.odd,
        may_be_refused=program.may_be_refused,
        operators=tuple(step.operator for step in program.spec.steps),
    )
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    try:
        prepared = prepare(module, program.spec.example(1), device=device, name="program", seed=0)
    except ModelError as error:
        return replace(result, refusal=f"{error.asked}: {error.found}")
    if any(not torch.equal(before[name], tensor) for name, tensor in module.state_dict().items()):
        result.wrong["capture"] = "the model's own tensors were changed"
    with ScratchFolder("programs") as folder:
        prepared.write(folder / "model")
        for backend in backends:
            _through(backend, program, module, prepared, folder, device, result, calls)
    return result


def _through(
    backend: str,
    program: Program,
    module: "torch.nn.Module",
    prepared: "Prepared",
    folder: Path,
    device: "Device",
    result: ProgramResult,
    calls: int,
) -> None:
    try:
        fast = _built(backend, prepared, folder, device)
    except Exception as error:  # whatever a backend raises is a failed trial; a study goes on without it
        reason = str(error).strip().splitlines()[0] if str(error) else ""
        result.failed[backend] = f"{type(error).__name__}: {reason}"[:LONGEST_REASON]
        return
    try:
        if far_off := _far_off(fast, module, prepared):
            result.rejected[backend] = far_off
            return
        for number, inputs in enumerate(_inputs(program, calls)):
            wrong = _wrong(program, module, fast, inputs)
            if wrong and _is_noise(program, module, inputs):
                result.noise[backend] = result.noise.get(backend, 0) + 1
            elif wrong:
                result.wrong[backend] = f"call {number}: {wrong}"
                return
            result.calls[backend] = number + 1
    finally:
        fast.close()


def _far_off(fast: "OptimizedModel", module: "torch.nn.Module", prepared: "Prepared") -> str:
    """Return why a study would not promote the plan: its answers to held-out inputs miss the default limits."""
    import torch

    from autotune import accuracy
    from autotune.model.capture import caller
    from autotune.model.form import flatten
    from autotune.records.objective import Objective

    names = tuple(prepared.example)
    call = caller(module, names)
    with torch.no_grad():
        sets = [_copied(inputs) for inputs in prepared.held_out]
        references = [tuple(output.clone() for output in flatten(call(inputs))[0]) for inputs in sets]
    answers = [fast.flat(inputs) for inputs in prepared.held_out]
    return accuracy.far_off(answers, references, prepared.captured.form.names, Objective(), 1.0)


def _built(backend: str, prepared: "Prepared", folder: Path, device: "Device") -> "OptimizedModel":
    """Build the first default in fp32, and load it as a deployment does."""
    from autotune import registry
    from autotune.deploy.model import OptimizedModel
    from autotune.model.source import CapturedModel
    from autotune.runtime import artifact

    captured = prepared.captured
    maker = registry.backend(backend)
    defaults = maker.space(device, captured.workload, has_factory=False).defaults
    configuration = next(default for default in defaults if default.get("precision", "fp32") == "fp32")
    target = folder / backend
    target.mkdir()
    try:
        maker.build(CapturedModel(folder / "model"), configuration, device, target)
        artifact.describe(target, configuration, captured.workload, captured.output_schema, example=prepared.example)
        runner = artifact.load_runner(target, device)
    finally:
        shutil.rmtree(target, ignore_errors=True)
    plan: Any = None  # only shown, and this one is not
    return OptimizedModel(plan, runner, captured.inputs, captured.form)


def _inputs(program: Program, calls: int) -> "Iterator[dict[str, torch.Tensor]]":
    """Draw fresh inputs, half of them as the study perturbs its example."""
    from autotune.model.inputs import perturbed

    yield from perturbed(program.spec.example(1), calls // 2, 1234)
    yield from (program.spec.example(1000 + number) for number in range(calls - calls // 2))


def _wrong(
    program: Program, module: "torch.nn.Module", fast: "OptimizedModel", inputs: "dict[str, torch.Tensor]"
) -> str:
    expected = _called(program, module, inputs)
    try:
        answer = fast(**_copied(inputs))
    except AutotuneError as error:
        return str(error).splitlines()[0]
    wrong = list(differences(expected, answer))
    if wrong and all(WHOLE_NUMBERS in reason for reason in wrong) and _is_tie(program, module, inputs, expected):
        return ""
    return "; ".join(wrong[:3])


def _copied(inputs: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    return {name: tensor.clone() for name, tensor in inputs.items()}


def _called(program: Program, module: "torch.nn.Module", inputs: "dict[str, torch.Tensor]") -> object:
    import torch

    by_name = _copied(inputs)
    first = [by_name.pop(drawn_input.name) for drawn_input in program.spec.inputs[: program.positional_only]]
    with torch.no_grad():
        answer: object = module(*first, **by_name)
        return answer


def _is_tie(program: Program, module: "torch.nn.Module", inputs: "dict[str, torch.Tensor]", expected: object) -> bool:
    """Return whether the model's own whole numbers change if its inputs are moved a little."""
    for nudge in (NUDGE, -NUDGE):
        moved = {
            name: tensor * (1 + nudge) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()
        }
        if any(WHOLE_NUMBERS in reason for reason in differences(expected, _called(program, module, moved))):
            return True
    return False


def _is_noise(program: Program, module: "torch.nn.Module", inputs: "dict[str, torch.Tensor]") -> bool:
    """Return whether the model answers otherwise in double precision: then single precision is no reference."""
    import copy

    from autotune.model.form import flatten

    exact = copy.deepcopy(module).double()
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    single = flatten(_called(program, module, inputs))[0]
    double = flatten(_called(program, exact, wide))[0]
    return any(
        list(differences(output.double(), exact_output.double()))
        for output, exact_output in zip(single, double, strict=True)
        if output.is_floating_point()
    )
