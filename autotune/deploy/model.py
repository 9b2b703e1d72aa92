"""A plan in use: a callable that answers like the model it was made for."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autotune.model.schema import InputSchema, unflatten_output
from autotune.runtime.artifact import load_runner, read_record

if TYPE_CHECKING:
    from autotune.backend import Runner
    from autotune.database.store import Store
    from autotune.plan import Plan


class OptimizedModel:
    """Takes the arguments of the model's forward and returns an answer of the same form; safe from several threads.

    The shapes and dtypes are those the plan was made for. ``plan`` is the plan in use; ``close`` gives its memory back.
    """

    def __init__(self, plan: "Plan", runner: "Runner", names: tuple[str, ...], output: Mapping[str, Any]) -> None:
        self.plan = plan
        self._runner = runner
        self._inputs = InputSchema(names=names)
        self._output = dict(output)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer one call like the model; raises ModelError where the arguments do not fit."""
        return unflatten_output(self._output, self._runner(*self._inputs.flatten(args, kwargs)))

    def close(self) -> None:
        """Give back what the plan's runner holds; the model cannot be called afterwards."""
        self._runner.close()

    def __repr__(self) -> str:
        plan = self.plan
        return f"<OptimizedModel {plan.name}: {plan.configuration}, {plan.latency_ms:.3f} ms, {plan.speedup:.2f}x>"


def open_plan(plan: "Plan", store: "Store") -> OptimizedModel:
    """Load a plan's artifact, verified against its digest; raises ArtifactError where it is missing or damaged.

    Also where it is that of another plan: of another model, other weights or another configuration.
    """
    from autotune.errors import ArtifactError

    if plan.artifact is None:
        raise ArtifactError(f"the plan of {plan.name} has no artifact", run="autotune tune, to build it again")
    with store.artifacts.taken(plan.artifact) as folder:
        record = read_record(folder)
        own = (plan.configuration, plan.structure, plan.weights)
        if (record.configuration, record.structure, record.weights) != own:
            raise ArtifactError(
                f"the plan of {plan.name} names an artifact that is not its own",
                found=f"one of {record.configuration}, model {record.structure[:12]}, weights {record.weights[:12]}",
                expected=f"{plan.configuration}, model {plan.structure[:12]}, weights {plan.weights[:12]}",
                run="autotune tune with its study file, which builds it again",
            )
        runner = load_runner(folder, plan.device)
    return OptimizedModel(plan, runner, tuple(spec.name for spec in record.inputs), record.output_schema)
