"""Twelve random programs in the tests, two hundred in ``studies/identity``; and runners that answer wrongly."""

import json
import random

import pytest
import torch

from autotune.errors import ModelError
from autotune.programs.drawn import odd_layers
from autotune.programs.drawn.answers import MORE, Answer
from autotune.programs.drawn.models import Input, ModelSpec, Step
from autotune.programs.random_models import judge, odd_models, same_answer
from autotune.programs.random_models import main as random_models


@pytest.mark.timeout(900)  # half a minute on two free cores
def test_twelve_programs_answer_like_their_models_or_are_refused(tmp_path, capsys):
    file = tmp_path / "models.json"
    backends = "eager,torchscript,onnxruntime"
    given = ["--models", "12", "--calls", "6", "--workers", "2", "--backends", backends, "--json", str(file)]
    assert random_models.main(given) == 0
    document = json.loads(file.read_text())
    assert document["models"] == 12 and document["environment"]["versions"]["torch"]
    rows = {row["check"]: row["raw"] for row in document["checks"]}
    assert rows["answers of eager"]["models"] >= 7 and rows["answers of onnxruntime"]["calls"] >= 30
    assert "all 5 passed" in capsys.readouterr().out


def test_a_backend_that_is_not_known_is_refused(capsys):
    assert random_models.main(["--models", "1", "--backends", "telepathy"]) == 2
    assert "telepathy" in capsys.readouterr().err


def scaled(outputs):
    return tuple(one * 1.1 if one.is_floating_point() else one for one in outputs)


def narrower(outputs):
    return tuple(one.half() if one.dtype is torch.float32 else one for one in outputs)


@pytest.mark.parametrize("is_promoted", [True, False])
@pytest.mark.parametrize(("cheat", "said"), [(scaled, "differs by"), (narrower, "torch.float16")])
def test_a_wrong_runner_is_found(monkeypatch, capsys, cheat, said, is_promoted):
    from autotune.deploy.model import OptimizedModel

    class Wrong(OptimizedModel):
        def __init__(self, plan, runner, names, form):
            super().__init__(plan, runner, names, form)
            self._runner = lambda *inputs: cheat(runner(*inputs))

        def close(self):
            return None

    monkeypatch.setattr("autotune.deploy.model.OptimizedModel", Wrong)
    if is_promoted:
        monkeypatch.setattr(judge, "_far_off", lambda *given: "")
    assert random_models.main(["--models", "2", "--calls", "2", "--workers", "1", "--backends", "eager"]) == 1
    shown = capsys.readouterr()
    assert (said in shown.err) == is_promoted and "FAIL" in shown.out


def test_too_many_refusals_break_the_promise(monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise ModelError("no", found="nothing", expected="something")

    monkeypatch.setattr("autotune.deploy.prepared.prepare", refuse)
    assert random_models.main(["--models", "3", "--workers", "1", "--backends", "eager"]) == 1
    assert "FAIL" in capsys.readouterr().out


def of_steps(*operators, answer=None):
    steps = tuple(Step(operator=name, attributes={}) for name in operators)
    return ModelSpec(inputs=(Input(name="x", shape=(2, 6)),), steps=steps, answer=answer or Answer())


@pytest.mark.parametrize("name", [*odd_layers.RANDOM, *odd_layers.VALUES, "trained norm", "counter", "counted answer"])
def test_each_oddity_that_no_plan_can_have_is_refused(monkeypatch, name):
    program = odd_models.Program(spec=of_steps(name), may_be_refused=True)
    monkeypatch.setattr(judge, "draw_program", lambda rng: program)
    assert judge.judge("0", ("eager",), 2).refusal


@pytest.mark.parametrize("name", [*odd_layers.WRITING, *odd_layers.HARMLESS])
def test_each_harmless_oddity_is_accepted_and_answered(monkeypatch, name):
    program = odd_models.Program(spec=of_steps(name))
    monkeypatch.setattr(judge, "draw_program", lambda rng: program)
    verdict = judge.judge("0", ("eager", "torchscript"), 4)
    assert (verdict.refusal, verdict.wrong, verdict.failed) == ("", {}, {})
    assert verdict.calls == {"eager": 4, "torchscript": 4}


@pytest.mark.parametrize("name", MORE)
def test_each_further_output_is_given_as_the_model_gives_it(monkeypatch, name):
    step = Step(operator="linear", attributes={"out_features": 6, "bias": True})
    drawn = ModelSpec(inputs=(Input(name="x", shape=(2, 6)),), steps=(step,), answer=Answer(form="dict", more=(name,)))
    monkeypatch.setattr(judge, "draw_program", lambda rng: odd_models.Program(spec=drawn))
    verdict = judge.judge("0", ("eager", "torchscript"), 4)
    assert (verdict.refusal, verdict.wrong, verdict.failed) == ("", {}, {})


def test_programs_are_the_same_for_the_same_seed():
    one, same, other = (odd_models.draw_program(random.Random(seed)) for seed in ("a", "a", "b"))
    assert one == same and one != other


@pytest.mark.parametrize(
    ("expected", "found", "said"),
    [
        ((1, None), [1, None], "list, not a tuple"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "keys"),
        ((torch.ones(2),), (torch.ones(2), None), "2 parts, not 1"),
        (torch.ones(2), torch.ones(2).double(), "float64"),
        (torch.ones(2), torch.ones(2) * 1.03, "of its size"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "1 of 2 whole numbers"),
        (torch.tensor([1.0, float("nan")]), torch.ones(2), "not finite"),
        (True, 1, "int, not a bool"),
    ],
)
def test_what_differs_is_named(expected, found, said):
    assert said in " ".join(same_answer.differences(expected, found))
    assert list(same_answer.differences(expected, expected)) == []


def die_in_torchscript():
    import os

    from autotune.backends.torchscript import TorchScriptBackend

    TorchScriptBackend.build = lambda *given: os._exit(11)


def test_a_backend_that_kills_its_process_takes_nothing_else_with_it():
    from autotune.programs.random_models.processes import DIED, side_by_side

    plain = [seed for seed in map(str, range(30)) if not odd_models.draw_program(random.Random(seed)).may_be_refused][
        :2
    ]
    tasks = [(seed, ("eager", "torchscript"), 2) for seed in plain]
    verdicts = list(side_by_side(tasks, 2, die_in_torchscript))
    assert sorted(one.seed for one in verdicts) == sorted(plain)
    assert all((one.failed, one.calls, one.wrong) == ({"torchscript": DIED}, {"eager": 2}, {}) for one in verdicts)
