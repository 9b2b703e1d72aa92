"""The loop of a study: the only place that sees the whole road from a model to its plan."""

import contextlib
import hashlib
import json
import logging
import shutil
import signal
import tempfile
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
from autotune.execute.bench import Bench
from autotune.execute.server import WorkerServer
from autotune.execute.timing import TimeSplit
from autotune.plan import Plan
from autotune.runtime import toolchain as versions
from autotune.space import SearchSpace
from autotune.study_context import StudyContext
from autotune.study_finals import StudyFinals
from autotune.study_lease import coordinating
from autotune.study_memory import (
    artifact_fits,
    asks_more,
    known_outcome,
    outcome,
    package_versions,
    request_digest,
)
from autotune.study_request import Progress, Silent, StudyOutcome, StudyRequest
from autotune.study_search import StudySearch
from autotune.study_space import participants, search_spaces
from autotune.workload import Workload

log = logging.getLogger(__name__)


def run_study(request: StudyRequest, store: Store, progress: Progress | None = None) -> StudyOutcome:
    """Search, or go on searching, for the fastest plan; a finished study answers with its plan and measures nothing.

    Raises StudyInterruptedError on SIGINT or SIGTERM; what was finished is kept and the same call goes on. Raises
    StudyHeldError where another process coordinates the study, StudyTakenOverError once another one does.
    """
    progress = progress or Silent()
    known = known_outcome(request, store)
    if known is not None:
        progress.event("finished", outcome=known)
        return known
    search_spaces(request, None)  # refuses what leaves no candidate before anything is begun
    begin = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="autotune-"))
    try:
        with WorkerServer(folder) as server, stoppable(server) as stop:
            found = Study(request, store, progress, server, folder, stop).run(begin)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
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
        self.bench = Bench(server, folder, self.device, self.split)
        self.toolchain = versions.current(self.device)
        self.server, self.folder = server, folder

    def run(self, begin: float) -> StudyOutcome:
        """The whole road; ``begin`` is when the caller began to wait."""
        workload, sources = self._capture()
        spaces = search_spaces(self.request, workload)
        row, settings = self._begin(workload, spaces, sources)
        with coordinating(self.store, row.uid, lost=self._lost, tell=self._tell, pause=self.stop.wait) as store:
            self._check_stop()
            self.store = store
            store.describe_study(row.uid, settings)
            return self._coordinate(store.study(row.uid), workload, spaces, begin)

    def _coordinate(
        self, row: StudyRow, workload: Workload, spaces: Sequence[SearchSpace], begin: float
    ) -> StudyOutcome:
        if plan := self._finished_plan(row, workload):
            asked = {"trials": self.request.trials, "budget_s": self.request.budget_s}
            self.store.finish_study(row.uid, {**row.timings, "asked": {**row.timings.get("asked", {}), **asked}})
            found = self.store.trials(plan.evidence.get("study", row.uid))
            return outcome(plan, found, cached=True, seconds=time.monotonic() - begin)
        context = StudyContext(
            request=self.request, store=self.store, progress=self.progress, bench=self.bench, stop=self.stop,
            toolchain=self.toolchain, row=row, workload=workload, spaces=spaces,
        )  # fmt: skip
        search = StudySearch(context).run()
        plan = self.finals(context).run()
        end = time.monotonic()
        split = self.split.seconds(begin, end)
        settings = {"trials": self.request.trials, "budget_s": self.request.budget_s, "exhausted": search.exhausted}
        self.store.finish_study(row.uid, {"split": split, "seconds": end - begin, "asked": settings})
        return outcome(plan, self.store.trials(row.uid), cached=False, seconds=end - begin, split=split)

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
        sources: dict[str, Any] = {}
        if request.prepared is not None:
            shutil.copytree(request.prepared, self.bench.model)
        else:
            assert request.factory is not None  # the record refuses a request without either
            answer = self.bench.prepare(request.name, request.batch, request.factory, request.inputs, request.seed)
            sources = {"files": answer["sources"], "packages": package_versions(answer["imported"])}
        workload = self._with_features(self.bench.workload())
        self._check_stop()
        self.progress.event("captured", workload=workload)
        return workload, sources

    def _with_features(self, workload: Workload) -> Workload:
        """The workload with what backends find in its graph; a backend that fails at that finds nothing."""
        looking = [name for name in participants(self.request) if hasattr(registry.backend(name), "features")]
        if not looking:
            return workload
        looked = self.bench.features(looking)
        if looked.failure is not None:
            self.progress.event("message", text=f"{', '.join(looking)}: no look at the graph: {looked.failure}")
            return workload
        found = (looked.value or {})["features"]
        return replace(workload, features=(*workload.features, *(f"{name}:{count}" for name, count in found.items())))

    def _begin(
        self, workload: Workload, spaces: Sequence[SearchSpace], sources: Mapping[str, Any]
    ) -> tuple[StudyRow, dict[str, Any]]:
        """The row of the study, and the settings that it will have once this process coordinates it."""
        request = self.request
        settings = {
            "request": request_digest(request),
            "sources": sources,
            "seed": request.seed,
            "factory": request.factory,
            "inputs": [asdict(spec) for spec in request.inputs],
        }
        digest = hashlib.sha256(json.dumps([space.digest for space in spaces]).encode()).hexdigest()
        row = self.store.begin_study(
            request.name, workload, self.device, request.objective, request.serve_as, digest, request.seed, settings
        )
        return row, settings

    def _finished_plan(self, row: StudyRow, workload: Workload) -> Plan | None:
        """The plan of a study that is finished, or that was finished for other weights of the same structure."""
        rows = [
            other for other in self.store.studies(row.name, row.batch)
            if other.state == "finished" and not asks_more(self.request, other)
            and (other.structure, other.device_class, other.objective, other.serve_as, other.space_digest, other.seed)
            == (row.structure, row.device_class, row.objective, row.serve_as, row.space_digest, row.seed)
        ]  # fmt: skip
        plan = self.store.find_plan(
            workload.structure, row.device_class, self.request.objective, self.request.serve_as, workload.weights
        )
        if plan is not None and plan.evidence.get("study") in {other.uid for other in rows}:
            if artifact_fits(plan, workload.weights, self.toolchain, self.store):
                return plan
            self.progress.event("message", text=f"{plan.name}: rebuilding the stored plan {plan.configuration}")
            return self.rebuild(plan, workload)
        if row.state == "finished":
            self.store.reopen_study(row.uid)
        return None

    def rebuild(self, plan: Plan, workload: Workload) -> Plan | None:
        """Build a stored configuration again and judge it again; ``None`` (search instead) where it does not pass."""
        self.bench.reference()
        ((built, target),) = self.bench.build([plan.configuration], 1)
        self._check_stop()
        if built.failure is None:
            with self.store.artifacts.kept(target) as digest:
                artifact = self.store.artifacts.open(digest)
                built = self.bench.measure(artifact, plan.objective, self.request.seed, check_only=True)
                self._check_stop()
                if built.failure is None:
                    entries = self.toolchain.only(registry.backend(plan.configuration.backend).toolchain)
                    return self.store.replace_plan_artifact(plan.uid, digest, workload.weights, entries)
            self.store.drop_unnamed(digest)
        self.progress.event("message", text=f"{plan.name}: the stored plan does not hold: {built.failure}")
        return None

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
