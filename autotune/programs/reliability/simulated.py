"""A study whose candidates are simulated: coordinators, databases and worker processes are real; there is no model.

A worker process sleeps for a moment and writes its step into a journal, so that a campaign has a second record beside
the database. A candidate's latency follows from its configuration, which reveals results that are mixed up.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from autotune import registry
from autotune.backend import Availability, Runner, SourceModel
from autotune.database.store import Store
from autotune.errors import AutotuneError
from autotune.execute.answers import BuildAnswer, MeasureAnswer, PrepareAnswer
from autotune.execute.executor import Built, Executor, Kernels
from autotune.execute.finals import FinalsResult
from autotune.execute.input_sets import HELD_OUT, TIMING
from autotune.execute.server import WorkerServer
from autotune.execute.step_result import StepResult
from autotune.measure.verdict import verdict_from_samples
from autotune.model.inputs import InputSpec
from autotune.model.source import EXAMPLE
from autotune.progress import Progress
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.objective import Objective
from autotune.records.plan import Plan
from autotune.records.search_space import Parameter, SearchSpace
from autotune.records.trial import Failure, Measurement, Stage, Trial
from autotune.records.workload import TensorSpec, Workload
from autotune.runtime import discovery
from autotune.study.finals import StudyFinals
from autotune.study.request import StudyOutcome, StudyRequest
from autotune.study.study import Study, stoppable

Answer = TypeVar("Answer")

NAME = "simulated"
WORK_S = 0.005
ROUNDS = 12
WORKER = """
import os, sys, time
journal, line, seconds = sys.argv[1:]
time.sleep(float(seconds))
descriptor = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
os.write(descriptor, line.encode())
"""


class SimulatedBackend:
    """Offers a space of 800 points and builds none of them."""

    name = NAME
    toolchain: tuple[str, ...] = ()
    build_uses_device = False

    def probe(self, device: Device) -> Availability:
        """Work everywhere."""
        return Availability(works=True)

    def space(self, device: Device, workload: Workload | None, *, has_factory: bool) -> SearchSpace:
        """Return a space of three knobs and one precision."""
        knobs = tuple(Parameter(name=name, choices=tuple(range(size))) for name, size in KNOBS.items())
        default = Configuration.of(self.name, {**dict.fromkeys(KNOBS, 0), "precision": "fp32"})
        parameters = (*knobs, Parameter(name="precision", choices=("fp32",)))
        return SearchSpace(backend=self.name, parameters=parameters, defaults=(default,))

    def is_baseline(self, configuration: Configuration, *, has_factory: bool) -> bool:
        """Return true for the first point alone."""
        return all(configuration[name] == 0 for name in KNOBS)

    def build(self, model: SourceModel, configuration: Configuration, device: Device, folder: Path) -> None:
        """Refuse: builds are simulated."""
        raise NotImplementedError("a simulated backend builds nothing")

    def times_kernels_at_build(self, configuration: Configuration) -> bool:
        """Return false."""
        return False

    def times_kernels_at_load(self, configuration: Configuration) -> bool:
        """Return false."""
        return False

    def load(self, folder: Path, device: Device) -> Runner:
        """Refuse: measuring is simulated."""
        raise NotImplementedError("a simulated backend loads nothing")


KNOBS = {"a": 10, "b": 10, "c": 8}
SIMULATED = SimulatedBackend()


def latency_ms(configuration: Configuration) -> float:
    """Return the simulated latency of a configuration."""
    return 1.0 + int(configuration.digest[:6], 16) / 2**24


def install(folder: Path) -> Path:
    """Write a package that offers the simulated backend, and return the folder for ``sys.path``."""
    info = folder / "site" / f"{NAME}-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{NAME} = {__name__}:SIMULATED\n")
    return folder / "site"


class Journal:
    """Lines of JSON that several processes append to; each line is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_to = 0
        self._lines: list[dict[str, Any]] = []

    def write(self, **line: object) -> None:
        """Append a line."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, json.dumps(line).encode() + b"\n")
        finally:
            os.close(descriptor)

    def lines(self, what: str) -> list[dict[str, Any]]:
        """Return every line of a kind so far."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._read_to)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # the rest of it is being written
                    self._read_to += len(line)
                    self._lines.append(json.loads(line))
        return [line for line in self._lines if line["what"] == what]


class SimulatedServer:
    """Runs a worker process for each step, in the place of the worker server."""

    def __init__(self, journal: Journal) -> None:
        self._journal, self._lock = journal, threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self.closed = False

    def preload(self, modules: list[str]) -> None:
        """Import nothing."""

    def step(self, stage: Stage, answer: Answer, **line: object) -> StepResult[Answer]:
        """Let a process do its work and write its line."""
        text = json.dumps(line) + "\n"
        with self._lock:
            if self.closed:
                return self._ended(stage, answer, 0)
            command = [sys.executable, "-I", "-S", "-c", WORKER, str(self._journal.path), text, str(WORK_S)]
            process = self._running = subprocess.Popen(command)
        return self._ended(stage, answer, process.wait())

    @staticmethod
    def _ended(stage: Stage, answer: Answer, code: int) -> StepResult[Answer]:
        detail = f"the process was killed by signal {-code}"
        failure = Failure(stage=stage, kind="crash", detail=detail, figure=float(-code)) if code else None
        return StepResult(value=answer, failure=failure, spans=(), seconds=0.0)

    def stop(self) -> None:
        """Kill the worker."""
        self.closed = True
        if self._running is not None:
            self._running.kill()


class SimulatedExecutor(Executor):
    """Prepares, builds and measures by processes that only write into the journal."""

    def on(self, server: SimulatedServer, name: str) -> "SimulatedExecutor":
        """Run the steps of a study of this name on a server; returns itself."""
        self._simulated, self._name = server, name
        return self

    def prepare(self, name: str, batch: int, factory: str, inputs: Sequence[InputSpec], seed: int) -> PrepareAnswer:
        """Prepare no model; its folder holds the files from which a study's identity is read."""
        self.model.mkdir(parents=True, exist_ok=True)
        for file in (EXAMPLE, TIMING, HELD_OUT):
            (self.model / file).touch()
        return PrepareAnswer(workload=self.workload(), imported=(), read={"packages": []}, notes=())

    def form(self) -> str:
        """Return a digest that stands for the form of every answer."""
        return "0" * 64

    def workload(self) -> Workload:
        """Return a workload of the study's name."""
        spec = TensorSpec(name="x", shape=(1, 1), dtype="float32")
        digest = (self._name.encode().hex() + "0" * 64)[:64]
        return Workload(name=self._name, batch=1, structure=digest, weights=digest, inputs=(spec,), outputs=(spec,))

    def reference(self, objective: Objective, building: Iterable[str] = ()) -> None:
        """Compute no reference."""

    def build(
        self,
        configurations: Sequence[Configuration],
        workers: int,
        timeout_s: float | None = None,
        *,
        kernels: Kernels = lambda _: None,
        then: Callable[[Configuration, StepResult[BuildAnswer], Path], None] = lambda *_: None,
    ) -> list[Built]:
        """Write an artifact that names its configuration."""
        built = []
        for configuration in configurations:
            target = Path(tempfile.mkdtemp(dir=self.folder, prefix="artifact-"))
            (target / "configuration.json").write_text(json.dumps(configuration.as_dict(), sort_keys=True))
            result = self._simulated.step(
                "build", BuildAnswer(build_s=WORK_S, kernels=""), what="built", study=self._name,
                configuration=configuration.digest,
            )  # fmt: skip
            then(configuration, result, target)
            built.append((result, target))
        return built

    def measure(
        self,
        artifact: Path,
        objective: Objective,
        seed: int,
        *,
        abandon_ms: float | None = None,
        check_only: bool = False,
    ) -> StepResult[MeasureAnswer]:
        """Answer with the latency of the configuration that the artifact names."""
        configuration = Configuration.from_dict(json.loads((artifact / "configuration.json").read_text()))
        measurement = Measurement(samples_ms=((latency_ms(configuration),) * 3,))
        return self._simulated.step(
            "measure", MeasureAnswer(signal_error=1e-6, measurement=measurement), what="measured", study=self._name,
            configuration=configuration.digest,
        )  # fmt: skip


class SimulatedFinals(StudyFinals):
    """Finals whose rounds are nearly equal."""

    def _measured(self, trials: Mapping[str, Trial], baselines: set[str]) -> FinalsResult:
        for trial in trials.values():
            assert trial.artifact is not None  # the finals see to it
            artifact = self.context.store.artifacts.open(trial.artifact)
            self.context.executor.measure(artifact, self.context.request.objective, 0)
        # Not quite equal: with equal ratios the test of the verdict takes seconds.
        samples: dict[str, list[list[float] | None]] = {
            uid: [[(trial.latency_ms or 1.0) * (1 + 1e-5 * turn * place)] for turn in range(ROUNDS)]
            for place, (uid, trial) in enumerate(trials.items())
        }
        return FinalsResult(
            verdict=verdict_from_samples(samples, baselines=baselines),
            samples_ms=samples,
            figures=samples,
            disturbed={uid: [False] * len(blocks) for uid, blocks in samples.items()},
            flags=dict.fromkeys(trials, ()),
            utilisation={},
            measurements={
                uid: Measurement(samples_ms=tuple(tuple(block) for block in blocks if block))
                for uid, blocks in samples.items()
            },
            process_of_round=(0,) * ROUNDS,
        )

    def _call_deployed(self, winner: Trial) -> None:
        """Deploy nothing."""

    def _time_alone(self, plan: Plan) -> None:
        self.context.check_stop()


class SimulatedStudy(Study):
    """A study on a simulated executor."""

    finals = SimulatedFinals


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The task of a coordinator process; plain data, so that it can be sent to the process."""

    database: str
    study: str
    trials: int
    journal: str
    site: str
    seed: int = 0


class _JournalProgress:
    """Writes the events of the coordinator into the journal."""

    def __init__(self, journal: Journal, study: str) -> None:
        self._journal, self._study = journal, study

    def event(self, kind: str, **data: Any) -> None:
        """Write the beginning and the end of trials."""
        if kind == "trial_started":
            digest = data["configuration"].digest
            self._journal.write(what="started", study=self._study, configuration=digest, number=data["number"])
        elif kind == "trial_finished":
            trial: Trial = data["trial"]
            self._journal.write(
                what="finished", study=self._study, configuration=trial.configuration.digest, uid=trial.uid,
                state=trial.state, latency_ms=trial.latency_ms,
            )  # fmt: skip


def run(part: Part, store: Store, server: SimulatedServer, progress: Progress, folder: Path) -> StudyOutcome:
    """Run a study to its end; the simulated backend must be installed."""
    request = StudyRequest(
        name=part.study,
        batch=1,
        device=discovery.cpu(),
        factory=f"{NAME}:model",
        backends=(NAME,),
        trials=part.trials,
        budget_s=86400.0,
        seed=part.seed,
    )
    worker_server = cast(WorkerServer, server)
    with stoppable(worker_server) as stop:
        study = SimulatedStudy(request, store, progress, worker_server, folder, stop)
        study.executor = SimulatedExecutor(worker_server, folder, request.device, study.split).on(server, part.study)
        return study.run(time.monotonic())


def coordinate(part: Part) -> None:
    """Run a study to its end in this process, and leave by its exit code; an error is written into the journal."""
    folder_of_part = Path(part.journal).parent
    os.environ["XDG_DATA_HOME"] = str(folder_of_part)  # for the artifacts of a PostgreSQL database
    sys.path.insert(0, part.site)
    registry.refresh()
    journal = Journal(Path(part.journal))
    try:
        with (
            tempfile.TemporaryDirectory(prefix="autotune-simulated-", dir=folder_of_part) as folder,
            Store.open(part.database) as store,
        ):
            run(part, store, SimulatedServer(journal), _JournalProgress(journal, part.study), Path(folder))
    except AutotuneError as error:
        journal.write(what="error", study=part.study, kind=type(error).__name__, text=str(error))
        sys.exit(error.exit_code)
