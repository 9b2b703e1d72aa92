"""One random program through capture, build and load, held against its module: Verdict."""

import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.errors import AutotuneError, ModelError
from autotune.programs.random_models.odd_models import Program, draw_program
from autotune.programs.random_models.same_answer import differences
from autotune.scratch import ScratchFolder

if TYPE_CHECKING:
    from autotune.deploy.prepared import Prepared
    from autotune.records.device import Device

CALLS = 50
NUDGE = 1e-5
"""Whole numbers that change if the inputs are moved by so much are ties, and are not compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one program.

    ``refusal`` is why capture refused it, before anything was built. By backend ``failed`` says why it was not built or
    not loaded, ``rejected`` why a study would not promote it (its answers to the held-out inputs are too far off),
    ``wrong`` what differs in the answers of one that would be promoted, and ``calls`` how many were compared. ``noise``
    counts those of them in which an output was left out that is nothing but rounding error.
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

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def judge(seed: str, backends: Sequence[str], calls: int = CALLS) -> Verdict:
    """Draw a program, and take it through each backend unless it is refused."""
    import torch

    from autotune.deploy.prepared import prepare
    from autotune.runtime import discovery

    program = draw_program(random.Random(seed))
    torch._dynamo.reset()
    torch.manual_seed(0)
    module, device = program.module(), discovery.find("cpu")
    verdict = Verdict(
        seed=seed, odd=program.odd, may_be_refused=program.may_be_refused,
        operators=tuple(step.operator for step in program.drawn.steps),
    )  # fmt: skip
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    try:
        prepared = prepare(module, program.drawn.example(1), device=device, name="program", seed=0)
    except ModelError as error:
        return _replaced(verdict, refusal=f"{error.asked}: {error.found}")
    if any(not torch.equal(before[name], tensor) for name, tensor in module.state_dict().items()):
        verdict.wrong["capture"] = "the model's own tensors were changed"
    with ScratchFolder("programs") as folder:
        prepared.write(folder / "model")
        for backend in backends:
            _through(backend, program, module, prepared, folder, device, verdict, calls)
    return verdict


def _replaced(verdict: Verdict, **changed: Any) -> Verdict:
    from dataclasses import replace

    return replace(verdict, **changed)


def _through(
    backend: str, program: Program, module: Any, prepared: "Prepared", folder: Path, device: "Device", verdict: Verdict,
    calls: int,
) -> None:  # fmt: skip
    try:
        fast = _built(backend, prepared, folder, device)
    except Exception as error:  # whatever a backend raises is a failed trial; a study goes on without it
        verdict.failed[backend] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[
            :300
        ]
        return
    try:
        if far_off := _far_off(fast, module, prepared):
            verdict.rejected[backend] = far_off
            return
        for number, given in enumerate(_inputs(program, calls)):
            wrong = _wrong(program, module, fast, given)
            if wrong and _is_noise(program, module, given):
                verdict.noise[backend] = verdict.noise.get(backend, 0) + 1
            elif wrong:
                verdict.wrong[backend] = f"call {number}: {wrong}"
                return
            verdict.calls[backend] = number + 1
    finally:
        fast.close()


def _far_off(fast: Any, module: Any, prepared: "Prepared") -> str:
    """Say what keeps a study from promoting this: its answers to the held-out inputs miss the default limits."""
    import torch

    from autotune import accuracy
    from autotune.model.capture import caller
    from autotune.model.form import flatten
    from autotune.records.objective import Objective

    names = tuple(prepared.example)
    call = caller(module, names)
    with torch.no_grad():
        sets = [{name: one.clone() for name, one in given.items()} for given in prepared.held_out]
        references = [tuple(one.clone() for one in flatten(call(given))[0]) for given in sets]
    answers = [fast.flat(given) for given in prepared.held_out]
    return accuracy.far_off(answers, references, prepared.captured.form.names, Objective(), 1.0)


def _built(backend: str, prepared: "Prepared", folder: Path, device: "Device") -> Any:
    """Build the first default in fp32, and load it as a deployment does."""
    from autotune import registry
    from autotune.deploy.model import OptimizedModel
    from autotune.model.source import CapturedModel
    from autotune.runtime import artifact

    captured = prepared.captured
    maker = registry.backend(backend)
    defaults = maker.space(device, captured.workload, has_factory=False).defaults
    configuration = next(one for one in defaults if one.get("precision", "fp32") == "fp32")
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


def _inputs(program: Program, calls: int) -> Iterator[dict[str, Any]]:
    """Draw fresh inputs, half of them as the study perturbs its example."""
    from autotune.model.inputs import perturbed

    yield from perturbed(program.drawn.example(1), calls // 2, 1234)
    yield from (program.drawn.example(1000 + number) for number in range(calls - calls // 2))


def _wrong(program: Program, module: Any, fast: Any, given: dict[str, Any]) -> str:
    expected = _called(program, module, given)
    try:
        found = fast(**{name: tensor.clone() for name, tensor in given.items()})
    except AutotuneError as error:
        return str(error).splitlines()[0]
    wrong = list(differences(expected, found))
    if wrong and all("whole numbers" in one for one in wrong) and _is_tie(program, module, given, expected):
        return ""
    return "; ".join(wrong[:3])


def _called(program: Program, module: Any, given: dict[str, Any]) -> Any:
    import torch

    own = {name: tensor.clone() for name, tensor in given.items()}
    first = [own.pop(each.name) for each in program.drawn.inputs[: program.positional_only]]
    with torch.no_grad():
        return module(*first, **own)


def _is_tie(program: Program, module: Any, given: dict[str, Any], expected: Any) -> bool:
    moved = (
        {name: one * (1 + by) if one.is_floating_point() else one for name, one in given.items()}
        for by in (NUDGE, -NUDGE)
    )
    return any(
        "whole numbers" in one for each in moved for one in differences(expected, _called(program, module, each))
    )


def _is_noise(program: Program, module: Any, given: dict[str, Any]) -> bool:
    """Whether the model itself answers otherwise in double precision: single precision then has nothing to compare."""
    import copy

    from autotune.model.form import flatten

    exact = copy.deepcopy(module).double()
    wide = {name: one.double() if one.is_floating_point() else one for name, one in given.items()}
    answers = (flatten(_called(program, which, one))[0] for which, one in ((module, given), (exact, wide)))
    pairs = [(one, other) for one, other in zip(*answers, strict=True) if one.is_floating_point()]
    return any(list(differences(one.double(), other.double())) for one, other in pairs)
