"""The Python interface end to end: a module in memory, its plan, and what answers for other weights."""

import dataclasses
import multiprocessing
import random

import numpy
import pytest
import torch
from sqlalchemy import select

import autotune
from autotune.database.schema import PlanTable
from autotune.database.store import Store
from autotune.deploy import api
from autotune.errors import ArtifactError, ModelError, PlanNotFoundError, RequestError, UndecidedError
from autotune.records.configuration import Configuration


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(16, 32)
        self.second = torch.nn.Linear(32, 4)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.relu(self.first(x))
        return {"second": self.second(hidden) * scale, "hidden": hidden}


@dataclasses.dataclass
class Answer:
    second: torch.Tensor
    loss: torch.Tensor | None
    hidden: torch.Tensor


class Renamed(Net):
    """The same graph with another form of the answer."""

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> Answer:  # type: ignore[override]
        found = super().forward(x, scale=scale)
        return Answer(found["second"], None, found["hidden"])


def make(seed: int, kind: type[Net] = Net) -> torch.nn.Module:
    torch.manual_seed(seed)
    return kind().eval()


DRAW = torch.Generator().manual_seed(3)  # the same in every process
INPUTS = {"x": torch.randn(3, 16, generator=DRAW), "scale": torch.rand(1, generator=DRAW) + 0.5}
FEW = {"backends": ("eager", "torchscript"), "trials": 4, "budget": "60s"}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("api") / "autotune.db")
    fast = autotune.optimize(make(0), INPUTS, db=path, **FEW)
    check(fast, make(0))
    fast.close()
    return path


def check(fast, model, count: int = 3) -> None:
    """The plan answers like the model on fresh inputs, in the same form."""
    for _ in range(count):
        fresh = {"x": torch.randn(3, 16), "scale": torch.rand(1) + 0.5}
        answer, expected = fast(**fresh), model(**fresh)
        assert type(answer) is type(expected)
        parts = answer.items() if isinstance(answer, dict) else vars(answer).items()
        others = expected.items() if isinstance(expected, dict) else vars(expected).items()
        for (name, part), (other_name, other) in zip(parts, others, strict=True):
            assert name == other_name
            torch.testing.assert_close(part, other, rtol=1e-4, atol=1e-5) if other is not None else None
            assert (part is None) == (other is None)


def test_the_stored_plan_is_loaded_without_searching_and_says_what_that_cost(database):
    fast = autotune.load(make(0), INPUTS, db=database)
    check(fast, make(0))
    assert repr(fast).startswith(f"<OptimizedModel net: {fast.plan.configuration}")
    assert set(fast.seconds) == {"capture", "weights", "look_up", "open", "verify"}
    assert "verify" not in autotune.load(make(0), INPUTS, db=database, verify=False).seconds
    with pytest.raises(ModelError, match="no scale"):
        fast(INPUTS["x"])
    with pytest.raises(ModelError, match=r"x .*\n.*float32\[2, 16\]"):
        fast(INPUTS["x"][:2], scale=INPUTS["scale"])


def test_other_weights_are_rebuilt_and_judged_again_and_never_answered_by_the_old_artifact(database):
    with pytest.raises(PlanNotFoundError, match=r"no stored plan.*\n.*weights: requested"):
        autotune.load(make(1), INPUTS, db=database, rebuild=False)
    check(autotune.load(make(1), INPUTS, db=database), make(1))
    check(autotune.load(make(0), INPUTS, db=database, rebuild=False), make(0))


def test_another_form_of_the_answer_is_the_models_own(database):
    with pytest.raises(PlanNotFoundError, match="form of the answer"):
        autotune.load(make(0, Renamed), INPUTS, db=database, rebuild=False)
    check(autotune.load(make(0, Renamed), INPUTS, db=database), make(0, Renamed))
    check(autotune.load(make(0), INPUTS, db=database, rebuild=False), make(0))
    check(autotune.load(make(0, Renamed), INPUTS, db=database, rebuild=False), make(0, Renamed))


def test_a_miss_says_what_differs_with_both_values(database):
    with pytest.raises(PlanNotFoundError, match=r"autotune\.optimize") as missed:
        autotune.load(make(0), {"x": torch.randn(5, 16), "scale": torch.rand(1)}, db=database, name="net")
    assert "batch: requested 5, the plan has 3" in str(missed.value) and "structure: requested" in str(missed.value)
    with pytest.raises(PlanNotFoundError, match=r"constraint signal_error: requested 1e-06, the plan has 0\.02"):
        autotune.load(make(0), INPUTS, db=database, constraints={"signal_error": 1e-6})
    with pytest.raises(PlanNotFoundError, match=r"objective: requested memory, the plan has latency_p50"):
        autotune.load(make(0), INPUTS, db=database, objective="memory")
    with pytest.raises(PlanNotFoundError, match=r"serving format: requested onnx, the plan has any"):
        autotune.load(make(0), INPUTS, db=database, serve_as="onnx")
    looser = autotune.load(make(0), INPUTS, db=database, constraints={"signal_error": {"default": 0.5, "hidden": 0.1}})
    check(looser, make(0))


def test_load_leaves_the_random_state_the_model_and_the_inputs_as_they_were(database):
    model, inputs = make(0), {name: tensor.clone() for name, tensor in INPUTS.items()}
    model.first.train()
    torch.manual_seed(41), random.seed(41), numpy.random.seed(41)
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    autotune.load(model, inputs, db=database)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert numpy.random.get_state()[1].tolist() == states[2] and torch.initial_seed() == 41
    assert model.first.training and not model.training
    assert all(torch.equal(inputs[name], INPUTS[name]) for name in inputs)


def test_a_plan_that_does_not_answer_like_the_model_is_not_handed_out(database, tmp_path):
    """The last line of defence: a plan of the very same key whose artifact holds something else."""
    with Store.open(database) as store:
        plan = next(one for one in store.plans.list() if one.weights == _weights(make(0)) and one.form)
        with store.artifacts.verified(plan.artifact) as folder:
            changed = tmp_path / "changed"
            changed.mkdir()
            for file in folder.iterdir():
                (changed / file.name).write_bytes(file.read_bytes())
            other = autotune.load(make(7), INPUTS, db=database).plan
            with store.artifacts.verified(other.artifact) as wrong:
                for file in wrong.iterdir():
                    if file.name not in ("artifact.json", "settings.json"):
                        (changed / file.name).write_bytes(file.read_bytes())
        digest = store.artifacts.add(changed)
        with store.transactions.writing() as session:
            row = session.scalars(select(PlanTable).where(PlanTable.uid == plan.uid)).one()
            record, row.artifact, row.record = dict(row.record), digest, {**row.record, "artifact": digest}
    try:
        with pytest.raises(ArtifactError, match=r"does not answer like the model.*\n.*output second is off by"):
            autotune.load(make(0), INPUTS, db=database)
        assert autotune.load(make(0), INPUTS, db=database, verify=False).plan.uid == plan.uid
    finally:
        with Store.open(database) as store, store.transactions.writing() as session:
            row = session.scalars(select(PlanTable).where(PlanTable.uid == plan.uid)).one()
            row.artifact, row.record = record["artifact"], record


def _weights(model: torch.nn.Module) -> str:
    from autotune.model.capture import capture

    return capture("net", 3, model, INPUTS).workload.weights


def _load(database: str, seed: int, answers: "multiprocessing.Queue") -> None:
    fast = autotune.load(make(seed), INPUTS, db=database)
    answers.put((fast.plan.uid, "rebuild" in fast.seconds, fast(**INPUTS)["second"].tolist()))


def test_processes_that_need_the_same_rebuild_make_it_once(database):
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    processes = [spawn.Process(target=_load, args=(database, 11, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=200) for _ in processes]
    for process in processes:
        process.join()
    assert len({uid for uid, _, _ in found}) == 1
    with Store.open(database) as store:
        assert sum(plan.weights == _weights(make(11)) for plan in store.plans.list()) == 1
    torch.testing.assert_close(torch.tensor(found[0][2]), make(11)(**INPUTS)["second"], rtol=1e-4, atol=1e-5)


def test_undecided_finals_leave_the_earlier_plan_in_force_or_are_an_error(database, monkeypatch, caplog):
    known = autotune.tune(make(0), INPUTS, db=database, **FEW)
    undecided = {"status": "undecided", "reason": "busy host", "run": "the same call"}

    def searched(plan):
        monkeypatch.setattr(api, "_searched", lambda *_: dataclasses.replace(known, plan=plan, **undecided))

    monkeypatch.setattr(api, "_usable", not_stored)
    searched(known.plan)
    check(autotune.optimize(make(0), INPUTS, db=database), make(0))
    assert "could not decide (busy host), so the earlier plan is used; run again: the same call" in caplog.text
    with pytest.raises(UndecidedError, match=r"could not decide\n  found: busy host\n.*\n  run next: the same call"):
        autotune.optimize(make(1), INPUTS, db=database)  # the earlier plan has other weights in it
    searched(None)
    with pytest.raises(UndecidedError):
        autotune.optimize(make(0), INPUTS, db=database)


def not_stored(*_, **__):
    raise PlanNotFoundError("no stored plan answers")


def test_a_plan_that_is_asked_for_with_the_same_inputs_is_cached(database):
    told = []

    class Tell:
        def event(self, kind, **data):
            told.append(kind)

    again = autotune.tune(make(0), INPUTS, db=database, progress=Tell(), **FEW)
    assert again.cached and "trial_started" not in told
    assert again.plan.configuration == Configuration.from_dict(again.plan.configuration.as_dict())


@pytest.mark.parametrize(
    ("inputs", "options", "error"),
    [
        ({"y": torch.ones(3)}, {}, ModelError),
        (INPUTS, {"budget": "0s"}, RequestError),
        (INPUTS, {"budget": None}, RequestError),
        (INPUTS, {"trials": 0}, RequestError),
        (INPUTS, {"bugdet": "1s"}, TypeError),
        (INPUTS, {"constraints": {"signal_eror": 0.1}}, RequestError),
        (INPUTS, {"constraints": {"signal_error": 0.0}}, RequestError),
        (INPUTS, {"objective": "latncy"}, RequestError),
        (INPUTS, {"serve_as": "tensorflow"}, RequestError),
        (INPUTS, {"objective": autotune.Objective(), "constraints": {}}, RequestError),
    ],
)
def test_wrong_requests_are_refused(tmp_path, inputs, options, error):
    for call in (autotune.tune, autotune.optimize):
        with pytest.raises(error, match=next(iter(options), "y") if error is not ModelError else None):
            call(make(0), inputs, db=str(tmp_path / "a.db"), **options)


def test_where_nothing_was_ever_tuned_there_is_no_plan_and_no_database_is_made(tmp_path):
    with pytest.raises(PlanNotFoundError, match=r"no tuning database at .*none\.db"):
        autotune.load(make(0), INPUTS, db=str(tmp_path / "none.db"))
    assert list(tmp_path.iterdir()) == []
