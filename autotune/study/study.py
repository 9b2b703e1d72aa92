"""The loop of a study: the only place that sees the whole road from a model to its plan."""

import contextlib
import functools
import logging
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

from autotune import registry
from autotune.database.rows import StudyRow
from autotune.database.store import Store
from autotune.errors import StudyInterruptedError
from autotune.execute.executor import Executor
from autotune.execute.server import WorkerServer
from autotune.execute.timing import TimeSplit
from autotune.kernels.executor import STEPS
from autotune.progress import Progress, Silent, message_reporter
from autotune.records.canonical import digest
from autotune.records.plan import Plan
from autotune.records.search_space import SearchSpace
from autotune.records.workload import Workload
from autotune.runtime import toolchain as versions
from autotune.scratch import ScratchFolder
from autotune.study.cache import asks_more, known_outcome, misfits, outcome, package_versions, undecided_outcome
from autotune.study.context import StudyContext
from autotune.study.finals import StudyFinals, Undecided
from autotune.study.identity import conditions, request_digest, with_metric_code
from autotune.study.kernel_supply import KernelSupply
from autotune.study.lease import coordinating
from autotune.study.rebuild import StudyRebuild
from autotune.study.request import StudyOutcome, StudyRequest
from autotune.study.search import StudySearch
from autotune.study.space import participants, search_spaces

log = logging.getLogger(__name__)


def run_study(request: StudyRequest, store: Store, progress: Progress | None = None) -> StudyOutcome:
    """Search, or go on searching, for the fastest plan; a finished study answers with its plan and measures nothing.

    Raises StudyInterruptedError on SIGINT or SIGTERM; what was finished is kept and the same call goes on. Raises
    StudyHeldError where another process coordinates the study, StudyTakenOverError once another one does, and
    OutOfMemoryError if the model or its baseline takes more memory than there is.
    """
    progress = progress or Silent()
    known = known_outcome(request, store)
    if known is not None:
        progress.event("finished", outcome=known)
        return known
    search_spaces(request, None)  # refuses what leaves no candidate before anything is begun
    begin = time.monotonic()
    with (
        ScratchFolder("study") as folder,
        WorkerServer(folder, steps=STEPS, work=request.name, tell=message_reporter(progress)) as server,
        stoppable(server) as stop,
    ):
        found = Study(request, store, progress, server, folder, stop).run(begin)
    progress.event("finished", outcome=found)
    return found


class Study:
    """One run of a study, from capture to plan; a program that plays its finals has ``finals`` of its own."""

    finals: ClassVar[type[StudyFinals]] = StudyFinals

    def __init__(
        self,
        request: StudyRequest,
        store: Store,
        progress: Progress,
        server: WorkerServer,
        folder: Path,
        stop: threading.Event,
    ) -> None:
        self.request, self.store, self.progress, self.stop = request, store, progress, stop
        self.device = request.device
        self.split = TimeSplit()
        self.executor = Executor(server, folder, self.device, self.split)
        self.toolchain = versions.current(self.device)
        self.server, self.folder = server, folder

    def run(self, begin: float) -> StudyOutcome:
        """The whole road; ``begin`` is when the caller began to wait."""
        workload, read = self._capture()
        spaces = search_spaces(self.request, workload)
        row, settings = self._begin(workload, spaces, read)
        with coordinating(self.store, row.uid, lost=self._lost, tell=self._tell, pause=self.stop.wait) as store:
            self._check_stop()
            self.store = store
            store.studies.describe(row.uid, settings)
            return self._coordinate(store.studies.get(row.uid), workload, spaces, begin)

    def _coordinate(
        self, row: StudyRow, workload: Workload, spaces: Sequence[SearchSpace], begin: float
    ) -> StudyOutcome:
        stored = self._finished_plan(row)
        plan = None if stored is None else self.usable(stored, workload)
        if plan is not None:
            asked = {"trials": self.request.trials, "budget_s": self.request.budget_s}
            self.store.studies.finish(row.uid, {**row.timings, "asked": {**row.timings.get("asked", {}), **asked}})
            found = self.store.trials.of_study(plan.evidence.study or row.uid)
            return outcome(plan, found, cached=plan == stored, seconds=time.monotonic() - begin)
        if row.state == "finished":
            self.store.studies.reopen(row.uid)
        context = StudyContext(
            request=self.request, store=self.store, progress=self.progress, executor=self.executor,
            supply=self.supply, stop=self.stop, toolchain=self.toolchain, row=row, workload=workload, spaces=spaces,
        )  # fmt: skip
        search = StudySearch(context).run()
        decided = self.finals(context).run()
        end = time.monotonic()
        split = self.split.seconds(begin, end)
        if isinstance(decided, Undecided):
            return self._undecided(row, decided, end - begin, split)
        settings = {"trials": self.request.trials, "budget_s": self.request.budget_s, "exhausted": search.exhausted}
        self.store.studies.finish(row.uid, {"split": split, "seconds": end - begin, "asked": settings})
        return outcome(decided, self.store.trials.of_study(row.uid), cached=False, seconds=end - begin, split=split)

    def _undecided(self, row: StudyRow, found: Undecided, seconds: float, split: Mapping[str, float]) -> StudyOutcome:
        """The outcome of finals that could not decide; the study stays open, so that the same call repeats them."""
        self.store.studies.note_undecided(row.uid, found.reason)
        incumbent = self.store.plans.find(row.identity.plan, row.weights)
        return undecided_outcome(
            row, self.request, incumbent, reason=found.reason, finalists=found.finals.finalist_records(),
            trials=self.store.trials.of_study(row.uid), seconds=seconds, split=split,
        )  # fmt: skip

    def _lost(self) -> None:
        """Stop at once: another process coordinates the study now."""
        self.stop.set()
        self.server.stop()

    def _tell(self, text: str) -> None:
        self.progress.event("message", text=text)

    # Capture

    def _capture(self) -> tuple[Workload, dict[str, Any]]:
        request = self.request
        self.progress.event("capture", name=request.name, batch=request.batch)
        read: dict[str, Any] = {}
        if request.prepared is not None:
            shutil.copytree(request.prepared, self.executor.model)
        else:
            assert request.factory is not None  # the record refuses a request without either
            answer = self.executor.prepare(request.name, request.batch, request.factory, request.inputs, request.seed)
            for note in answer.notes:
                self._tell(f"{request.name}: {note}")
            read = {"records": [answer.read]}
        objective, of_metrics = with_metric_code(request.objective, self.executor)
        objective.refuse_other_outputs([spec.name for spec in self.executor.workload().outputs])
        self.request = replace(request, objective=objective)
        if read:
            read["records"] += of_metrics
            read["packages"] = package_versions({name for one in read["records"] for name in one["packages"]})
        workload = self._with_features(self.executor.workload())
        self._check_stop()
        self.progress.event("captured", workload=workload)
        return workload, read

    def _with_features(self, workload: Workload) -> Workload:
        """The workload with what backends find in its graph; a backend that fails at that finds nothing."""
        looking = list(registry.finding_features(participants(self.request)))
        if not looking:
            return workload
        looked = self.executor.features(looking)
        if looked.failure is not None:
            self.progress.event("message", text=f"{', '.join(looking)}: no look at the graph: {looked.failure}")
            return workload
        found = looked.answer.features
        return replace(workload, features=(*workload.features, *(f"{name}:{count}" for name, count in found.items())))

    def _begin(
        self, workload: Workload, spaces: Sequence[SearchSpace], read: Mapping[str, Any]
    ) -> tuple[StudyRow, dict[str, Any]]:
        """The row of the study, and the settings that it will have once this process coordinates it."""
        request = self.request
        settings = {
            "request": request_digest(request),
            "read": read,
            "seed": request.seed,
            "factory": request.factory,
            "inputs": [asdict(spec) for spec in request.inputs],
        }
        row = self.store.studies.begin(
            request.name, workload, self.device, request.objective, request.serve_as,
            digest([space.digest for space in spaces]), request.seed, settings,
            conditions(request, self.executor, self.toolchain),
        )  # fmt: skip
        return row, settings

    def _finished_plan(self, row: StudyRow) -> Plan | None:
        """The plan of a study that is finished, also if it was for other weights, or under another toolchain."""
        finished = {
            other.uid for other in self.store.studies.list(row.name, row.batch)
            if other.state == "finished" and not asks_more(self.request, other)
            and other.identity.family == row.identity.family
        }  # fmt: skip
        plan = self.store.plans.find(row.identity.plan, row.weights)
        return plan if plan is not None and plan.evidence.study in finished else None

    def usable(self, plan: Plan, workload: Workload) -> Plan | None:
        """Return a stored plan with an artifact that serves the prepared model, built again if it must be.

        ``None`` if what was built again does not pass the gate, or is not fast any more.
        """
        wrong = misfits(plan, workload.weights, self.executor.form(), self.toolchain, self.store)
        if not wrong:
            return plan
        reasons = ", ".join(f"{part} {found} instead of {asked}" for part, asked, found in wrong)
        self.progress.event("message", text=f"{plan.name}: rebuilding the stored plan {plan.configuration}: {reasons}")
        return self.rebuild(plan, workload)

    def rebuild(self, plan: Plan, workload: Workload) -> Plan | None:
        """See :meth:`autotune.study.rebuild.StudyRebuild.rebuild`."""
        again = StudyRebuild(
            store=self.store, executor=self.executor, supply=self.supply, toolchain=self.toolchain,
            seed=self.request.seed, progress=self.progress, check_stop=self._check_stop,
        )  # fmt: skip
        return again.rebuild(plan, workload)

    @functools.cached_property
    def supply(self) -> KernelSupply:
        """The tuned kernels that builds are handed."""
        device_class = self.device.device_class
        return KernelSupply(self.store, self.executor, device_class, self.toolchain, self._tell, self.stop)

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise StudyInterruptedError(
                f"{self.request.name} was stopped; what was finished is kept", run="the same command to go on"
            )


@contextlib.contextmanager
def stoppable(server: WorkerServer) -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an orderly stop: steps are killed, nothing of them is recorded."""
    stop = threading.Event()

    def on_signal(*_: object) -> None:
        stop.set()
        server.stop()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
