import random
import sys
from pathlib import Path

import numpy
import pytest
import torch

from autotune.errors import ModelError
from autotune.model.factory import absolute, make_module, resolve, usable

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


def made(folder, body, **more):
    """The module of a factory whose body is given."""
    (folder / "one.py").write_text(f"import os, random, sys\nimport numpy, torch\n{body}\n")
    return make_module("one.py:make", 3, folder, **more)


ENDED = "under if __name__ == '__main__'"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "sys.exit('no arguments')\ndef make(): pass",
            ["importing", "ended the program", "no arguments", "line 3", ENDED],
        ),
        ("def make():\n    sys.exit(4)", ["factory", "ended the program", "SystemExit: 4", "line 4", ENDED]),
        (
            "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--data', required=True)\n"
            "parser.parse_args()\ndef make(): pass",
            ["importing", "required: --data", "line 6", ENDED],
        ),
        ("class Odd(BaseException): pass\ndef make():\n    raise Odd('so it is')", ["Odd: so it is", "line 5"]),
        ("class Odd(BaseException): pass\nraise Odd", ["importing", "Odd", "line 4"]),
        ("def make(:", ["importing", "SyntaxError", "line 3"]),
        ("def make():\n    raise ValueError('first\\nsecond')", ["ValueError: first (", "line 4"]),
        ("def make():\n    return torch.nn.Linear(2, 2)(torch.ones(3))", ["RuntimeError", "line 4"]),
        ("from ..above import x\ndef make(): pass", ["relative import", "__init__.py"]),
    ],
)
def test_whatever_a_file_does_is_one_error_with_its_place(models, body, words):
    with pytest.raises(ModelError) as caught:
        made(models, body)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "doctor" not in text and "second" not in text


def test_ctrl_c_is_no_error_of_the_model(models):
    with pytest.raises(KeyboardInterrupt):
        made(models, "def make():\n    raise KeyboardInterrupt")


def test_a_command_line_without_required_arguments_is_empty(models):
    arguments = list(sys.argv)
    body = (
        "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--width', type=int, default=5)\n"
        "width = parser.parse_args().width\ndef make():\n    assert sys.argv == [__file__]\n    sys.argv.append('x')\n"
        "    return torch.nn.Linear(width, 1)"
    )
    assert made(models, body).in_features == 5
    assert sys.argv == arguments


def test_every_generator_is_seeded(models):
    body = "def make():\n    return torch.nn.Linear(random.randint(2, 10**4), 1 + numpy.random.randint(10**4))"
    first = made(models, body)
    random.seed(7)
    numpy.random.seed(7)
    again = make_module("one.py:make", 3, models)
    other = make_module("one.py:make", 4, models)
    assert first.weight.shape == again.weight.shape != other.weight.shape
    make_module("one.py:make", 2**40, models)


def test_what_a_factory_changes_of_the_process_is_put_back(models, tmp_path):
    body = (
        "torch.set_grad_enabled(False)\ndef make():\n    os.chdir('/')\n    torch.set_default_dtype(torch.float64)\n"
        "    torch.set_num_threads(torch.get_num_threads() + 1)\n    torch.set_default_device('meta')\n"
        "    torch.set_float32_matmul_precision('medium')\n    torch.use_deterministic_algorithms(True)\n"
        "    return torch.nn.Linear(2, 2, device='cpu')"
    )

    def state():
        return (
            *(Path.cwd(), torch.get_default_dtype(), torch.get_num_threads(), torch.get_default_device()),
            *(torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()),
            *(torch.is_grad_enabled(), torch.ones(1).dtype),
        )

    before = state()
    assert made(models, body).weight.dtype is torch.float64
    assert state() == before


def test_parts_that_were_left_in_train_mode_stay_so_in_a_module_in_eval_mode(models):
    parts = "torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())"
    assert not any(part.training for part in made(models, f"def make():\n    return {parts}").modules())
    (models / "kept.py").write_text(
        f"import torch\ndef make():\n    made = {parts}.eval()\n    made[1].train()\n    return made"
    )
    kept = make_module("kept.py:make", 0, models)
    assert [part.training for part in kept] == [False, True] and not kept.training


def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def linear():
    return torch.nn.Linear(2, 2).eval()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.jit.script(double), "was given a compiled TorchScript function.*a module that was scripted"),
        (
            lambda: torch.nn.Sequential(torch.jit.script(linear())),
            "was given a module with a compiled TorchScript part.*found: 0.*compiled as a whole",
        ),
        (lambda: "text", "was given no module.*str"),
        (lambda: torch.nn.Linear, "was given no module.*type"),
    ],
)
def test_what_is_no_module_is_refused_by_what_to_hand_over(make, words):
    with pytest.raises(ModelError, match=f"(?s)optimize {words}"):
        usable(make(), "optimize was given")


def test_compiled_modules_and_programs_are_taken():
    scripted = torch.jit.script(linear())
    assert usable(scripted, "it was") is scripted
    program = torch.export.export(linear(), (torch.ones(1, 2),))
    module = usable(program, "it was")
    assert module(torch.ones(1, 2)).shape == (1, 2) and not any(part.training for part in module.modules())


def test_wrappers_of_a_module_are_taken_off():
    inner = linear()
    assert usable(inner, "it was") is inner
    assert usable(torch.compile(inner), "it was") is inner
    assert usable(torch.nn.DataParallel(inner), "it was") is inner
    assert usable(torch.compile(torch.nn.DataParallel(inner)), "it was") is inner


def test_the_module_of_an_exported_program_is_taken_as_it_is(models):
    module = made(
        models,
        "def make():\n    return torch.export.export(torch.nn.Linear(2, 2).eval(), (torch.ones(1, 2),)).module()",
    )
    assert module(torch.ones(1, 2)).shape == (1, 2)
