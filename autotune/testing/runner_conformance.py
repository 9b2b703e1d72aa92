"""The promises of every runner, as a test class: RunnerConformance; see autotune.testing.backend_conformance."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, cast

import pytest
import torch
from torch import Tensor

from autotune.backend import Backend, Configuration, Device, ExplainsArtifacts, ModelError, Runner
from autotune.testing.toy_models import USUAL, BuiltToy, build_toy, expected, toy_inputs

CORES = len(os.sched_getaffinity(0))
CPU = Device(kind="cpu", name="Test CPU", uuid="cpu-test", cores=CORES)

Change = Callable[[list[Tensor]], Sequence[object]]
WRONG_CALLS: Mapping[str, tuple[Change, str]] = {
    "missing": (lambda inputs: inputs[:-1], "the call lacks input {name}"),
    "extra": (lambda inputs: [*inputs, inputs[0]], "the plan takes no input after {name}"),
    "shape": (lambda inputs: [*inputs[:-1], inputs[-1][:1]], "input {name} does not fit"),
    "rank": (lambda inputs: [*inputs[:-1], inputs[-1][None]], "input {name} does not fit"),
    "dtype": (lambda inputs: [*inputs[:-1], inputs[-1].double()], "input {name} does not fit"),
    "device": (lambda inputs: [*inputs[:-1], inputs[-1].to("meta")], "input {name} does not fit"),
    "list": (lambda inputs: [*inputs[:-1], inputs[-1].tolist()], "input {name} does not fit"),
    "array": (lambda inputs: [*inputs[:-1], inputs[-1].cpu().numpy()], "input {name} does not fit"),
    "sparse": (lambda inputs: [*inputs[:-1], inputs[-1].to_sparse()], "input {name} does not fit"),
}
"""Calls that every runner refuses, and the beginning of its message; ``{name}`` is the last input's."""


class RunnerConformance:
    """Contract of :class:`autotune.backend.Runner`, on artifacts of ``backend`` in fp32, one for each of ``toys``.

    A subclass sets ``backend`` and ``module`` as for :class:`BackendConformance`. ``configuration`` is what is built;
    if it is ``None``, the backend's plain configuration. Answers are compared to ``tolerance``, relative and absolute.
    """

    backend: Backend
    module: str
    device: Device = CPU
    tolerance: ClassVar[float] = 1e-4
    configuration: Configuration | None = None
    toys: tuple[str, ...] = USUAL

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test that needs an artifact on each of ``toys``."""
        if "built" in metafunc.fixturenames:
            metafunc.parametrize("built", self.toys, indirect=True, scope="class")

    @pytest.fixture(scope="class")
    @classmethod
    def built(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BuiltToy:
        """Build a toy once for all tests of the class."""
        folder = tmp_path_factory.mktemp(request.param)
        return build_toy(cls.backend, cls.device, request.param, folder, configuration=cls.configuration)

    @pytest.fixture(scope="class")
    @classmethod
    def runner(cls, built: BuiltToy) -> Iterator[Runner]:
        """Load the artifact once for all tests of the class."""
        runner = cls.backend.load(built.folder, cls.device)
        yield runner
        runner.close()

    def inputs(self, built: BuiltToy, seed: int) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return inputs by name on the CPU, and copies of them as flat tensors on the device."""
        named = toy_inputs(built.toy, seed)
        return named, [tensor.clone().to(self.device.torch_name) for tensor in named.values()]

    def assert_answers(self, built: BuiltToy, answers: Sequence[Tensor], named: Mapping[str, Tensor]) -> None:
        """Compare answers with those of the toy itself: number, dtypes, shapes, device and values."""
        references = expected(built.toy, named)
        assert len(answers) == len(references)
        for answer, reference in zip(answers, references, strict=True):
            assert answer.dtype == reference.dtype and answer.shape == reference.shape
            assert str(answer.device) == self.device.torch_name
            torch.testing.assert_close(answer.cpu(), reference, rtol=self.tolerance, atol=self.tolerance)

    def test_is_a_runner(self, runner: Runner) -> None:
        """It can be called and closed."""
        assert isinstance(runner, Runner)

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_answers_as_the_model(self, built: BuiltToy, runner: Runner, seed: int) -> None:
        """Answers are a tuple of tensors, equal to the model's own."""
        named, inputs = self.inputs(built, seed)
        answers = runner(*inputs)
        assert isinstance(answers, tuple)
        self.assert_answers(built, answers, named)

    def test_leaves_its_inputs_alone(self, built: BuiltToy, runner: Runner) -> None:
        """A call does not write into its inputs."""
        named, inputs = self.inputs(built, 3)
        runner(*inputs)
        assert all(torch.equal(tensor.cpu(), named[name]) for name, tensor in zip(named, inputs, strict=True))

    def test_outputs_are_fresh(self, built: BuiltToy, runner: Runner) -> None:
        """Neither a later call nor a caller who writes into outputs changes other outputs."""
        named, inputs = self.inputs(built, 4)
        first = runner(*inputs)
        other_named, other = self.inputs(built, 5)
        second = runner(*other)
        self.assert_answers(built, first, named)
        self.assert_answers(built, second, other_named)
        for answer in second:
            answer.zero_()
        self.assert_answers(built, runner(*other), other_named)
        self.assert_answers(built, first, named)

    def test_accepts_inputs_of_any_layout_from_its_device_and_from_the_cpu(
        self, built: BuiltToy, runner: Runner
    ) -> None:
        """Inputs may be strided, and may lie on the CPU."""
        named, inputs = self.inputs(built, 6)
        for given in (inputs, list(named.values())):
            strided = [tensor.transpose(0, -1).contiguous().transpose(0, -1) for tensor in given]
            assert any(not tensor.is_contiguous() for tensor in strided)
            self.assert_answers(built, runner(*strided), named)

    def test_is_safe_from_several_threads(self, built: BuiltToy, runner: Runner) -> None:
        """Threads that call at the same time each get their own answers."""
        cases = [self.inputs(built, seed) for seed in range(4)]

        def ask(case: tuple[dict[str, Tensor], list[Tensor]]) -> list[tuple[Tensor, ...]]:
            return [runner(*case[1]) for _ in range(5)]

        with ThreadPoolExecutor(4) as pool:
            for (named, _), several in zip(cases, pool.map(ask, cases), strict=True):
                for answers in several:
                    self.assert_answers(built, answers, named)

    def test_loads_twice_and_closes_alone(self, built: BuiltToy, runner: Runner) -> None:
        """A second runner of the same artifact can be closed, twice, without harm to the first."""
        named, inputs = self.inputs(built, 8)
        second = self.backend.load(built.folder, self.device)
        self.assert_answers(built, second(*inputs), named)
        second.close()
        second.close()
        self.assert_answers(built, runner(*inputs), named)

    def test_settles_on_the_example_of_the_study(self, tmp_path: Path) -> None:
        """A model that takes no zeros loads: a runner warms up on the study's example only."""
        built = build_toy(self.backend, self.device, "numbered", tmp_path, configuration=self.configuration)
        runner = self.backend.load(built.folder, self.device)
        for seed in range(3):
            named, inputs = self.inputs(built, seed)
            self.assert_answers(built, runner(*inputs), named)
        runner.close()

    @pytest.mark.parametrize("wrong", WRONG_CALLS)
    def test_refuses_a_call_that_does_not_fit(self, built: BuiltToy, runner: Runner, wrong: str) -> None:
        """The refusal names the input, its form and the expected one, and the next call works."""
        change, begins = WRONG_CALLS[wrong]
        named, inputs = self.inputs(built, 13)
        name, right = list(named.items())[-1]
        with pytest.raises(ModelError) as caught:
            runner(*cast(Sequence[Tensor], change(inputs)))
        assert caught.value.asked.startswith(begins.format(name=name))
        form = f"{str(right.dtype).removeprefix('torch.')}{list(right.shape)}"
        assert form in caught.value.expected and caught.value.found not in ("", caught.value.expected)
        self.assert_answers(built, runner(*inputs), named)

    def test_reads_a_negated_view_as_what_it_is(self, built: BuiltToy, runner: Runner) -> None:
        """A view that torch negates as it reads it keeps its sign."""
        named, inputs = self.inputs(built, 15)
        views = [negated(tensor) if tensor.is_floating_point() else tensor for tensor in inputs]
        assert any(view.is_neg() for view in views)
        self.assert_answers(built, runner(*views), named)

    def test_needs_its_folder_only_while_it_loads(self, built: BuiltToy, tmp_path: Path) -> None:
        """The folder of the artifact may be deleted after loading."""
        own = tmp_path / "own"
        shutil.copytree(built.folder, own)
        runner = self.backend.load(own, self.device)
        shutil.rmtree(own)
        named, inputs = self.inputs(built, 12)
        self.assert_answers(built, runner(*inputs), named)
        runner.close()

    @pytest.mark.parametrize("threads", [1, CORES])
    def test_a_call_leaves_the_global_switches_alone(self, built: BuiltToy, runner: Runner, threads: int) -> None:
        """Threads, TF32 and cuDNN's benchmark have the caller's values after a call."""
        named, inputs = self.inputs(built, 9)
        before = global_state()
        try:
            torch.set_num_threads(threads)
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cudnn.benchmark = True
            mine = global_state()
            self.assert_answers(built, runner(*inputs), named)
            assert global_state() == mine
        finally:
            restore_global_state(before)

    def test_answers_under_the_users_grad_mode(self, built: BuiltToy, runner: Runner) -> None:
        """Answers need no gradient, and the caller's mode stays."""
        named, inputs = self.inputs(built, 10)
        with torch.enable_grad():
            answers = runner(*inputs)
            assert torch.is_grad_enabled()
        assert not any(answer.requires_grad for answer in answers)
        self.assert_answers(built, answers, named)

    def test_explains_its_artifact(self, built: BuiltToy) -> None:
        """An explanation has the promised entries, and fits into JSON."""
        if not isinstance(self.backend, ExplainsArtifacts):
            pytest.skip("it explains no artifact")
        explanation = json.loads(json.dumps(self.backend.explain_artifact(built.folder)))
        assert {"nodes_before", "nodes_after", "fusions", "sites"} <= set(explanation)
        assert all({"name", "operator"} <= set(site) for site in explanation["sites"])

    def test_loads_without_compiler_or_model_code(self, built: BuiltToy, tmp_path: Path) -> None:
        """A fresh process without a compiler in its path loads the artifact, and imports no code of the model."""
        if built.toy != self.toys[-1]:
            pytest.skip("a fresh process takes seconds: one toy is enough")
        named, inputs = self.inputs(built, 11)
        torch.save(inputs, tmp_path / "inputs.pt")
        script = (
            f"import sys, torch; from pathlib import Path; from {self.module} import BACKEND\n"
            "from autotune.backend import Device\n"
            f"runner = BACKEND.load(Path({str(built.folder)!r}), Device.from_dict({self.device.as_dict()!r}))\n"
            "torch.save(list(runner(*torch.load('inputs.pt'))), 'answers.pt'); runner.close()\n"
            "assert not any(name.startswith(('autotune.testing', 'transformers')) for name in sys.modules)"
        )
        env = {name: value for name, value in environment_of_child().items() if name not in ("CC", "CXX")}
        run = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env={**env, "PATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        self.assert_answers(built, torch.load(tmp_path / "answers.pt"), named)


def environment_of_child() -> dict[str, str]:
    """Return the environment of a process that imports from the same folders as this one."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def negated(tensor: Tensor) -> Tensor:
    """Return the same values as a view that torch negates as it reads them; NumPy would read their opposites."""
    view = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert view.is_neg() and torch.equal(view, tensor)
    return view


GlobalState = tuple[int, bool, bool, bool, str]


def global_state() -> GlobalState:
    """Return the global switches of torch that a runner may use."""
    return (
        torch.get_num_threads(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(),
    )


def restore_global_state(state: GlobalState) -> None:
    """Set the switches as :func:`global_state` read them."""
    threads, matmul, cudnn, benchmark, precision = state
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = cudnn
    torch.backends.cudnn.benchmark = benchmark
    torch.set_float32_matmul_precision(precision)
