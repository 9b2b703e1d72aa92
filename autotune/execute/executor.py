"""One captured model on one device: prepare it, build configurations of it, and measure what was built."""

import contextlib
import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from autotune import registry
from autotune.errors import (
    AutotuneError,
    ModelError,
    OutOfMemoryError,
    ReferenceRefusedError,
    StudyInterruptedError,
    WorkError,
)
from autotune.execute.channel import ChannelClosed
from autotune.execute.device_memory import DeviceMemory
from autotune.execute.input_sets import HELD_OUT, TIMING
from autotune.execute.server import POLL_S, Session, StepResult, WorkerServer
from autotune.execute.timing import TimeSplit
from autotune.kernel import KnownKernels, wants_kernels
from autotune.measure.foreign import foreign_processes
from autotune.model.source import EXAMPLE
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.objective import Objective
from autotune.records.trial import Failure, Stage
from autotune.records.workload import Workload

PRELOAD = ["torch", "numpy", "safetensors.torch"]
PREPARE_TIMEOUT_S, BUILD_TIMEOUT_S, MEASURE_TIMEOUT_S = 900.0, 900.0, 180.0
SCREENING_LIMIT_S = 2.0
CHUNK_BYTES = 1 << 20

Kernels = Callable[[Configuration], KnownKernels | None]
"""Which tuned kernels the build of a configuration is handed; ``None`` if it takes torch's."""


class EarlyLoad:
    """A candidate that loads while others are built, and is checked and timed when it is its turn."""

    def __init__(self, run: Callable[[Callable[[Session], None]], StepResult], stopped: Callable[[], bool]) -> None:
        self._stopped = stopped
        self._turn, self._abandon_ms = threading.Event(), cast("float | None", None)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="autotune-early")
        self._result = self._pool.submit(run, self._wait_for_turn)

    def measure(self, abandon_ms: float | None) -> StepResult:
        """Let it be checked and timed now, alone on the device, and return what became of it."""
        self._abandon_ms = abandon_ms
        self._turn.set()
        with self._pool:
            return self._result.result()

    def _wait_for_turn(self, session: Session) -> None:
        while not self._turn.wait(POLL_S):
            if self._stopped():
                raise ChannelClosed("the study was stopped")
        session.send({"abandon_ms": self._abandon_ms})


class Executor:
    """Runs steps for one study and adds up where their time went.

    ``folder`` holds the captured model and every artifact until the store has it; it is the caller's to delete.
    """

    def __init__(self, server: WorkerServer, folder: Path, device: Device, split: TimeSplit) -> None:
        self.server, self.folder, self.device, self.split = server, folder, device, split
        self.model = folder / "model"
        self._measure_timeout_s = MEASURE_TIMEOUT_S
        self._imported: list[str] = []
        self._device_memory = DeviceMemory(device)
        server.preload(PRELOAD)

    def prepare(self, name: str, batch: int, factory: str, inputs: Sequence[Any], seed: int) -> dict[str, Any]:
        """Make, capture and write the model; raises what the step raised, or OutOfMemoryError."""
        request = {
            "folder": str(self.model),
            "name": name,
            "batch": batch,
            "factory": factory,
            "inputs": [asdict(spec) for spec in inputs],
            "seed": seed,
        }
        answer = self._must(
            self._step("prepare", request, PREPARE_TIMEOUT_S), f"{name} could not be captured", ModelError
        )
        self._imported = answer["imported"]
        return answer

    def metrics(self, functions: Sequence[str]) -> list[dict[str, Any]]:
        """What the code of each metric depends on, as the step ``metrics`` says; raises what the step raised."""
        request = {"folder": str(self.model), "metrics": list(functions)}
        found: list[dict[str, Any]] = self._must(
            self._step("metrics", request, PREPARE_TIMEOUT_S), "the metrics of the study could not be imported"
        )["metrics"]
        return found

    def reference(self, objective: Objective) -> None:
        """Compute the answers that candidates are judged by.

        Raises ReferenceRefusedError if they cannot judge, RequestError if a metric of the objective refuses them,
        OutOfMemoryError if they take more memory than there is.
        """
        request = {"folder": str(self.model), "device": self.device.as_dict(), "objective": objective.as_dict()}
        preload = [*registry.build_modules(), *self._imported]
        result = self._step("reference", request, PREPARE_TIMEOUT_S, meanwhile=lambda: self.server.preload(preload))
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
        then: Callable[[Configuration, StepResult, Path], None] = lambda *_: None,
    ) -> list[tuple[StepResult, Path]]:
        """Build configurations, so many at a time, each in a process and a folder of its own.

        ``kernels`` is asked for each what its build is handed; ``ValueError`` if that is nothing and the configuration
        wants tuned kernels. ``then`` is called for each as soon as it is built, from the thread that waited for it.
        """
        limit_s = min(BUILD_TIMEOUT_S, timeout_s or BUILD_TIMEOUT_S)

        def one(configuration: Configuration) -> tuple[StepResult, Path]:
            known = kernels(configuration)
            if known is None and wants_kernels(configuration):
                raise ValueError(f"a build of {configuration} was handed no kernels")
            target = Path(tempfile.mkdtemp(dir=self.folder, prefix="artifact-"))
            request: dict[str, Any] = {
                "folder": str(self.model),
                "target": str(target),
                "configuration": configuration.as_dict(),
                "device": self.device.as_dict(),
                "kernels": None,
            }
            with contextlib.ExitStack() as until_built:
                if known is not None:
                    handed = target.with_suffix(".kernels.json")  # a file of this build, for a message is limited
                    until_built.callback(handed.unlink, missing_ok=True)
                    handed.write_text(json.dumps(known.as_dict()))
                    request["kernels"] = str(handed)
                result = self._step("build", request, limit_s)
            then(configuration, result, target)
            return result, target

        if workers == 1:
            return [one(configuration) for configuration in configurations]
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(one, configurations))

    def measure(
        self,
        artifact: Path,
        objective: Objective,
        seed: int,
        *,
        abandon_ms: float | None = None,
        check_only: bool = False,
    ) -> StepResult:
        """Check and time an artifact in a process of its own; a gate that refuses it is a failure of the result."""
        request = self._measure_request(artifact, objective, seed, check_only=check_only)
        return self._measured(self._step("measure", {**request, "abandon_ms": abandon_ms}, self._measure_timeout_s))

    def footprint(self, artifact: Path, *, alone: bool = True) -> StepResult:
        """The peak of memory that an artifact takes in a process of its own, which may load beside others or alone."""
        request = {
            "folder": str(self.model), "artifact": str(artifact), "device": self.device.as_dict(), "alone": alone
        }  # fmt: skip
        result = self._step("footprint", request, self._measure_timeout_s)
        memory = (result.value or {}).get("memory", {})
        if result.failure is not None or memory.get("available"):
            return result
        detail = f"the peak of memory is not available: {memory.get('reason', 'no reading')}"
        return replace(result, failure=Failure(stage="measure", kind="error", detail=detail))

    def load_early(self, artifact: Path, objective: Objective, seed: int) -> "EarlyLoad":
        """Begin to load an artifact beside whatever else goes on; it is checked and timed when it is its turn."""
        request = {**self._measure_request(artifact, objective, seed), "early": True}
        return EarlyLoad(
            lambda on_loaded: self._measured(
                self._step("measure", request, self._measure_timeout_s, on_loaded=on_loaded)
            ),
            lambda: self.server.closed,
        )

    def _measure_request(
        self, artifact: Path, objective: Objective, seed: int, *, check_only: bool = False
    ) -> dict[str, Any]:
        return {
            "folder": str(self.model),
            "artifact": str(artifact),
            "device": self.device.as_dict(),
            "objective": objective.as_dict(),
            "limit_s": SCREENING_LIMIT_S,
            "check_only": check_only,
            "early": False,
            "seed": seed,
        }

    def _measured(self, result: StepResult) -> StepResult:
        value = result.value or {}
        refused = value.get("failure")
        seen = foreign_processes(value.get("measurement", {}).get("conditions", {}), self.device)
        for pid, text in seen.items():
            self.server.notices.say(text, of=pid)
        if refused is None:
            return result
        return StepResult(value=result.value, failure=Failure(**refused), spans=result.spans, seconds=result.seconds)

    def deployed(self, artifact: Path) -> StepResult:
        """Call an artifact once in a process of its own as its user will, and hold the form of its answer."""
        request = {"folder": str(self.model), "artifact": str(artifact), "device": self.device.as_dict()}
        return self._step("deployed", request, self._measure_timeout_s)

    def features(self, backends: Sequence[str]) -> StepResult:
        """What each backend finds in the prepared model's graph, with counts, as ``backend.feature``."""
        request = {"folder": str(self.model), "device": self.device.as_dict(), "backends": list(backends)}
        return self._step("features", request, PREPARE_TIMEOUT_S)

    def problems(self, configuration: Configuration) -> StepResult:
        """The kernel problems of the graph that a configuration builds, each with how often it comes in a call."""
        request = {
            "folder": str(self.model), "device": self.device.as_dict(), "configuration": configuration.as_dict()
        }  # fmt: skip
        return self._step("problems", request, PREPARE_TIMEOUT_S)

    def workload(self) -> Workload:
        """The workload of the prepared model."""
        return Workload.from_dict(json.loads((self.model / "model.json").read_text())["workload"])

    def form(self) -> str:
        """The digest of the form of the prepared model's answer."""
        return str(json.loads((self.model / "model.json").read_text())["form"])

    def inputs(self) -> str:
        """The digest of every set of inputs that the prepared model is captured, timed and judged on."""
        found = hashlib.sha256()
        for name in (EXAMPLE, TIMING, HELD_OUT):
            with (self.model / name).open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    found.update(chunk)
        return found.hexdigest()

    def discard(self, folder: Path) -> None:
        """Delete what a build left."""
        shutil.rmtree(folder, ignore_errors=True)

    def watched(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Look at the device's memory before and after something that runs on it, and warn of what it left there."""
        return self._device_memory.around(name)

    def _step(
        self,
        name: str,
        request: dict[str, Any],
        timeout_s: float,
        *,
        meanwhile: Callable[[], None] | None = None,
        on_loaded: Callable[[Session], None] | None = None,
    ) -> StepResult:
        stage: Stage = "load" if name in ("measure", "footprint", "deployed") else "build"
        with self.watched(name):
            result = self.server.run(
                name, request, timeout_s=timeout_s, stage=stage, meanwhile=meanwhile, on_loaded=on_loaded
            )
        self.split.add(result.spans)
        return result

    def _must(self, result: StepResult, what: str, kind: type[AutotuneError] = WorkError) -> dict[str, Any]:
        """The step's answer; raises OutOfMemoryError if memory was out, else what it raised, else ``kind``.

        A step that was stopped raises StudyInterruptedError: how it ended says nothing about it.
        """
        if result.value is None and self.server.closed:
            raise StudyInterruptedError("it was stopped; what was finished is kept", run="the same command to go on")
        failure = result.failure
        if failure is not None and failure.kind == "out_of_memory":
            raise OutOfMemoryError(what, found=str(failure), expected="a model and a batch that fit into memory")
        if result.raised is not None:
            raise result.raised
        if failure is not None:
            tail = failure.log_tail.strip().splitlines()[-8:]
            raise kind(what, found="\n    ".join([str(failure), *tail]))
        return result.value or {}
