"""A plan in use: a callable that answers like its model: OptimizedModel, open_plan, open_folder."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.errors import ArtifactError, AutotuneError
from autotune.model.form import Form
from autotune.model.schema import InputSchema
from autotune.records.objective import Objective
from autotune.runtime.artifact import load_runner, read_record
from autotune.runtime.host_memory import return_memory

if TYPE_CHECKING:
    import torch

    from autotune.backend import Runner
    from autotune.database.store import Store
    from autotune.deploy.prepared import Prepared
    from autotune.records.plan import Plan
    from autotune.runtime.artifact import ArtifactRecord


class OptimizedModel:
    """Takes the arguments of the model's forward and returns an answer of the same form; safe from several threads.

    It accepts the shapes and dtypes of the plan, on the plan's device or on another one, from which they are copied;
    answers lie on the plan's device. ``close`` releases its memory. ``miss`` is ``None``, unless this is the caller's
    own model in place of a plan (see :func:`autotune.load`): then it is the error that says why.
    ``seconds`` has the time of each step in finding and opening it: ``capture``, ``weights`` (their fingerprint),
    ``look_up``, ``rebuild`` (if it was needed), ``open`` (verifying and loading the artifact) and ``verify`` (two calls
    compared with the model). ``signature`` says whether a bundle is signed: ``none``, ``not checked`` or ``verified``.
    """

    miss: "AutotuneError | None" = None

    def __init__(self, plan: "Plan", runner: "Runner", inputs: InputSchema, form: Form) -> None:
        self._plan = plan
        self.seconds: Mapping[str, float] = {}
        self.signature = "none"
        self._runner: Callable[..., Sequence[torch.Tensor]] = runner
        self._release = runner.close
        self._inputs = inputs
        self._names = inputs.names
        # The parameters that come first, as long as they are the inputs themselves: most calls need no more.
        positions = inputs.positions or inputs.names
        self._in_order = positions[: len(inputs.names)] == inputs.names and not inputs.by_name
        self._form = form

    @property
    def plan(self) -> "Plan":
        """The plan in use."""
        return self._plan

    # The answer has the form of the model's own, which no type can say.
    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Answer one call like the model; raises ModelError if the arguments do not fit."""
        return self._form.unflatten(self._runner(*self._flattened(args, kwargs)))

    def flat(self, inputs: "Mapping[str, torch.Tensor]") -> "tuple[torch.Tensor, ...]":
        """Return the flat tensors of the answer to one call by named inputs."""
        return tuple(self._runner(*self._flattened((), inputs)))

    def _flattened(self, args: "tuple[object, ...]", kwargs: "Mapping[str, object]") -> "Sequence[Any]":
        """Order the arguments of a call; those that are exactly the inputs of the plan need no look at the schema."""
        if not kwargs:
            if self._in_order and len(args) == len(self._names) and not any(value is None for value in args):
                return args
        elif not args and len(kwargs) == len(self._names):
            try:
                given = [kwargs[name] for name in self._names]
            except KeyError:
                return self._inputs.flatten(args, kwargs)
            if not any(value is None for value in given):
                return given
        return self._inputs.flatten(args, kwargs)

    def close(self) -> None:
        """Release the memory of the plan's runner, also to the system; a call afterwards raises ArtifactError.

        Calls that are under way end as usual, so wait for them first: their memory is released when they end.
        """
        release, self._runner, self._release = self._release, closed, _released
        release()
        del release
        return_memory()

    def __repr__(self) -> str:
        plan = self.plan
        return f"<OptimizedModel {plan.name}: {plan.configuration}, {plan.latency_ms:.3f} ms, {plan.speedup:.2f}x>"


def closed(*_: object, **__: object) -> "Sequence[torch.Tensor]":
    """Raise the error of a call after ``close``."""
    raise ArtifactError(
        "a closed model was called", expected="a call before close()", run="autotune.load, which opens it again"
    )


def _released() -> None:
    """Release nothing: it has been done."""


def open_plan(
    plan: "Plan", store: "Store", form: Form | None = None, inputs: InputSchema | None = None
) -> OptimizedModel:
    """Load a plan's artifact, verified against its digest; it answers in ``form``, by default that of its artifact.

    ``inputs`` describes the arguments of a call, by default as its artifact does. The random state and the
    switches of the process stay as they were. Raises ArtifactError if the artifact is missing or damaged, or
    belongs to another plan: to another model, other weights, another configuration or other kernels.
    """
    if plan.artifact is None:
        raise ArtifactError(f"the plan of {plan.name} has no artifact", run="autotune tune, to build it again")
    with store.artifacts.verified(plan.artifact) as folder:
        return open_folder(plan, folder, form, inputs)


def open_folder(
    plan: "Plan", folder: Path, form: Form | None = None, inputs: InputSchema | None = None
) -> OptimizedModel:
    """Load the artifact of a plan from a folder that was verified, see :func:`open_plan`; it may be deleted then."""
    from autotune.model.untouched import process_state

    record = read_record(folder)
    own = (plan.configuration, plan.structure, plan.weights, plan.kernels)
    if (record.configuration, record.structure, record.weights, record.kernels) != own:
        raise ArtifactError(
            f"the plan of {plan.name} names an artifact that is not its own",
            found=f"one of {record.configuration}, model {record.structure[:12]}, weights {record.weights[:12]}",
            expected=f"{plan.configuration}, model {plan.structure[:12]}, weights {plan.weights[:12]}",
            run="autotune tune with its study file, which builds it again",
        )
    with process_state():
        runner = load_runner(folder, plan.device)
    return OptimizedModel(plan, runner, inputs or _arguments(record), form or Form(node=dict(record.output_schema)))


def _arguments(record: "ArtifactRecord") -> InputSchema:
    """Return the arguments of a call; an artifact of an earlier version has only the names of its inputs."""
    if record.signature is None:
        return InputSchema(names=tuple(spec.name for spec in record.inputs), by_name=True)
    return InputSchema.from_dict(record.signature)


MODULE_ERROR = 1e-3
"""The largest signal error of a plan that runs the factory's own module in fp32.

Such a plan computes the same as the model. A difference beyond rounding means that the factory's file, or state outside
the state_dict, is not that of the model.
"""

SLACK = 3.0
"""The factor by which one input may exceed the plan's limit, which is for the average over eight."""


def verified(fast: OptimizedModel, prepared: "Prepared") -> None:
    """Compare a plan with the module on its example and one more set of inputs; raises ArtifactError if they differ.

    Floating outputs are compared as the gate compares them, and relative to their size if the model's own answers do
    not vary between the two sets; of integer outputs at least half must agree.
    """
    from autotune import accuracy

    sets = (prepared.example, prepared.held_out[0])
    answers = [tuple(tensor.cpu() for tensor in fast.flat(inputs)) for inputs in sets]
    names, objective, slack = prepared.captured.form.names, fast.plan.objective, SLACK
    if fast.plan.configuration.get("form", "") == "module" and fast.plan.configuration["precision"] == "fp32":
        objective, slack = Objective(signal_error=MODULE_ERROR), 1.0
    if wrong := accuracy.far_off(answers, prepared.captured.answers, names, objective, slack):
        raise ArtifactError(
            f"the stored plan of {fast.plan.name} does not answer like the model that it was loaded for",
            found=wrong,
            expected=f"the model's own answers within {SLACK:g} times the plan's limits on two sets of inputs",
            run="autotune.tune(model, inputs) with another database; autotune.load(..., verify=False) leaves this out",
        )
