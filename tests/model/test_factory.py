import pytest
import torch

from autotune.errors import ModelError
from autotune.model.factory import absolute, make_module, resolve

SOURCE = """
import torch

def make():
    return torch.nn.Dropout()

def draw():
    return torch.nn.Linear(3, 3)

def text():
    return "no module"

def fails():
    raise ValueError("no such size")

NOT_CALLABLE = 3
"""


@pytest.fixture
def models(tmp_path):
    (tmp_path / "models.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("import no_such_package_at_all")
    return tmp_path


def test_a_factory_makes_a_module_ready_for_inference_under_its_seed(models):
    assert make_module("models.py:make", 0, models).training is False
    first, again, other = (make_module("models.py:draw", seed, models) for seed in (1, 1, 2))
    assert torch.equal(first.weight, again.weight) and not torch.equal(first.weight, other.weight)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("models.py:missing", "draw, fails, make, text"),
        ("models.py:NOT_CALLABLE", "no callable"),
        ("nothing.py:make", "is not there"),
        ("broken.py:make", "no_such_package_at_all"),
        ("no.such.package:make", "failed"),
        ("models.py", "path.py:callable"),
        ("models.py:text", "returned no module"),
        ("models.py:fails", "ValueError: no such size"),
    ],
)
def test_what_cannot_be_made_is_one_clear_error(models, spec, words):
    with pytest.raises(ModelError, match=words):
        make_module(spec, 0, models)


def test_paths_become_absolute_and_packages_stay(models):
    assert absolute("models.py:make", models) == f"{models}/models.py:make"
    assert absolute("torch.nn:Linear", models) == "torch.nn:Linear"
    assert resolve("torch.nn:Linear") is torch.nn.Linear
