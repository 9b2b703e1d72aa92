"""Whole studies: what is cached, what is taken over, and what is built again, seen from what a study did."""

import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

from autotune.database.store import Store
from autotune.errors import RequestError
from autotune.model.inputs import InputSpec
from autotune.records.objective import Metric, Objective
from autotune.runtime import discovery
from autotune.study.request import StudyRequest
from autotune.study.study import run_study

TOY = f"{Path(__file__).parents[1]}/toy.py"
MODEL = """
from pathlib import Path
import torch

def net():
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.GELU(), torch.nn.Linear(16, 3))

def make():
    made = net()
    made.load_state_dict(torch.load(Path(__file__).with_name("weights.pt")))
    return made
"""
METRIC = """
def close(outputs, references):
    return max(float((o["output"] - r["output"]).abs().max()) for o, r in zip(outputs, references))
"""


ARGUMENTS = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("must")
parser.parse_args()
"""


class Recorder:
    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.said: list[str] = []

    def event(self, kind, **data):
        self.kinds[kind] += 1
        if kind == "message":
            self.said.append(data["text"])


def weights(folder, seed):
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.GELU(), torch.nn.Linear(16, 3))
    torch.save(net.state_dict(), folder / "weights.pt")
    return net.eval()


def rows(folder, seed):
    numpy.savez(folder / "rows.npz", input=numpy.random.default_rng(seed).standard_normal((64, 6), dtype=numpy.float32))


@pytest.fixture
def request_(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "metric.py").write_text(METRIC)
    weights(tmp_path, 0), rows(tmp_path, 0)
    return StudyRequest(
        name="net", batch=2, device=discovery.cpu(), factory=f"{tmp_path}/model.py:make", backends=("torchscript",),
        inputs=(InputSpec(name="input", shape=("batch", 6), file=str(tmp_path / "rows.npz")),),
        objective=Objective(metrics=(Metric(function=f"{tmp_path}/metric.py:close", at_most=0.5),)),
        precisions=("fp32",), trials=3,
    )  # fmt: skip


def ran(request, store):
    recorder = Recorder()
    return run_study(request, store, recorder), recorder


def test_cached_is_said_only_if_weights_inputs_and_metrics_are_the_same(request_, tmp_path):
    with Store.open(str(tmp_path / "autotune.db")) as store:
        first, _ = ran(request_, store)
        again, did = ran(request_, store)
        assert again.cached and again.plan.uid == first.plan.uid and set(did.kinds) == {"finished"}

        net = weights(tmp_path, 1)
        rebuilt, did = ran(request_, store)
        assert not rebuilt.cached and not did.kinds["trial_started"] and "weights" in " ".join(did.said)
        assert rebuilt.plan.weights != first.plan.weights
        from autotune.deploy.model import open_plan

        x = torch.randn(2, 6)
        torch.testing.assert_close(open_plan(rebuilt.plan, store)(x), net(x), rtol=1e-4, atol=1e-5)
        assert ran(request_, store)[0].cached

        rows(tmp_path, 1)
        other, did = ran(request_, store)
        assert not other.cached and did.kinds["trial_started"], "timed and judged on other inputs"

        (tmp_path / "metric.py").write_text(METRIC.replace("max(float", "0.5 * max(float"))
        stricter, did = ran(request_, store)
        assert not stricter.cached and did.kinds["trial_started"], "judged by another metric"
        codes = {study.objective.metrics[0].code for study in store.studies.list("net")}
        assert len(codes) == 2 and all(codes)


def test_a_metric_that_the_model_itself_cannot_pass_is_refused_before_anything_is_built(request_, tmp_path):
    metric = Metric(function=f"{tmp_path}/metric.py:close", at_least=1.0)
    recorder = Recorder()
    with (
        Store.open(str(tmp_path / "autotune.db")) as store,
        pytest.raises(RequestError, match=r"metric .*:close refuses the model's own answers"),
    ):
        run_study(replace(request_, objective=Objective(metrics=(metric,))), store, recorder)
    assert not recorder.kinds["trial_finished"]


def test_a_module_that_fails_as_the_baseline_does_not_cost_the_study(tmp_path):
    request = StudyRequest(
        name="once", batch=2, device=discovery.cpu(), factory=f"{TOY}:once", backends=("torchscript",), trials=3,
        inputs=(InputSpec(name="input", shape=("batch", 16)),), precisions=("fp32",),
    )  # fmt: skip
    with Store.open(str(tmp_path / "autotune.db")) as store:
        outcome, did = ran(request, store)
        failed = store.trials.of_study(outcome.plan.evidence.study, failed=True)
    assert failed and all(re.search("only once", str(trial.failure)) for trial in failed)
    assert any("captured graph is the baseline instead" in text for text in did.said)
    base = next(one for one in outcome.finalists if one.is_baseline)
    assert base.configuration["form"] == "graph" and outcome.plan.speedup >= 1.0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import sys; sys.exit(3)", "SystemExit|sys.exit|ends the program"),
        (ARGUMENTS, "argparse|SystemExit"),
        ("import no_such_module_here", "no_such_module_here"),
        ("def make(): raise KeyError('weights')", "weights"),
        ("import os\ndef make(): os.abort()", "killed by SIGABRT|crash"),
    ],
)
def test_a_model_that_cannot_be_made_is_refused_at_once_for_its_own_reason(tmp_path, body, words):
    (tmp_path / "model.py").write_text(body)
    request = StudyRequest(
        name="bad", batch=2, device=discovery.cpu(), factory=f"{tmp_path}/model.py:make", backends=("torchscript",),
        inputs=(InputSpec(name="input", shape=("batch", 16)),),
    )  # fmt: skip
    begin = time.monotonic()
    with Store.open(str(tmp_path / "autotune.db")) as store, pytest.raises(RequestError, match=words) as refused:
        run_study(request, store)
    assert "autotune doctor" not in str(refused.value) and time.monotonic() - begin < 60
