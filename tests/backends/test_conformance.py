"""The test classes that plug-ins inherit refuse a backend that breaks a promise."""

import dataclasses
import subprocess
import sys

import pytest

from autotune.backend import Configuration, Parameter, SearchSpace
from autotune.testing.backend_conformance import CPU, BackendConformance, RunnerConformance
from autotune.testing.toy_models import build_toy
from tests.backends.example_plugin import ExampleBackend


class HalfAble(ExampleBackend):
    """Says which kernels it has, and not which problems they solve."""

    kernels = object()
    kernel_kinds = ()


class OneThread(ExampleBackend):
    """Cannot be tried on one core, and has one default twice."""

    def space(self, device, workload, *, has_factory):
        parameters = (Parameter(name="precision", choices=("fp32",)), Parameter(name="threads", choices=(64,)))
        default = Configuration.of(self.name, {"precision": "fp32", "threads": 64})
        return SearchSpace(backend=self.name, parameters=parameters, defaults=(default, default))


class Remembering:
    """A runner that returns the same tensors in every call, and writes into its input."""

    def __init__(self, runner):
        self.runner, self.outputs = runner, None

    def __call__(self, *inputs):
        answers = self.runner(*inputs)
        if self.outputs is None:
            self.outputs = answers
        for output, answer in zip(self.outputs, answers, strict=True):
            output.copy_(answer)
        inputs[0].zero_()
        return self.outputs

    def close(self):
        self.runner.close()


def of_backend(instance):
    checks = BackendConformance()
    checks.backend, checks.module = instance, "tests.backends.example_plugin"
    return checks


def test_a_part_of_an_ability_is_named_with_what_it_lacks():
    with pytest.raises(AssertionError, match=r"TunesKernels: it lacks graph_invariants, kernel_problems"):
        of_backend(HalfAble()).test_has_each_ability_wholly_or_not_at_all()


def test_a_wrong_space_and_a_wrong_device_are_refused():
    checks = of_backend(OneThread())
    with pytest.raises(AssertionError):
        checks.test_every_space_has_candidates_and_defaults(None, False)
    with pytest.raises(AssertionError):
        checks.test_off_the_shelf_means_all_cores_and_one_core_can_be_tried()
    checks.device = dataclasses.replace(CPU, kind="cuda", capability=(9, 0))
    with pytest.raises(AssertionError):
        checks.test_works_here()


def test_what_imports_torch_too_early_is_refused(tmp_path, monkeypatch):
    (tmp_path / "early.py").write_text("import torch\nfrom tests.backends.example_plugin import BACKEND\n")
    monkeypatch.syspath_prepend(tmp_path)
    checks = of_backend(ExampleBackend())
    checks.module = "early"
    with pytest.raises(AssertionError):
        checks.test_import_probe_and_space_load_nothing_heavy(tmp_path)


def test_a_runner_that_keeps_its_outputs_or_changes_its_inputs_is_refused(tmp_path):
    checks = RunnerConformance()
    checks.backend, checks.module = ExampleBackend(), "tests.backends.example_plugin"
    built = build_toy(checks.backend, CPU, "convolutional", tmp_path)
    runner = Remembering(checks.backend.load(built.folder, CPU))
    with pytest.raises(AssertionError):
        checks.test_outputs_are_fresh(built, runner)
    with pytest.raises(AssertionError):
        checks.test_leaves_its_inputs_alone(built, runner)


def test_the_package_of_fakes_imports_neither_pytest_nor_torch():
    script = "import sys, autotune.testing; print({'pytest', 'torch'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
