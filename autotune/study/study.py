"""A study from the model to its plan: capture, search, finals: run_study, Study."""

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
from typing import ClassVar

from autotune import registry
from autotune.database.rows import StudyLimits, StudyRow
from autotune.database.store import Store
from autotune.errors import DatabaseError, StudyInterruptedError
from autotune.execute.executor import Executor
from autotune.execute.server import WorkerServer
from autotune.execute.timing import TimeSplit
from autotune.kernels.compiled import compiled_for
from autotune.kernels.executor import STEPS
from autotune.progress import OneAtATime, Progress, Silent, message_sender
from autotune.records.canonical import digest
from autotune.records.configuration import Configuration
from autotune.records.plan import Plan
from autotune.records.search_space import SearchSpace
from autotune.records.study_start import HintRecord
from autotune.records.workload import Workload
from autotune.runtime import toolchain as versions
from autotune.scratch import ScratchFolder
from autotune.study.cache import Sources, asks_more, misfits, outcome, package_versions, stored_outcome
from autotune.study.carry import has_carried, plans_to_carry
from autotune.study.context import StudyContext
from autotune.study.finals import StudyFinals, Undecided
from autotune.study.hints import study_hints
from autotune.study.identity import conditions, request_digest, with_metric_code
from autotune.study.kernel_supply import KernelSupply
from autotune.study.lease import coordinating
from autotune.study.rebuild import StudyRebuild
from autotune.study.request import StudyOutcome, StudyRequest
from autotune.study.search import StudySearch
from autotune.study.space import participants, search_spaces

log = logging.getLogger(__name__)


def run_study(request: StudyRequest, store: Store, progress: Progress | None = None) -> StudyOutcome:
    """Search for the fastest plan, or continue the search; a finished study returns its plan and measures nothing.

    Unless the request says ``again``, or has plans to ``carry`` that took no part in the finals: then these are run.

    Raises StudyInterruptedError on SIGINT or SIGTERM; finished trials are kept, and the same call continues. Raises
    StudyHeldError if another process coordinates the study, StudyTakenOverError if another one takes it over, and
    OutOfMemoryError if the model or its baseline takes more memory than there is.
    """
    progress = progress or Silent()
    if not isinstance(progress, Silent):  # nothing shows it, so the log gets its messages
        progress = OneAtATime(progress)
    plans_to_carry(request, store)  # refuses a device without a plan before anything is begun
    cached = None if request.again or request.carry else stored_outcome(request, store)
    if cached is not None:
        progress.event("finished", outcome=cached)
        return cached
    search_spaces(request, None)  # refuses a space without candidates before anything is begun
    begin = time.monotonic()
    with (
        ScratchFolder("study") as folder,
        WorkerServer(folder, steps=STEPS, work=request.name, tell=message_sender(progress)) as server,
        stoppable(server) as stop,
    ):
        decided = Study(request, store, progress, server, folder, stop).run(begin)
    progress.event("finished", outcome=decided)
    return decided


class Study:
    """One run of a study, from capture to plan; a program that simulates finals has another class in ``finals``."""

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
        """Run the study to its end; ``begin`` is the monotonic time at which the caller began to wait."""
        workload, sources = self._capture()
        spaces = search_spaces(self.request, workload)
        row, settings = self._begin(workload, spaces, sources)
        with coordinating(self.store, row.uid, lost=self._lost, tell=self._tell, pause=self.stop.wait) as store:
            self._check_stop()
            self.store = store
            store.studies.describe(row.uid, settings)
            return self._coordinate(store.studies.get(row.uid), workload, spaces, begin)

    def _coordinate(
        self, row: StudyRow, workload: Workload, spaces: Sequence[SearchSpace], begin: float
    ) -> StudyOutcome:
        carried = plans_to_carry(self.request, self.store, workload.structure)
        stored = None if self.request.again else self._finished_plan(row)
        if stored is not None and not has_carried(stored, carried):
            stored = None
        same = [other for other in carried if stored is not None and other.configuration == stored.configuration]
        for other in same:
            self._tell(f"the plan of {other.device.device_class} has the same configuration as the plan here")
        plan = None if stored is None else self.usable(stored, workload)
        if plan is not None:
            limits = {"trials": self.request.trials, "budget_s": self.request.budget_s}
            self.store.studies.finish(row.uid, {**row.timings, "asked": {**row.timings.get("asked", {}), **limits}})
            return outcome(
                self.request, self.store, plan.evidence.study or row.uid, plan, plan.evidence.finalists,
                cached=plan == stored, seconds=time.monotonic() - begin,
            )  # fmt: skip
        if row.state == "finished":
            self.store.studies.reopen(row.uid)
        context = StudyContext(
            request=self.request, store=self.store, progress=self.progress, executor=self.executor,
            supply=self.supply, stop=self.stop, toolchain=self.toolchain, row=row, workload=workload, spaces=spaces,
            carried=carried, hints=self._hints_of(row),
        )  # fmt: skip
        search = StudySearch(context).run()
        decided = self.finals(context).run()
        end = time.monotonic()
        split, rest = self.split.seconds(begin, end), self.split.other_seconds(begin, end)
        log.info("other time: %s", ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in rest.items()))
        if isinstance(decided, Undecided):
            return self._undecided(row, decided, end - begin, split)
        limits = {"trials": self.request.trials, "budget_s": self.request.budget_s, "exhausted": search.exhausted}
        timings = {"split": split, "other": rest, "seconds": end - begin, "asked": limits}
        self.store.studies.finish(row.uid, timings)
        return outcome(
            self.request, self.store, row.uid, decided, decided.evidence.finalists, seconds=end - begin, split=split
        )

    def _undecided(self, row: StudyRow, finals: Undecided, seconds: float, split: Mapping[str, float]) -> StudyOutcome:
        """Return the outcome of finals that could not decide; the study stays open, and the same call repeats them."""
        self.store.studies.note_undecided(row.uid, finals.reason)
        incumbent = self.store.plans.find(row.identity.plan, row.weights)
        return outcome(
            self.request, self.store, row.uid, incumbent, finals.finals.finalist_records(),
            seconds=seconds, split=split, doubt=finals.reason,
        )  # fmt: skip

    def _lost(self) -> None:
        """Stop at once: another process coordinates the study now."""
        self.stop.set()
        self.server.stop()

    def _tell(self, text: str) -> None:
        self.progress.event("message", text=text)

    # Capture

    def _capture(self) -> tuple[Workload, Sources]:
        request = self.request
        self.progress.event("capture", name=request.name, batch=request.batch, request=request)
        sources = Sources()
        if request.prepared is not None:
            shutil.copytree(request.prepared, self.executor.model)
        else:
            assert request.factory is not None  # the record refuses a request without either
            answer = self.executor.prepare(request.name, request.batch, request.factory, request.inputs, request.seed)
            for note in answer.notes:
                self._tell(f"{request.name}: {note}")
            sources["records"] = [answer.read]
        objective, metric_records = with_metric_code(request.objective, self.executor)
        objective.refuse_other_outputs([spec.name for spec in self.executor.workload().outputs])
        self.request = replace(request, objective=objective)
        if sources:
            sources["records"] += metric_records
            sources["packages"] = package_versions(sources["records"])
        workload = self._with_features(self.executor.workload())
        self._check_stop()
        self.progress.event("captured", workload=workload)
        return workload, sources

    def _with_features(self, workload: Workload) -> Workload:
        """Return the workload with the features that backends report of its graph; none if one of them fails."""
        backends = list(registry.finding_features(participants(self.request)))
        if not backends:
            return workload
        result = self.executor.features(backends)
        if result.failure is not None:
            self._tell(f"{', '.join(backends)}: the graph was not searched for features: {result.failure}")
            return workload
        features = tuple(f"{name}:{count}" for name, count in result.answer.features.items())
        return replace(workload, features=(*workload.features, *features))

    def _begin(
        self, workload: Workload, spaces: Sequence[SearchSpace], sources: Sources
    ) -> tuple[StudyRow, dict[str, object]]:
        """Return the row of the study, and the settings to store when this process coordinates it."""
        request = self.request
        settings: dict[str, object] = {
            "request": request_digest(request),
            "read": sources,
            "seed": request.seed,
            "factory": request.factory,
            "inputs": [asdict(spec) for spec in request.inputs],
        }
        compiled, packs = compiled_for(self.device)
        hints = self._warm_start(spaces)
        row = self.store.studies.begin(
            request.name, workload, self.device, request.objective, request.serve_as,
            digest([space.digest for space in spaces]), request.seed, settings,
            conditions(request, self.executor, self.toolchain),
            StudyLimits(
                trials=request.trials, budget_s=request.budget_s, compiled_kernels=compiled, packs=packs,
                hints=hints or None,
            ),
        )  # fmt: skip
        return row, settings

    def _warm_start(self, spaces: Sequence[SearchSpace]) -> tuple[HintRecord, ...]:
        """Return hints from other studies; none if a plan in the database cannot be read."""
        try:
            return study_hints(self.request, spaces, self.store)
        except DatabaseError as error:
            self._tell(f"{self.request.name}: no hints from other studies: {error}")
            return ()

    def _hints_of(self, row: StudyRow) -> tuple[Configuration, ...]:
        """Return the hints that a study began with, so that a run that continues it makes the same proposals."""
        if row.start is None or not self.request.warm_start:
            return ()
        return tuple(hint.configuration for hint in row.start.hints or ())

    def _finished_plan(self, row: StudyRow) -> Plan | None:
        """Return the plan of a finished study, also if it was for other weights or under another toolchain."""
        finished = {
            other.uid for other in self.store.studies.list(row.name, row.batch)
            if other.state == "finished" and not asks_more(self.request, other)
            and other.identity.family == row.identity.family
        }  # fmt: skip
        plan = self.store.plans.find(row.identity.plan, row.weights)
        return plan if plan is not None and plan.evidence.study in finished else None

    def usable(self, plan: Plan, workload: Workload) -> Plan | None:
        """Return a stored plan with an artifact that serves the prepared model, built again if needed.

        ``None`` if the artifact that was built again does not pass the gate, or is not faster than the baseline.
        """
        differences = misfits(plan, workload.weights, self.executor.form(), self.toolchain, self.store)
        if not differences:
            return plan
        reasons = ", ".join(f"{part} {stored} instead of {needed}" for part, needed, stored in differences)
        self._tell(f"{plan.name}: rebuilding the stored plan {plan.configuration}: {reasons}")
        return self.rebuild(plan, workload)

    def rebuild(self, plan: Plan, workload: Workload) -> Plan | None:
        """See :meth:`autotune.study.rebuild.StudyRebuild.rebuild`."""
        rebuilding = StudyRebuild(
            store=self.store, executor=self.executor, supply=self.supply, toolchain=self.toolchain,
            seed=self.request.seed, progress=self.progress, check_stop=self._check_stop,
        )  # fmt: skip
        return rebuilding.rebuild(plan, workload)

    @functools.cached_property
    def supply(self) -> KernelSupply:
        """The source of the tuned kernels for builds."""
        device_class = self.device.device_class
        return KernelSupply(self.store, self.executor, device_class, self.toolchain, self._tell, self.stop)

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise StudyInterruptedError(
                f"{self.request.name} was stopped; finished trials are kept", run="the same command, which continues it"
            )


@contextlib.contextmanager
def stoppable(server: WorkerServer) -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an orderly stop: steps are killed, and nothing of them is recorded."""
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
