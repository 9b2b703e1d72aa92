"""The steps of a study on a simulated host, charged with recorded seconds: ReplayExecutor."""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from autotune.execute.answers import BuildAnswer, MeasureAnswer, ProblemCount, ProblemsAnswer
from autotune.execute.executor import BUILD_TIMEOUT_S, Built, EarlyLoad, Executor, Kernels
from autotune.execute.server import WorkerServer
from autotune.execute.step_result import StepResult
from autotune.execute.timing import TimeSplit
from autotune.programs.study_replay.charges import StudyCharges
from autotune.programs.study_replay.machine import Machine, MachineStep
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.records.objective import Objective
from autotune.records.trial import Failure, Measurement

CONFIGURATION = "configuration.json"


class NoServer:
    """Stands for the worker server: no step of a replay needs a process."""

    closed = False

    def preload(self, modules: Sequence[str]) -> None:
        """Import nothing."""

    def stop(self) -> None:
        """End nothing."""


class ReplayLoad(EarlyLoad):
    """A candidate that loads on the simulated host, until it is its turn."""

    def __init__(
        self, step: MachineStep, turn: Callable[[float | None], StepResult[MeasureAnswer]], machine: Machine
    ) -> None:
        self._step, self._take_turn, self._machine = step, turn, machine

    def measure(self, abandon_ms: float | None) -> StepResult[MeasureAnswer]:
        """Wait for the end of the load, then check and time the candidate."""
        self._machine.wait(lambda: self._step.done)
        return self._take_turn(abandon_ms)


class ReplayExecutor(Executor):
    """Builds and measures nothing: each step takes its recorded seconds on the machine.

    ``weights`` has the number of occurrences in a call of problems in fp16, which a recording lacks; it is 1 for
    others. The same problems in other precisions occur as often.
    """

    def __init__(
        self, machine: Machine, charges: StudyCharges, folder: Path, device: Device,
        weights: Mapping[GemmProblem, float],
    ) -> None:  # fmt: skip
        super().__init__(cast(WorkerServer, NoServer()), folder, device, TimeSplit())
        self._machine, self._charges, self._weights = machine, charges, weights
        self.built_s: dict[Configuration, float] = {}

    def reference(self, objective: Objective, building: Iterable[str] = ()) -> None:
        """Charge the reference."""
        self.split.add(self._machine.run(self._charges.reference()).spans)

    def build(
        self,
        configurations: Sequence[Configuration],
        workers: int,
        timeout_s: float | None = None,
        *,
        kernels: Kernels = lambda _: None,
        then: Callable[[Configuration, StepResult[BuildAnswer], Path], None] = lambda *_: None,
    ) -> list[Built]:
        """Charge builds, all of them at once; one that takes longer than its limit fails, at its own end."""
        limit_s = min(BUILD_TIMEOUT_S, timeout_s or BUILD_TIMEOUT_S)
        results: dict[Configuration, Built] = {}

        def begin(configuration: Configuration) -> None:
            target = Path(tempfile.mkdtemp(dir=self.folder, prefix="artifact-"))
            (target / CONFIGURATION).write_text(json.dumps(configuration.as_dict(), sort_keys=True))
            handed = kernels(configuration)

            def end() -> None:
                self.split.add(step.spans)
                seconds = sum(end_s - begin_s for name, begin_s, end_s in step.spans if name == "build")
                self.built_s[configuration] = seconds
                # The recorded seconds, however long it took here: the sampler proposes the same under every schedule.
                build_s = self._charges.recorded_build_s(configuration)
                answer = BuildAnswer(build_s=build_s, kernels="" if handed is None else handed.digest)
                failure = None
                if seconds > limit_s:
                    failure = Failure(stage="build", kind="timeout", detail="", figure=limit_s)
                result = StepResult(
                    value=None if failure else answer,
                    failure=failure,
                    spans=tuple(step.spans),
                    seconds=self._machine() - step.begin_s,
                )
                then(configuration, result, target)
                results[configuration] = result, target

            step = self._machine.add(self._charges.build(configuration, first=not self.built_s), end)

        for configuration in configurations:
            begin(configuration)
        self._machine.wait(lambda: len(results) == len(configurations))
        return [results[configuration] for configuration in configurations]

    def measure(
        self,
        artifact: Path,
        objective: Objective,
        seed: int,
        *,
        abandon_ms: float | None = None,
        check_only: bool = False,
    ) -> StepResult[MeasureAnswer]:
        """Charge a turn on the device, with the load."""
        return self._turn(artifact, abandon_ms, loaded=False)

    def load_early(self, artifact: Path, objective: Objective, seed: int) -> EarlyLoad:
        """Charge a load beside other steps."""
        stages = self._charges.early_load(_configuration(artifact))
        step = self._machine.add(stages, lambda: self.split.add(step.spans))
        return ReplayLoad(step, lambda abandon_ms: self._turn(artifact, abandon_ms, loaded=True), self._machine)

    def problems(self, configuration: Configuration) -> StepResult[ProblemsAnswer]:
        """Answer with the recorded problems of the configuration's graph; the time is charged elsewhere."""
        counts = [
            ProblemCount(problem=problem, count=self._weights.get(replace(problem, dtype="fp16", output="fp16"), 1.0))
            for problem in self._charges.recording.problems_of(configuration)
        ]
        return StepResult(value=ProblemsAnswer(problems=tuple(counts)), failure=None, spans=(), seconds=0.0)

    def _turn(self, artifact: Path, abandon_ms: float | None, *, loaded: bool) -> StepResult[MeasureAnswer]:
        configuration = _configuration(artifact)
        charge = self._charges.of(configuration)
        step = self._machine.run(self._charges.turn(configuration, loaded=loaded))
        self.split.add(step.spans)
        if charge.failure is not None:
            return StepResult(value=None, failure=charge.failure, spans=tuple(step.spans), seconds=0.0)
        answer = MeasureAnswer(
            signal_error=charge.signal_error, measurement=Measurement(samples_ms=((charge.latency_ms,) * 3,)),
            pruned=abandon_ms is not None and charge.latency_ms > abandon_ms,
        )  # fmt: skip
        return StepResult(value=answer, failure=None, spans=tuple(step.spans), seconds=0.0)


def _configuration(artifact: Path) -> Configuration:
    """Return the configuration of a stored build."""
    return Configuration.from_dict(json.loads((artifact / CONFIGURATION).read_text()))
