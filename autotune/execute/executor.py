"""One captured model on one device: prepare it, build configurations of it, and measure what was built."""

import contextlib
import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

from autotune import registry
from autotune.errors import (
    AutotuneError,
    ModelError,
    OutOfMemoryError,
    ReferenceRefusedError,
    StudyInterruptedError,
    WorkError,
)
from autotune.execute.answers import (
    BuildAnswer,
    Done,
    FeaturesAnswer,
    FootprintAnswer,
    MeasureAnswer,
    MetricCode,
    MetricsAnswer,
    PrepareAnswer,
    ProblemsAnswer,
)
from autotune.execute.channel import ChannelClosed
from autotune.execute.device_memory import DeviceMemory
from autotune.execute.input_sets import HELD_OUT, TIMING
from autotune.execute.requests import (
    BuildRequest,
    DeployedRequest,
    FeaturesRequest,
    FootprintRequest,
    MeasureOrder,
    MeasureRequest,
    MetricsRequest,
    PrepareRequest,
    ProblemsRequest,
    ReferenceRequest,
)
from autotune.execute.server import WorkerServer
from autotune.execute.session import POLL_S, Session
from autotune.execute.step_record import StepRecord
from autotune.execute.step_result import StepResult
from autotune.execute.timing import TimeSplit
from autotune.kernel import KnownKernels, wants_kernels
from autotune.measure.foreign import foreign_processes
from autotune.model.inputs import InputSpec
from autotune.model.source import EXAMPLE
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.objective import Objective
from autotune.records.trial import Failure, Stage
from autotune.records.workload import Workload

PRELOAD = ["torch", "numpy", "safetensors.torch", "torch._dynamo"]
"""Most steps export or read a graph; the modules for that take a second to import, and are loaded once for all."""
PREPARE_TIMEOUT_S, BUILD_TIMEOUT_S, MEASURE_TIMEOUT_S = 900.0, 900.0, 180.0
SCREENING_LIMIT_S = 2.0
CHUNK_BYTES = 1 << 20

Kernels = Callable[[Configuration], KnownKernels | None]
"""Which tuned kernels the build of a configuration is handed; ``None`` if it takes torch's."""

Answer = TypeVar("Answer", bound=StepRecord)
Built = tuple[StepResult[BuildAnswer], Path]
"""The result of a build, and the folder that it wrote into."""


class EarlyLoad:
    """A candidate that loads while others are built, and is checked and timed when it is its turn."""

    def __init__(
        self, run: Callable[[Callable[[Session], None]], StepResult[MeasureAnswer]], stopped: Callable[[], bool]
    ) -> None:
        self._stopped = stopped
        self._turn, self._abandon_ms = threading.Event(), cast("float | None", None)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="autotune-early")
        self._result = self._pool.submit(run, self._wait_for_turn)

    def measure(self, abandon_ms: float | None) -> StepResult[MeasureAnswer]:
        """Let it be checked and timed now, alone on the device, and return its result."""
        self._abandon_ms = abandon_ms
        self._turn.set()
        with self._pool:
            return self._result.result()

    def _wait_for_turn(self, session: Session) -> None:
        while not self._turn.wait(POLL_S):
            if self._stopped():
                raise ChannelClosed("the study was stopped")
        session.send(MeasureOrder(abandon_ms=self._abandon_ms).as_dict())


class Executor:
    """Runs steps for one study and adds up their times by stage.

    ``folder`` holds the captured model and every artifact until the store has it; it is the caller's to delete.
    """

    def __init__(self, server: WorkerServer, folder: Path, device: Device, split: TimeSplit) -> None:
        self.server, self.folder, self.device, self.split = server, folder, device, split
        self.model = folder / "model"
        self._measure_timeout_s = MEASURE_TIMEOUT_S
        self._imported: list[str] = []
        self._device_memory = DeviceMemory(device)
        server.preload(PRELOAD)

    def prepare(self, name: str, batch: int, factory: str, inputs: Sequence[InputSpec], seed: int) -> PrepareAnswer:
        """Make, capture and write the model; raises what the step raised, or OutOfMemoryError."""
        request = PrepareRequest(
            folder=self.model, name=name, batch=batch, factory=factory, inputs=tuple(inputs), seed=seed
        )
        result = self._step("prepare", request, PrepareAnswer, PREPARE_TIMEOUT_S)
        answer = self._must(result, f"{name} could not be captured", ModelError)
        self._imported = list(answer.imported)
        return answer

    def metrics(self, functions: Sequence[str]) -> tuple[MetricCode, ...]:
        """Return what the code of each metric depends on, in their order; raises what the step raised."""
        request = MetricsRequest(folder=self.model, metrics=tuple(functions))
        result = self._step("metrics", request, MetricsAnswer, PREPARE_TIMEOUT_S)
        return self._must(result, "the metrics of the study could not be imported").metrics

    def reference(self, objective: Objective, building: Iterable[str] = ()) -> None:
        """Compute the answers that candidates are judged by; meanwhile get ready to build by the named backends.

        Raises ReferenceRefusedError if they cannot judge, RequestError if a metric of the objective refuses them,
        OutOfMemoryError if they take more memory than there is.
        """
        request = ReferenceRequest(folder=self.model, device=self.device, objective=objective)
        preload = [*registry.build_modules(building), *self._imported]
        result = self._step(
            "reference", request, Done, PREPARE_TIMEOUT_S, meanwhile=lambda: self.server.preload(preload)
        )
        self._must(result, "the reference, the model's own graph in fp32, could not be computed", ReferenceRefusedError)
        checking_s = sum(end - begin for stage, begin, end in result.spans if stage == "check")
        self._measure_timeout_s = MEASURE_TIMEOUT_S + 20 * checking_s

    def build(
        self,
        configurations: Sequence[Configuration],
        workers: int,
        timeout_s: float | None = None,
        *,
        kernels: Kernels = lambda _: None,
        then: Callable[[Configuration, StepResult[BuildAnswer], Path], None] = lambda *_: None,
    ) -> list[Built]:
        """Build configurations, ``workers`` at a time, each in a process and a folder of its own.

        ``kernels`` is asked for the kernels that each build is handed; ``ValueError`` if these are none and the
        configuration wants tuned kernels. ``then`` is called for each configuration as soon as it is built, from the
        thread that waited for it.
        """
        limit_s = min(BUILD_TIMEOUT_S, timeout_s or BUILD_TIMEOUT_S)

        def build_one(configuration: Configuration) -> Built:
            handed = kernels(configuration)
            if handed is None and wants_kernels(configuration):
                raise ValueError(f"a build of {configuration} was handed no kernels")
            target = Path(tempfile.mkdtemp(dir=self.folder, prefix="artifact-"))
            with self._handed(handed, target) as file:
                request = BuildRequest(
                    folder=self.model, target=target, configuration=configuration, device=self.device, kernels=file
                )
                result = self._step("build", request, BuildAnswer, limit_s)
            then(configuration, result, target)
            return result, target

        if workers == 1:
            return [build_one(configuration) for configuration in configurations]
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(build_one, configurations))

    @staticmethod
    @contextlib.contextmanager
    def _handed(kernels: KnownKernels | None, target: Path) -> Iterator[Path | None]:
        """Write the kernels of one build into a file of its own, because messages are limited; ``None`` if none."""
        if kernels is None:
            yield None
            return
        file = target.with_suffix(".kernels.json")
        try:
            file.write_text(json.dumps(kernels.as_dict()))
            yield file
        finally:
            file.unlink(missing_ok=True)

    def measure(
        self,
        artifact: Path,
        objective: Objective,
        seed: int,
        *,
        abandon_ms: float | None = None,
        check_only: bool = False,
    ) -> StepResult[MeasureAnswer]:
        """Check and time an artifact in a process of its own; a gate that refuses it is a failure of the result."""
        request = MeasureRequest(
            folder=self.model, artifact=artifact, device=self.device, objective=objective, limit_s=SCREENING_LIMIT_S,
            seed=seed, check_only=check_only, abandon_ms=abandon_ms,
        )  # fmt: skip
        return self._measured(self._step("measure", request, MeasureAnswer, self._measure_timeout_s))

    def load_early(self, artifact: Path, objective: Objective, seed: int) -> "EarlyLoad":
        """Begin to load an artifact beside other work; it is checked and timed when it is its turn."""
        request = MeasureRequest(
            folder=self.model, artifact=artifact, device=self.device, objective=objective, limit_s=SCREENING_LIMIT_S,
            seed=seed, early=True,
        )  # fmt: skip
        return EarlyLoad(
            lambda on_loaded: self._measured(
                self._step("measure", request, MeasureAnswer, self._measure_timeout_s, on_loaded=on_loaded)
            ),
            lambda: self.server.closed,
        )

    def _measured(self, result: StepResult[MeasureAnswer]) -> StepResult[MeasureAnswer]:
        """Return the result with the gate's refusal as its failure; show the user other processes on the device."""
        answer = result.value
        if answer is None:
            return result
        conditions = answer.measurement.conditions if answer.measurement is not None else {}
        for pid, text in foreign_processes(conditions, self.device).items():
            self.server.notices.say(text, of=pid)
        return result if answer.failure is None else replace(result, failure=answer.failure)

    def footprint(self, artifact: Path, *, alone: bool = True) -> StepResult[FootprintAnswer]:
        """Read the peak of memory that an artifact takes in a process of its own, which loads alone or beside others.

        A peak that is not available is a failure of the result.
        """
        request = FootprintRequest(folder=self.model, artifact=artifact, device=self.device, alone=alone)
        result = self._step("footprint", request, FootprintAnswer, self._measure_timeout_s)
        if result.value is None or result.value.memory.available:
            return result
        detail = f"the peak of memory is not available: {result.value.memory.reason or 'no reading'}"
        return replace(result, failure=Failure(stage="measure", kind="error", detail=detail))

    def deployed(self, artifact: Path) -> StepResult[Done]:
        """Call an artifact once in a process of its own as its user will, and check the form of its answer."""
        request = DeployedRequest(folder=self.model, artifact=artifact, device=self.device)
        return self._step("deployed", request, Done, self._measure_timeout_s)

    def features(self, backends: Sequence[str]) -> StepResult[FeaturesAnswer]:
        """Count what each backend finds in the prepared model's graph, as ``backend.feature``."""
        request = FeaturesRequest(folder=self.model, device=self.device, backends=tuple(backends))
        return self._step("features", request, FeaturesAnswer, PREPARE_TIMEOUT_S)

    def problems(self, configuration: Configuration) -> StepResult[ProblemsAnswer]:
        """Count the kernel problems of the graph that a configuration builds."""
        request = ProblemsRequest(folder=self.model, device=self.device, configuration=configuration)
        return self._step("problems", request, ProblemsAnswer, PREPARE_TIMEOUT_S)

    def workload(self) -> Workload:
        """Return the workload of the prepared model."""
        return Workload.from_dict(json.loads((self.model / "model.json").read_text())["workload"])

    def form(self) -> str:
        """Return the digest of the form of the prepared model's answer."""
        return str(json.loads((self.model / "model.json").read_text())["form"])

    def inputs(self) -> str:
        """Return the digest of every set of inputs that the prepared model is captured, timed and judged on."""
        content = hashlib.sha256()
        for name in (EXAMPLE, TIMING, HELD_OUT):
            with (self.model / name).open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    content.update(chunk)
        return content.hexdigest()

    def discard(self, folder: Path) -> None:
        """Delete the folder of a build."""
        shutil.rmtree(folder, ignore_errors=True)

    def watched(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Read the device's memory before and after something that runs on it, and warn if it left some taken."""
        return self._device_memory.around(name)

    def _step(
        self,
        name: str,
        request: StepRecord,
        answer: type[Answer],
        timeout_s: float,
        *,
        meanwhile: Callable[[], None] | None = None,
        on_loaded: Callable[[Session], None] | None = None,
    ) -> StepResult[Answer]:
        stage: Stage = "load" if name in ("measure", "footprint", "deployed") else "build"
        with self.watched(name):
            result = self.server.run(
                name, request.as_dict(), timeout_s=timeout_s, stage=stage, meanwhile=meanwhile, on_loaded=on_loaded
            )
        self.split.add(result.spans)
        return result.typed(answer)

    def _must(self, result: StepResult[Answer], what: str, kind: type[AutotuneError] = WorkError) -> Answer:
        """Return the step's answer; raises OutOfMemoryError if memory was out, else what it raised, else ``kind``.

        A step that was stopped raises StudyInterruptedError: the way it ended says nothing about it.
        """
        if result.value is None and self.server.closed:
            raise StudyInterruptedError(
                "the study was stopped; finished trials are kept", run="the same command, which continues it"
            )
        failure = result.failure
        if failure is not None and failure.kind == "out_of_memory":
            raise OutOfMemoryError(what, found=str(failure), expected="a model and a batch that fit into memory")
        if result.raised is not None:
            raise result.raised
        if failure is not None:
            tail = failure.log_tail.strip().splitlines()[-8:]
            raise kind(what, found="\n    ".join([str(failure), *tail]))
        return result.answer
