"""What every backend and every runner promises; a backend's test inherits both classes and gives ``backend``."""

import functools
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autotune.backend import Availability, Backend, Runner
from autotune.errors import ModelError
from autotune.model.capture import capture
from autotune.model.source import CapturedModel, write
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.workload import Workload
from autotune.runtime.artifact import describe

CORES = len(os.sched_getaffinity(0))
CPU = Device(kind="cpu", name="Test CPU", uuid="cpu-test", cores=CORES)
ROOT = Path(__file__).resolve().parents[2]
SEED = 7


class Convolutional(nn.Module):
    """Convolution, batch norm, ReLU, pooling and a linear head: an image to one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)
        self.norm.running_mean = torch.empty(16).uniform_(-0.5, 0.5)
        self.norm.running_var = torch.empty(16).uniform_(0.5, 2.0)

    def forward(self, image: Tensor) -> Tensor:
        pooled = torch.relu(self.norm(self.convolution(image))).mean(dim=(2, 3))
        return torch.nn.functional.linear(pooled, self.head.weight, self.head.bias)


class Tokens(nn.Module):
    """Integer inputs, a mask, and a dict of a floating and an integer output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 16)
        self.mix = nn.Linear(16, 16)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = torch.nn.functional.gelu(self.mix(self.embedding(ids))) * mask.unsqueeze(-1)
        return {"pooled": hidden.sum(dim=1), "best": hidden.sum(dim=1).argmax(dim=-1)}


class Mixed(nn.Module):
    """Both of them in one, for a backend whose builds take long."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutional = Convolutional()
        self.tokens = Tokens()

    def forward(self, image: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"image": self.convolutional(image), **self.tokens(ids, mask)}


class Numbered(nn.Module):
    """Embeds numbers that begin at 1: a zero is out of the range that it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(12, 8), nn.Linear(8, 3)

    def forward(self, month: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(month - 1)))


def toy_inputs(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of a toy by name, drawn under the seed; batch 2."""
    if name == "mixed":
        return {**toy_inputs("convolutional", seed), **toy_inputs("tokens", seed)}
    generator = torch.Generator().manual_seed(seed)
    if name == "convolutional":
        return {"image": torch.randn(2, 3, 16, 16, generator=generator)}
    if name == "numbered":
        return {"month": torch.randint(1, 13, (2, 5), generator=generator)}
    ids = torch.randint(0, 32, (2, 6), generator=generator)
    return {"ids": ids, "mask": (ids % 5 != 0).float()}


TOYS: Mapping[str, type[nn.Module]] = {
    "convolutional": Convolutional,
    "tokens": Tokens,
    "mixed": Mixed,
    "numbered": Numbered,
}
USUAL = ("convolutional", "tokens")


def toy_module(name: str) -> nn.Module:
    """A toy with the weights that its captured form has."""
    torch.manual_seed(SEED)
    return TOYS[name]().eval()


def toy_source(name: str, folder: Path, *, factory: bool = False) -> CapturedModel:
    """Capture a toy into ``folder`` as a build worker gets it, with its factory where asked."""
    module, inputs = toy_module(name), toy_inputs(name)
    captured = capture(name, 2, module, inputs)
    spec = f"{__file__}:{TOYS[name].__name__}" if factory else None
    write(folder, captured, inputs, factory=spec, seed=SEED, module=module if factory else None)
    return CapturedModel(folder)


def expected(name: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The flat answer of the toy itself."""
    with torch.no_grad():
        answer = toy_module(name)(**inputs)
    return tuple(answer.values()) if isinstance(answer, dict) else (answer,)


@functools.cache
def toy_workload(name: str) -> Workload:
    """The workload of a toy."""
    with tempfile.TemporaryDirectory() as folder:
        return toy_source(name, Path(folder)).workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An artifact of a toy, and the name of that toy."""

    toy: str
    folder: Path
    configuration: Configuration


def plain_configuration(backend: Backend, device: Device, source: CapturedModel) -> Configuration:
    """The first default of the backend that computes in fp32, as a model without a factory gets it."""
    space = backend.space(device, source.workload, has_factory=False)
    return next(c for c in (*space.defaults, *space) if c["precision"] in ("fp32", "default"))


def build_artifact(
    backend: Backend, source: CapturedModel, configuration: Configuration, device: Device, folder: Path
) -> None:
    """Build into an empty folder and describe what is there, as a build worker does."""
    backend.build(source, configuration, device, folder)
    describe(folder, configuration, source.workload, source.output_schema, example=source.example())


def build_toy(
    backend: Backend,
    device: Device,
    toy: str,
    folder: Path,
    *,
    factory: bool = False,
    configuration: Configuration | None = None,
) -> Built:
    """Capture and build a toy below ``folder``."""
    source = toy_source(toy, folder / "source", factory=factory)
    artifact = folder / "artifact"
    artifact.mkdir()
    chosen = configuration or plain_configuration(backend, device, source)
    build_artifact(backend, source, chosen, device, artifact)
    return Built(toy=toy, folder=artifact, configuration=chosen)


def negated(tensor: Tensor) -> Tensor:
    """The same values as a view that torch negates as it reads them; NumPy would read their opposites."""
    view = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert view.is_neg() and torch.equal(view, tensor)
    return view


Change = Callable[[list[Tensor]], list[Any]]
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
"""Calls that no runner may take, and how the refusal begins; ``{name}`` is the last input's."""


class BackendConformance:
    """Contract of :class:`autotune.backend.Backend`; a subclass gives ``backend`` and its import path ``module``."""

    backend: Backend
    module: str
    device: Device = CPU

    def test_is_named_and_declares_its_toolchain(self) -> None:
        assert self.backend.name.isidentifier()
        assert self.module.rpartition(".")[2] == self.backend.name
        assert self.backend.toolchain and len(set(self.backend.toolchain)) == len(self.backend.toolchain)
        assert isinstance(self.backend.build_uses_device, bool)

    def test_works_here(self) -> None:
        assert self.backend.probe(self.device) == Availability(works=True)

    def test_import_probe_and_space_load_nothing_heavy(self) -> None:
        script = (
            f"import sys; from {self.module} import BACKEND; from autotune.records.device import Device\n"
            f"device = Device.from_dict({self.device.as_dict()!r})\n"
            "BACKEND.probe(device); next(iter(BACKEND.space(device, None, has_factory=True)))\n"
            "print(sorted({'torch', 'onnxruntime', 'openvino', 'onnx', 'numpy'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    @pytest.mark.parametrize("has_factory", [True, False])
    @pytest.mark.parametrize("toy", [None, *USUAL])
    def test_every_space_has_candidates_and_defaults(self, toy: str | None, has_factory: bool) -> None:
        workload = toy_workload(toy) if toy else None
        space = self.backend.space(self.device, workload, has_factory=has_factory)
        assert space.backend == self.backend.name
        assert space.defaults and len(set(space.defaults)) == len(space.defaults)
        assert [space.refusal(default) for default in space.defaults] == [None] * len(space.defaults)
        some = list(itertools.islice(space, 2000))
        assert some and len(set(some)) == len(some)
        for configuration in some:
            assert isinstance(configuration["precision"], str)
            assert type(self.backend.times_kernels_at_build(configuration)) is bool
            assert type(self.backend.times_kernels_at_load(configuration)) is bool
            if self.device.kind == "cpu":
                assert type(configuration["threads"]) is int

    def test_space_does_not_depend_on_when_it_is_asked(self) -> None:
        first, second = (self.backend.space(self.device, None, has_factory=True) for _ in range(2))
        assert first.digest == second.digest and first.defaults == second.defaults

    def test_off_the_shelf_means_all_cores_and_one_core_can_be_tried(self) -> None:
        if self.device.kind != "cpu":
            pytest.skip("threads are a parameter of CPU configurations")
        space = self.backend.space(self.device, None, has_factory=True)
        assert space.defaults[0]["threads"] == self.device.cores
        assert {c["threads"] for c in space} >= {1, self.device.cores}


class RunnerConformance:
    """Contract of :class:`autotune.backend.Runner`, on artifacts of ``backend`` in fp32, one for each of ``toys``."""

    backend: Backend
    device: Device = CPU
    tolerance = 1e-4
    configuration: Configuration | None = None
    """What is built; the backend's plain configuration if ``None``."""

    toys: tuple[str, ...] = USUAL

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run what needs an artifact on each of ``toys``."""
        if "built" in metafunc.fixturenames:
            metafunc.parametrize("built", self.toys, indirect=True, scope="class")

    @pytest.fixture(scope="class")
    @classmethod
    def built(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
        folder = tmp_path_factory.mktemp(request.param)
        return build_toy(cls.backend, cls.device, request.param, folder, configuration=cls.configuration)

    @pytest.fixture(scope="class")
    @classmethod
    def runner(cls, built: Built) -> Iterator[Runner]:
        runner = cls.backend.load(built.folder, cls.device)
        yield runner
        runner.close()

    def inputs(self, built: Built, seed: int) -> tuple[dict[str, Tensor], list[Tensor]]:
        named = toy_inputs(built.toy, seed)
        return named, [tensor.to(self.device.torch_name) for tensor in named.values()]

    def assert_answers(self, built: Built, answers: tuple[Any, ...], named: Mapping[str, Tensor]) -> None:
        references = expected(built.toy, named)
        assert len(answers) == len(references)
        for answer, reference in zip(answers, references, strict=True):
            assert answer.dtype == reference.dtype and answer.shape == reference.shape
            assert str(answer.device) == self.device.torch_name
            torch.testing.assert_close(answer.cpu(), reference, rtol=self.tolerance, atol=self.tolerance)

    def test_is_a_runner(self, runner: Runner) -> None:
        assert isinstance(runner, Runner)

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_answers_as_the_model(self, built: Built, runner: Runner, seed: int) -> None:
        named, inputs = self.inputs(built, seed)
        answers = runner(*inputs)
        assert isinstance(answers, tuple)
        self.assert_answers(built, answers, named)

    def test_leaves_its_inputs_alone(self, built: Built, runner: Runner) -> None:
        named, inputs = self.inputs(built, 3)
        runner(*inputs)
        assert all(torch.equal(tensor.cpu(), named[name]) for name, tensor in zip(named, inputs, strict=True))

    def test_outputs_are_fresh(self, built: Built, runner: Runner) -> None:
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

    def test_accepts_inputs_of_any_layout_from_its_device_and_from_the_cpu(self, built: Built, runner: Runner) -> None:
        named, inputs = self.inputs(built, 6)
        for given in (inputs, list(named.values())):
            strided = [tensor.transpose(0, -1).contiguous().transpose(0, -1) for tensor in given]
            assert any(not tensor.is_contiguous() for tensor in strided)
            self.assert_answers(built, runner(*strided), named)

    def test_is_safe_from_several_threads(self, built: Built, runner: Runner) -> None:
        cases = [self.inputs(built, seed) for seed in range(4)]

        def ask(case: tuple[dict[str, Tensor], list[Tensor]]) -> list[tuple[Any, ...]]:
            return [runner(*case[1]) for _ in range(5)]

        with ThreadPoolExecutor(4) as pool:
            for (named, _), answers in zip(cases, pool.map(ask, cases), strict=True):
                for answer in answers:
                    self.assert_answers(built, answer, named)

    def test_loads_twice_and_closes_alone(self, built: Built, runner: Runner) -> None:
        named, inputs = self.inputs(built, 8)
        second = self.backend.load(built.folder, self.device)
        self.assert_answers(built, second(*inputs), named)
        second.close()
        second.close()
        self.assert_answers(built, runner(*inputs), named)

    def test_settles_on_the_example_of_the_study(self, tmp_path: Path) -> None:
        built = build_toy(self.backend, self.device, "numbered", tmp_path, configuration=self.configuration)
        runner = self.backend.load(built.folder, self.device)
        for seed in range(3):
            named, inputs = self.inputs(built, seed)
            self.assert_answers(built, runner(*inputs), named)
        runner.close()

    @pytest.mark.parametrize("wrong", WRONG_CALLS)
    def test_refuses_a_call_that_does_not_fit(self, built: Built, runner: Runner, wrong: str) -> None:
        change, begins = WRONG_CALLS[wrong]
        named, inputs = self.inputs(built, 13)
        name, right = list(named.items())[-1]
        with pytest.raises(ModelError) as caught:
            runner(*change(inputs))
        assert caught.value.asked.startswith(begins.format(name=name))
        form = f"{str(right.dtype).removeprefix('torch.')}{list(right.shape)}"
        assert form in caught.value.expected and caught.value.found not in ("", caught.value.expected)
        self.assert_answers(built, runner(*inputs), named)

    def test_reads_a_negated_view_as_what_it_is(self, built: Built, runner: Runner) -> None:
        named, inputs = self.inputs(built, 15)
        views = [negated(tensor) if tensor.is_floating_point() else tensor for tensor in inputs]
        assert any(view.is_neg() for view in views)
        self.assert_answers(built, runner(*views), named)

    def test_needs_its_folder_only_while_it_loads(self, built: Built, tmp_path: Path) -> None:
        own = tmp_path / "own"
        shutil.copytree(built.folder, own)
        runner = self.backend.load(own, self.device)
        shutil.rmtree(own)
        named, inputs = self.inputs(built, 12)
        self.assert_answers(built, runner(*inputs), named)
        runner.close()

    @pytest.mark.parametrize("threads", [1, CORES])
    def test_a_call_leaves_the_global_switches_alone(self, built: Built, runner: Runner, threads: int) -> None:
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

    def test_answers_under_the_users_grad_mode(self, built: Built, runner: Runner) -> None:
        named, inputs = self.inputs(built, 10)
        with torch.enable_grad():
            answers = runner(*inputs)
            assert torch.is_grad_enabled()
        assert not any(answer.requires_grad for answer in answers)
        self.assert_answers(built, answers, named)

    def test_loads_without_compiler_or_model_code(self, built: Built, tmp_path: Path) -> None:
        if built.toy != self.toys[-1]:
            pytest.skip("a fresh process takes seconds: one toy is enough")
        named, inputs = self.inputs(built, 11)
        torch.save(inputs, tmp_path / "inputs.pt")
        script = (
            "import sys, torch; from pathlib import Path\n"
            f"sys.path.insert(0, {str(ROOT)!r})\n"
            f"from {type(self.backend).__module__} import BACKEND; from autotune.records.device import Device\n"
            f"device = Device.from_dict({self.device.as_dict()!r})\n"
            f"runner = BACKEND.load(Path({str(built.folder)!r}), device)\n"
            "torch.save(list(runner(*torch.load('inputs.pt'))), 'answers.pt'); runner.close()\n"
            "assert not any(name.startswith(('tests', 'transformers')) for name in sys.modules)"
        )
        environment = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")}
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env={**environment, "PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join(library_folders())},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        self.assert_answers(built, tuple(torch.load(tmp_path / "answers.pt")), named)


def library_folders() -> list[str]:
    """The folders of PYTHONPATH but for this repository's own: a backend's libraries may be installed there."""
    folders = [Path(entry).resolve() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return [str(folder) for folder in folders if folder not in (ROOT, ROOT / "tests")]


def global_state() -> tuple[Any, ...]:
    """The global switches of torch that a runner may touch."""
    return (
        torch.get_num_threads(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(),
    )


def restore_global_state(state: tuple[Any, ...]) -> None:
    """Set what :func:`global_state` read."""
    threads, matmul, cudnn, benchmark, precision = state
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = cudnn
    torch.backends.cudnn.benchmark = benchmark
    torch.set_float32_matmul_precision(precision)
