"""A plug-in of version 0.1 runs unchanged: installed as a distribution, found, tuned, explained and deployed."""

import os
import shutil
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch

import autotune
from autotune import registry
from autotune.database.store import Store
from autotune.model.factory import make_module
from autotune.model.inputs import InputSpec
from autotune.records.device import Device
from autotune.renamed import NEW_METHODS
from autotune.report.explain import explanation
from autotune.study.request import StudyRequest
from autotune.study.study import run_study

CPU = Device(kind="cpu", name="AMD EPYC", uuid="cpu-1", cores=2)
PLUGIN = Path(__file__).parent / "plugin_of_0_1"
OLD_MODULES = ("configuration", "device", "kernel_problem", "space", "workload")

MODEL = """
    import time, torch

    class Slow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(12, 6)

        def forward(self, input):
            time.sleep(0.02)  # in no graph, so that a graph is always faster
            return self.layer(input)

    def make():
        torch.manual_seed(0)
        return Slow()
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The folder of installed packages that has the plug-in, also for processes that are started."""
    folder = shutil.copytree(PLUGIN, tmp_path / "site")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    for module in ("graph_replay", *(f"autotune.{name}" for name in OLD_MODULES)):
        monkeypatch.delitem(sys.modules, module, raising=False)
    registry.refresh()
    yield folder
    monkeypatch.undo()
    sys.modules.pop("graph_replay", None)
    registry.refresh()


def test_it_loads_under_its_name_and_each_old_name_is_reported_at_the_plugin(site):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        replay = registry.backend("graph_replay")
    assert registry.broken() == {}
    reported = [warning for warning in caught if issubclass(warning.category, DeprecationWarning)]
    assert {warning.filename for warning in reported} == {str(site / "graph_replay.py")}
    texts = [str(warning.message) for warning in reported]
    for old in OLD_MODULES:
        assert sum(text.startswith(f"autotune.{old} is now ") for text in texts) == 1
    for old, new in NEW_METHODS.items():
        assert sum(f"GraphReplay.{old} of a backend is now {new}" in text for text in texts) == 1
    assert registry.finding_features(["graph_replay"]) == {"graph_replay": replay}
    assert registry.explaining("graph_replay") is replay
    assert registry.tuning_kernels() == ("native", "graph_replay")
    assert registry.kernels("graph_replay") is sys.modules["graph_replay"].BACKEND.kernels
    assert not registry.is_baseline(replay.space(CPU, None, has_factory=True).defaults[0], has_factory=True)


def test_it_is_tuned_explained_and_deployed(site, tmp_path, cpu, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("autotune.execute.finals.LIMIT_S", {"cpu": 5.0})
    monkeypatch.setattr("autotune.execute.finals.PROCESSES", {"cpu": 2})
    (tmp_path / "model.py").write_text(textwrap.dedent(MODEL))
    factory = f"{tmp_path / 'model.py'}:make"
    request = StudyRequest(
        name="replayed", batch=2, device=cpu, factory=factory, inputs=(InputSpec(name="input", shape=("batch", 12)),),
        backends=("graph_replay",), trials=2, budget_s=120.0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with Store.open(str(tmp_path / "autotune.db")) as store:
            plan = run_study(request, store).plan
            assert plan.configuration.backend == "graph_replay" and plan.configuration["kernels"] == "tuned"
            assert len(plan.kernels) == 64, "its build was handed the kernel that was timed for its problem"
            assert explanation(plan, store)["graph"]["nodes_after"] == 3
        module, x = make_module(factory, 0), torch.randn(2, 12)
        model = autotune.load(module, (x,), device="cpu", db=str(tmp_path / "autotune.db"))
        torch.testing.assert_close(model(x), module(x))
