"""A stored trial built and measured again, outside the database, with real workers."""

import io
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from autotune import registry
from autotune.database.store import Store
from autotune.errors import DeviceError, RequestError
from autotune.execute.executor import Executor
from autotune.execute.server import WorkerServer
from autotune.execute.timing import TimeSplit
from autotune.model.inputs import InputSpec
from autotune.records.configuration import Configuration
from autotune.records.trial import Failure
from autotune.runtime import discovery
from autotune.runtime import toolchain as versions
from autotune.study.reproduce import device_of, reproduce
from tests.database.records import DEVICE, begin

TOY = f"{Path(__file__).parents[1]}/toy.py:make"
ENDS = {"segfault": ("build", "crash"), "inaccurate": ("check", "inaccurate"), "none": (None, None)}


@pytest.fixture(scope="module")
def studied(misbehaving, tmp_path_factory):
    """The row of a study of the toy model, and a trial for each fault as it would have ended."""
    folder, device = tmp_path_factory.mktemp("study"), discovery.cpu()
    inputs = (InputSpec(name="input", shape=("batch", 16)),)
    with WorkerServer(folder) as server:
        executor = Executor(server, folder, device, TimeSplit())
        executor.prepare("toy", 2, TOY, inputs, 0)
        workload = executor.workload()
    settings = {"factory": TOY, "inputs": [asdict(spec) for spec in inputs]}
    toolchain = versions.current(device).only(registry.backend(misbehaving).toolchain).digest
    path, trials = folder / "autotune.db", {}
    with Store.open(str(path)) as store:
        row = begin(store, "toy", workload=workload, device=device, settings=settings)
        for fault, (stage, kind) in ENDS.items():
            configuration = Configuration.of(misbehaving, {"fault": fault, "precision": "fp32"})
            claimed = store.trials.claim(row.uid, configuration, toolchain)
            failure = Failure(stage=stage, kind=kind, detail="as it was told then") if kind else None
            trials[fault] = replace(
                claimed, state="failed" if failure else "complete", failure=failure, latency_ms=None if failure else 1.0
            )
            store.trials.finish(trials[fault])
        return store.studies.get(row.uid), trials, path


@pytest.mark.parametrize("fault", ENDS)
def test_a_trial_ends_as_it_did_and_nothing_is_written(studied, fault):
    row, trials, path = studied
    before, output = path.read_bytes(), io.StringIO()
    with Store.open(str(path)) as store:
        found = reproduce(row, trials[fault], store, discovery.cpu(), output)
    assert found.same and found.notes == ()
    assert (found.failure is None) == (fault == "none")
    assert (found.latency_ms is not None) == (fault == "none")
    assert f"building with fault {fault}" in output.getvalue()
    assert path.read_bytes() == before
    document = found.as_dict()
    assert document["same"] is True and document["trial"]["number"] == trials[fault].number


def test_what_is_not_as_it_was_is_told(studied):
    row, trials, path = studied
    other = replace(trials["segfault"], configuration=trials["none"].configuration, toolchain="older")
    with Store.open(str(path)) as store:
        found = reproduce(replace(row, weights="other"), other, store, discovery.cpu(), io.StringIO())
        with pytest.raises(RequestError, match="now makes a model of another structure"):
            reproduce(replace(row, structure="other"), trials["none"], store, discovery.cpu(), io.StringIO())
    assert not found.same and found.failure is None
    assert found.notes[0] == "the weights of the model have changed since the trial"
    assert found.notes[1].startswith("the toolchain has changed since the trial: now torch")


def test_a_study_of_tensors_given_in_python_says_that_it_cannot(studied):
    row, trials, path = studied
    given = replace(row, settings={"factory": None, "inputs": []})
    asked = pytest.raises(RequestError, match="tensors that were given in Python; they are not stored")
    with Store.open(str(path)) as store, asked:
        reproduce(given, trials["none"], store, discovery.cpu(), io.StringIO())


def test_a_trial_of_another_device_class_is_refused(tmp_path):
    with Store.open(str(tmp_path / "a.db")) as store:
        row = begin(store)
    assert device_of(row, [discovery.cpu(), DEVICE]) == DEVICE
    with pytest.raises(DeviceError, match=r"nvidia-h200/whole/700w"):
        device_of(row, [discovery.cpu()])
