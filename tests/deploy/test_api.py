"""The Python interface end to end: a module in memory, its plan, and what answers for other weights."""

import pytest
import torch

import autotune
from autotune.errors import ModelError, PlanNotFoundError, RequestError


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(16, 32)
        self.second = torch.nn.Linear(32, 4)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"answer": self.second(torch.relu(self.first(x))) * scale}


def make(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return Net().eval()


INPUTS = {"x": torch.randn(3, 16), "scale": torch.rand(1) + 0.5}
FEW = {"backends": ("eager", "torchscript"), "trials": 4, "budget": "60s"}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("api") / "autotune.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autotune.execute.finals.LIMIT_S", {"cpu": 5.0})
        fast = autotune.optimize(make(0), INPUTS, db=path, **FEW)
    torch.testing.assert_close(fast(**INPUTS), make(0)(**INPUTS), rtol=1e-4, atol=1e-5)
    fast.close()
    return path


def test_the_stored_plan_is_loaded_without_searching(database):
    fast = autotune.load(make(0), INPUTS, db=database)
    fresh = {"x": torch.randn(3, 16), "scale": torch.rand(1)}
    torch.testing.assert_close(fast(fresh["x"], scale=fresh["scale"]), make(0)(**fresh), rtol=1e-4, atol=1e-5)
    assert fast.plan.speedup >= 1.0 and "OptimizedModel" in repr(fast)
    with pytest.raises(ModelError, match="x, scale"):
        fast(fresh["x"])


def test_other_weights_are_rebuilt_and_judged_again_and_never_answered_by_the_old_artifact(database):
    with pytest.raises(PlanNotFoundError, match="no stored plan"):
        autotune.load(make(1), INPUTS, db=database, rebuild=False)
    fast = autotune.load(make(1), INPUTS, db=database)
    torch.testing.assert_close(fast(**INPUTS), make(1)(**INPUTS), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        autotune.load(make(0), INPUTS, db=database, rebuild=False)(**INPUTS), make(0)(**INPUTS), rtol=1e-4, atol=1e-5
    )


def test_another_structure_or_a_stricter_caller_finds_nothing(database):
    with pytest.raises(PlanNotFoundError, match=r"autotune\.optimize"):
        autotune.load(make(0), {"x": torch.randn(5, 16), "scale": torch.rand(1)}, db=database)
    with pytest.raises(PlanNotFoundError):
        autotune.load(make(0), INPUTS, db=database, objective=autotune.Objective(signal_error=1e-6))


@pytest.mark.parametrize(
    ("inputs", "options", "error"),
    [
        ({"y": torch.ones(3)}, {}, ModelError),
        (INPUTS, {"budget": "0s"}, RequestError),
        (INPUTS, {"trials": 0}, RequestError),
    ],
)
def test_wrong_requests_are_refused(tmp_path, inputs, options, error):
    with pytest.raises(error):
        autotune.tune(make(0), inputs, db=str(tmp_path / "a.db"), **options)
