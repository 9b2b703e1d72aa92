"""The reproduction of a stored trial: its configuration is built and measured again, and nothing is stored."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from autotune import registry
from autotune.database.rows import StudyRow
from autotune.database.store import Store
from autotune.errors import DeviceError, RequestError, StudyInterruptedError
from autotune.execute.answers import MeasureAnswer
from autotune.execute.executor import Executor
from autotune.execute.server import WorkerServer
from autotune.execute.timing import TimeSplit
from autotune.kernel import KnownKernels
from autotune.kernels.executor import STEPS
from autotune.measure.block import latency_ms as screened_ms
from autotune.model.inputs import InputSpec
from autotune.records.device import Device
from autotune.records.trial import Failure, Trial
from autotune.runtime import toolchain as versions
from autotune.scratch import ScratchFolder
from autotune.study.kernel_supply import KernelSupply
from autotune.study.study import stoppable

FOLLOW_S = 0.2
"""The time between two looks at the output of the steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """The result of a trial's configuration this time; ``notes`` name what has changed since the trial."""

    study: str
    batch: int
    trial: Trial
    failure: Failure | None
    build_s: float | None = None
    latency_ms: float | None = None
    signal_error: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """True if it ended as the trial did: with the same kind of failure at the same stage, or without failure."""
        then = self.trial.failure
        if then is None or self.failure is None:
            return then is self.failure
        return (then.stage, then.kind) == (self.failure.stage, self.failure.kind)

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "study": self.study,
            "batch": self.batch,
            "trial": self.trial.as_dict(),
            "failure": None if self.failure is None else self.failure.as_dict(),
            "build_s": self.build_s,
            "latency_ms": self.latency_ms,
            "signal_error": self.signal_error,
            "same": self.same,
            "notes": list(self.notes),
        }


def device_of(row: StudyRow, devices: list[Device]) -> Device:
    """Return the device of the study's class; raises DeviceError if this host has none."""
    for device in devices:
        if device.device_class == row.device_class:
            return device
    raise DeviceError(
        f"trials of {row.name} at batch {row.batch} cannot be reproduced here",
        found=", ".join(device.device_class for device in devices),
        expected=f"a device of the class that the study is for: {row.device_class}",
        run="the same command on such a host, with the same database",
    )


def reproduce(row: StudyRow, trial: Trial, store: Store, device: Device, output: IO[str]) -> Reproduction:
    """Make the model, build the configuration and measure it as its study did; ``output`` gets the output of workers.

    The build gets the tuned kernels that the database has now; nothing is written to the database. Raises RequestError
    if the study does not name its model's factory, or if the structure of the model has changed.
    """
    if not row.can_be_reproduced:
        raise RequestError(
            f"trial {trial.number} of {row.name} at batch {row.batch} cannot be reproduced",
            found="a study of a model and tensors that were given in Python; they are not stored",
            expected="a study of a study file, which says how its model and inputs are made",
            run="autotune.tune(model, inputs) again, in Python",
        )

    def tell(text: str) -> None:
        output.write(f"{text}\n")

    with (
        ScratchFolder("reproduce") as folder,
        _following(folder, output),
        WorkerServer(folder, steps=STEPS, work=row.name, tell=tell) as server,
        stoppable(server) as stop,
    ):
        executor = Executor(server, folder, device, TimeSplit())
        supply = KernelSupply(store, executor, device.device_class, versions.current(device), tell, stop)
        reproduction = _run(row, trial, executor, supply)
        if stop.is_set():
            raise StudyInterruptedError("the reproduction was stopped", run="the same command")
        return reproduction


def _run(row: StudyRow, trial: Trial, executor: Executor, supply: KernelSupply) -> Reproduction:
    specs = [InputSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in row.settings["inputs"]]
    executor.prepare(row.name, row.batch, row.settings["factory"], specs, row.seed)
    notes = _notes(row, trial, executor)
    kernels = supply.of(trial.configuration)
    notes += _kernel_notes(trial, kernels)
    ((built, target),) = executor.build([trial.configuration], 1, kernels=lambda _: kernels)
    if built.failure is not None:
        return _reproduction(row, trial, built.failure, None, notes)
    executor.reference(row.objective)
    measured = executor.measure(target, row.objective, row.seed)
    failure, answer = measured.failure, measured.value
    if failure is None and row.objective.name == "memory":
        failure = executor.footprint(target).failure
        answer = answer if failure is None else None
    return _reproduction(row, trial, failure, answer, notes, build_s=built.answer.build_s)


def _reproduction(
    row: StudyRow, trial: Trial, failure: Failure | None, answer: MeasureAnswer | None, notes: tuple[str, ...],
    build_s: float | None = None,
) -> Reproduction:  # fmt: skip
    measurement = None if answer is None else answer.measurement
    return Reproduction(
        study=row.name,
        batch=row.batch,
        trial=trial,
        failure=failure,
        build_s=build_s,
        latency_ms=None if measurement is None else screened_ms(measurement),
        signal_error=None if answer is None else answer.signal_error,
        notes=notes,
    )


def _notes(row: StudyRow, trial: Trial, executor: Executor) -> tuple[str, ...]:
    """Return notes on what has changed since the trial; raises RequestError if the model's structure has."""
    workload = executor.workload()
    if workload.structure != row.structure:
        raise RequestError(
            f"trial {trial.number} of {row.name} at batch {row.batch} cannot be reproduced",
            found=f"{row.settings['factory']} now makes a model of another structure",
            expected="the model that the study was begun with",
            run="autotune tune with its study file, for a study of the model as it is now",
        )
    notes = [] if workload.weights == row.weights else ["the weights of the model have changed since the trial"]
    entries = versions.current(executor.device).only(registry.backend(trial.configuration.backend).toolchain)
    if entries.digest != trial.toolchain:
        versions_now = ", ".join(f"{name} {version}" for name, version in sorted(entries.as_dict().items()))
        notes.append(f"the toolchain has changed since the trial: now {versions_now}")
    return tuple(notes)


def _kernel_notes(trial: Trial, kernels: KnownKernels | None) -> tuple[str, ...]:
    """Return a note if the tuned kernels are not those that the trial was built with."""
    if kernels is None or kernels.digest == trial.kernels:
        return ()
    if not trial.kernels:
        return ("the trial does not say which tuned kernels it was built with",)
    return ("the tuned kernels in the database have changed since the trial",)


@contextmanager
def _following(folder: Path, output: IO[str]) -> Iterator[None]:
    """Pass the output of the steps on at once: a candidate may take the host down before it has ended."""
    ended, read_to = threading.Event(), dict[Path, int]()

    def pass_on() -> None:
        for log in sorted(folder.glob("[0-9]*.log")):
            with log.open("rb") as file:
                file.seek(read_to.get(log, 0))
                content = file.read()
                read_to[log] = file.tell()
            if content:
                output.write(content.decode(errors="replace"))
                output.flush()

    def follow() -> None:
        while not ended.wait(FOLLOW_S):
            pass_on()

    thread = threading.Thread(target=follow, daemon=True, name="autotune-follow")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        pass_on()
