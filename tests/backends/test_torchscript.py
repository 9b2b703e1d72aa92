import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from autotune.backends.torchscript import BACKEND
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.runtime.turn import computes_by
from autotune.testing.backend_conformance import CPU, BackendConformance, RunnerConformance
from autotune.testing.toy_models import build_toy, expected, toy_inputs, toy_source
from tests.turns import RecordedTurns

GPU = Device(kind="cuda", name="NVIDIA H200", uuid="gpu-test", capability=(9, 0), cores=16)


class TestTorchScriptBackend(BackendConformance):
    backend = BACKEND
    module = "autotune.backends.torchscript"


class TestTorchScriptRunner(RunnerConformance):
    backend = BACKEND
    module = "autotune.backends.torchscript"


def configuration(**values: str | int | bool) -> Configuration:
    usual: dict[str, str | int | bool] = {"precision": "fp32", "optimize": True, "channels_last": False, "threads": 1}
    return Configuration.of("torchscript", {**usual, **values})


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_every_knob_keeps_the_answer(optimize: bool, channels_last: bool, tmp_path: Path) -> None:
    chosen = configuration(optimize=optimize, channels_last=channels_last)
    built = build_toy(BACKEND, CPU, "convolutional", tmp_path, configuration=chosen)
    written = {path.name for path in built.folder.iterdir()} - {"artifact.json", "example.safetensors"}
    assert written == {"model.ts", "settings.json"}
    named = toy_inputs("convolutional", 3)
    answers = BACKEND.load(built.folder, CPU)(*named.values())
    torch.testing.assert_close(answers, expected("convolutional", named), rtol=1e-4, atol=1e-5)


def test_packed_weights_are_in_the_file_and_keep_the_answer(tmp_path: Path) -> None:
    (chosen,) = BACKEND.space(CPU, None, has_factory=True).hints
    built = build_toy(BACKEND, CPU, "convolutional", tmp_path, configuration=chosen)
    named = toy_inputs("convolutional", 3)
    runner = BACKEND.load(built.folder, CPU)
    torch.testing.assert_close(runner(*named.values()), expected("convolutional", named), rtol=1e-4, atol=1e-5)
    assert "mkldnn::_convolution_pointwise" in str(runner._call.graph)  # type: ignore[attr-defined]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_and_layout_are_in_the_file_that_a_server_loads(precision: str, tmp_path: Path) -> None:
    chosen = configuration(optimize=False, channels_last=True, precision=precision, threads=CPU.cores)
    assert BACKEND.is_served(chosen, CPU) and not BACKEND.is_plain_export(chosen, CPU)
    built = build_toy(BACKEND, CPU, "convolutional", tmp_path, configuration=chosen)
    named = toy_inputs("convolutional", 3)
    torch.save(named, tmp_path / "inputs.pt")
    script = (
        f"import sys, torch\nmodule = torch.jit.load({str(built.folder / 'model.ts')!r})\n"
        f"named = torch.load({str(tmp_path / 'inputs.pt')!r})\n"
        f"with torch.no_grad(): torch.save(module(*named.values()), {str(tmp_path / 'answers.pt')!r})\n"
        "assert 'autotune' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
    plain = torch.load(tmp_path / "answers.pt")
    answers = BACKEND.load(built.folder, CPU)(*named.values())
    assert [answer.dtype for answer in plain] == [torch.float32] * len(plain)
    torch.testing.assert_close(tuple(plain), answers, rtol=1e-4, atol=1e-5)


def test_optimising_changes_the_graph_that_runs(tmp_path: Path) -> None:
    built = build_toy(BACKEND, CPU, "convolutional", tmp_path, configuration=configuration())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        saved = str(torch.jit.load(str(built.folder / "model.ts")).graph)  # type: ignore[no-untyped-call]
    assert "batch_norm" not in saved and "mkldnn_convolution" not in saved
    runner = BACKEND.load(built.folder, CPU)
    assert "mkldnn_convolution" in str(runner._call.graph)  # type: ignore[attr-defined]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_is_computed_in_and_hidden_from_the_caller(precision: str, tmp_path: Path) -> None:
    built = build_toy(BACKEND, CPU, "tokens", tmp_path, configuration=configuration(precision=precision))
    named = toy_inputs("tokens", 3)
    pooled, best = BACKEND.load(built.folder, CPU)(*named.values())
    reference, _ = expected("tokens", named)
    assert pooled.dtype is torch.float32 and best.dtype is torch.int64
    assert 1e-5 < float((pooled - reference).norm() / reference.norm()) < 3e-2


def test_says_nothing_of_deprecation(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
        built = build_toy(BACKEND, CPU, "tokens", tmp_path, configuration=configuration())
        BACKEND.load(built.folder, CPU)(*toy_inputs("tokens").values())


def test_a_gpu_has_a_cuda_graph_and_half_precision_off_the_shelf() -> None:
    space = BACKEND.space(GPU, None, has_factory=True)
    assert {"cuda_graph", "cudnn_benchmark", "channels_last"} < {p.name for p in space.parameters}
    assert [c["precision"] for c in space.defaults] == ["fp32", "fp16"]
    assert "threads" not in {p.name for p in space.parameters}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestTorchScriptRunnerOnGpu(RunnerConformance):
    backend = BACKEND
    module = "autotune.backends.torchscript"
    tolerance = 5e-3
    device = Device(kind="cuda", name="GPU", uuid="gpu", capability=(9, 0))


def test_cudnns_search_times_kernels_wherever_the_model_is_called() -> None:
    for configuration in BACKEND.space(GPU, None, has_factory=True):
        searches = bool(configuration["cudnn_benchmark"])
        assert BACKEND.times_kernels_at_build(configuration) is BACKEND.times_kernels_at_load(configuration) is searches


def test_a_gpu_tries_the_cuda_graph_early() -> None:
    (hint,) = BACKEND.space(GPU, None, has_factory=True).hints
    assert (hint["precision"], hint["cuda_graph"], hint["channels_last"]) == ("fp16", True, True)


def test_a_cpu_tries_packed_weights_early_if_the_model_convolves(tmp_path: Path) -> None:
    for toy, hinted in (("convolutional", [True]), ("tokens", [])):
        workload = toy_source(toy, tmp_path / toy).workload
        hints = BACKEND.space(CPU, workload, has_factory=True).hints
        assert [hint["packed_weights"] for hint in hints] == hinted
        assert all(BACKEND.is_served(hint, CPU) and not BACKEND.is_plain_export(hint, CPU) for hint in hints)


class NormOfSequence(torch.nn.Module):
    """A batch norm over the second dimension of what a linear layer makes of the last; both have six entries."""

    def __init__(self, inner: bool) -> None:
        super().__init__()
        self.inner = inner
        self.layer, self.norm = torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6)
        self.norm.running_mean.normal_()  # type: ignore[union-attr]
        self.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.inner:
            with torch.autocast("cpu", enabled=False):
                return self.norm(self.layer(x)).sin()  # type: ignore[no-any-return]
        return self.norm(self.layer(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("inner", [False, True])
def test_a_norm_that_torchscript_would_fold_into_the_wrong_dimension_stays(inner: bool, tmp_path: Path) -> None:
    from autotune.model import capture, source
    from autotune.runtime.artifact import describe

    torch.manual_seed(0)
    module, x = NormOfSequence(inner).eval(), torch.randn(2, 6, 4)
    captured = capture.capture("norm", 2, module, {"x": x}, {"x": torch.randn(2, 6, 4)})
    source.write(tmp_path / "model", captured, {"x": x}, factory=None, seed=0)
    built = tmp_path / "artifact"
    built.mkdir()
    BACKEND.build(source.CapturedModel(tmp_path / "model"), configuration(), CPU, built)
    describe(built, configuration(), captured.workload, captured.output_schema, example={"x": x})
    (answer,) = BACKEND.load(built, CPU)(x)
    torch.testing.assert_close(answer, module(x), rtol=1e-4, atol=1e-5)


def test_tracing_freezing_and_saving_are_in_one_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns, depths = RecordedTurns(), {}  # type: ignore[no-untyped-call]
    for name in ("trace", "freeze", "save"):
        original = getattr(torch.jit, name)

        def watched(*arguments: object, name: str = name, original: object = original, **keywords: object) -> object:
            depths[name] = turns.depth
            return original(*arguments, **keywords)  # type: ignore[operator]

        monkeypatch.setattr(torch.jit, name, watched)
    with computes_by(turns):
        build_toy(BACKEND, CPU, "convolutional", tmp_path, configuration=configuration(channels_last=True))
    assert depths == {"trace": 1, "freeze": 1, "save": 1} and turns.events == ["begin", "end"]
