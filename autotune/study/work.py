"""The work of models whose studies an earlier version finished, which did not count it: add_work."""

import logging

from autotune.database.store import Store
from autotune.errors import AutotuneError
from autotune.execute.executor import Executor
from autotune.execute.server import WorkerServer
from autotune.execute.timing import TimeSplit
from autotune.progress import Progress, message_sender
from autotune.records.workload import Workload
from autotune.scratch import ScratchFolder
from autotune.study.request import StudyOutcome, StudyRequest

log = logging.getLogger(__name__)

TRIED = "work_counted"
"""The setting of a study whose work was to be counted: whether it could be. It is tried once."""


def add_work(request: StudyRequest, answered: StudyOutcome, store: Store, progress: Progress) -> None:
    """Count the work of a model whose finished study answered from the database, if that lacks it; only once.

    Nothing is measured, and the answer stays as it is: a model that cannot be captured here is left without a count.
    """
    plan = answered.plan
    if plan is None or plan.evidence.study is None or not store.studies.lacks_work(plan.structure, plan.weights):
        return
    row = store.studies.get(plan.evidence.study)
    if TRIED in row.settings or store.read_only:
        return
    progress.event("message", text=f"{request.name}: an earlier version did not count its work; it is counted, once")
    try:
        workload = _captured(request, progress)
    except AutotuneError as error:
        log.info("the work of %s is not counted: %s", request.name, error)
        workload = None
    same = workload is not None and (workload.structure, workload.weights) == (plan.structure, plan.weights)
    if workload is not None and same:
        store.studies.add_work(workload)
    store.studies.describe(row.uid, {**row.settings, TRIED: same})


def _captured(request: StudyRequest, progress: Progress) -> Workload | None:
    if request.factory is None:
        return None
    with (
        ScratchFolder("work") as folder,
        WorkerServer(folder, work=request.name, tell=message_sender(progress)) as server,
    ):
        executor = Executor(server, folder, request.device, TimeSplit())
        executor.prepare(request.name, request.batch, request.factory, request.inputs, request.seed)
        return executor.workload()
