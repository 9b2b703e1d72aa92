import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autotune.backends import openvino as backend
from autotune.backends.openvino import BACKEND
from autotune.model.capture import capture
from autotune.model.source import CapturedModel, write
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.workload import TensorSpec
from autotune.testing.backend_conformance import CPU, BackendConformance, RunnerConformance
from autotune.testing.toy_models import build_artifact, expected, toy_inputs, toy_source

ROOT = Path(__file__).parents[2]


class TestOpenVinoBackend(BackendConformance):
    backend = BACKEND
    module = "autotune.backends.openvino"


class TestOpenVinoRunner(RunnerConformance):
    backend = BACKEND
    module = "autotune.backends.openvino"


def configuration(**values: str | int | bool) -> Configuration:
    return Configuration.of("openvino", {"precision": "fp32", "threads": 1, "pinning": True, **values})


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> CapturedModel:
    return toy_source("convolutional", tmp_path_factory.mktemp("convolutional"))


@pytest.mark.parametrize("pinning", [True, False])
def test_a_configuration_reaches_the_compiled_graph(
    pinning: bool, convolutional: CapturedModel, tmp_path: Path
) -> None:
    chosen = configuration(pinning=pinning)
    build_artifact(BACKEND, convolutional, chosen, CPU, tmp_path)
    compiled = backend._compiled(tmp_path, chosen)
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    named = toy_inputs("convolutional", 3)
    answers = BACKEND.load(tmp_path, CPU)(*named.values())
    torch.testing.assert_close(answers, expected("convolutional", named), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_is_computed_in_or_refused(precision: str, convolutional: CapturedModel, tmp_path: Path) -> None:
    capabilities = backend.library().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    chosen = configuration(precision=precision)
    if precision.upper() in capabilities:
        build_artifact(BACKEND, convolutional, chosen, CPU, tmp_path)
        named = toy_inputs("convolutional", 3)
        (answer,) = BACKEND.load(tmp_path, CPU)(*named.values())
        assert answer.dtype is torch.float32
        assert 0 < (answer - expected("convolutional", named)[0]).abs().max() < 5e-2
    else:
        with pytest.raises(RuntimeError, match=f"asked OpenVINO for {precision}, found"):
            BACKEND.build(convolutional, chosen, CPU, tmp_path)


def test_a_graph_that_computes_in_another_precision_is_refused(convolutional: CapturedModel, tmp_path: Path) -> None:
    BACKEND.build(convolutional, configuration(), CPU, tmp_path)
    compiled = backend._compiled(tmp_path, configuration())
    backend.require_precision(compiled, "fp32")
    with pytest.raises(RuntimeError, match="asked OpenVINO for bf16, found"):
        backend.require_precision(compiled, "bf16")


class Attention(nn.Module):
    """Self-attention over integer tokens under a mask of truth values; a floating and an integer output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.packed, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.embedding(ids)
        query, key, value = (part.view(2, -1, 4, 8).transpose(1, 2) for part in self.packed(hidden).chunk(3, dim=-1))
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        answer = self.out(attended.transpose(1, 2).flatten(2))
        return answer, answer.argmax(dim=-1)


def test_attention_stays_one_operator_and_keeps_the_answer(tmp_path: Path) -> None:
    torch.manual_seed(5)
    module = Attention().eval()
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    inputs = {"ids": torch.randint(0, 50, (2, 7)), "mask": mask}
    write(tmp_path / "source", capture("toy", 2, module, inputs), inputs, factory=None, seed=0)
    (tmp_path / "artifact").mkdir()
    build_artifact(BACKEND, CapturedModel(tmp_path / "source"), configuration(), CPU, tmp_path / "artifact")
    graph = backend.library().Core().read_model(str(tmp_path / "artifact" / "model.xml"))
    assert [op.get_type_name() for op in graph.get_ops()].count("ScaledDotProductAttention") == 1
    assert [port.get_any_name() for port in graph.inputs] == ["ids", "mask"]
    answers = BACKEND.load(tmp_path / "artifact", CPU)(*inputs.values())
    with torch.no_grad():
        references = module(**inputs)
    assert [answer.dtype for answer in answers] == [torch.float32, torch.int64]
    torch.testing.assert_close(answers, references, rtol=1e-4, atol=1e-5)


def test_importing_openvino_sends_nothing() -> None:
    script = (
        "import sys; from autotune.backends.openvino import library\n"
        "openvino = library(); from openvino.tools.ovc import telemetry_utils\n"
        "print(telemetry_utils.tm.__name__, hasattr(openvino, 'convert_model'), 'openvino_telemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "True", "False"]


def test_takes_no_part_on_a_gpu() -> None:
    gpu = Device(kind="cuda", name="NVIDIA H200", uuid="gpu-test", capability=(9, 0))
    refused = BACKEND.probe(gpu)
    assert not refused.works and "NVIDIA" in refused.reason


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "find_spec", lambda name: None if name == "openvino" else object())
    refused = BACKEND.probe(CPU)
    assert refused.reason == "openvino is not installed"
    assert refused.remedy.startswith("pip install 'openvino>=")


class Pooled(nn.Module):
    """A reduction over the last of three dimensions, as an output of its own and before a vector of weights."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.arange(1.0, 7.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled: Tensor = getattr(x, self.kind)(2)
        return pooled * self.weight + self.weight.cos(), pooled


@pytest.mark.parametrize("kind", ["mean", "sum", "amax", "amin"])
def test_weights_after_a_reduction_meet_the_right_dimension(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Pooled(kind).eval(), torch.randn(2, 6, 8)
    write(tmp_path / "model", capture("pooled", 2, module, {"x": x}, {"x": -x}), {"x": x}, factory=None, seed=0)
    (tmp_path / "built").mkdir()
    build_artifact(BACKEND, CapturedModel(tmp_path / "model"), configuration(), CPU, tmp_path / "built")
    torch.testing.assert_close(BACKEND.load(tmp_path / "built", CPU)(x), module(x), rtol=1e-5, atol=1e-5)


class FailingRequest:
    """A request whose calls raise; it counts how many a compiled model has made."""

    def infer(self, *_: object, **__: object) -> None:
        raise RuntimeError("the call failed")


class FailingModel:
    made = 0

    def create_infer_request(self) -> FailingRequest:
        self.made += 1
        return FailingRequest()


def test_a_request_whose_call_raised_serves_the_next_call() -> None:
    compiled, spec = FailingModel(), TensorSpec(name="x", shape=(2,), dtype="float32")
    runner = backend.OpenVinoRunner(compiled, [spec], [spec])
    for _ in range(3):
        with pytest.raises(RuntimeError, match="the call failed"):
            runner(torch.ones(2))
    assert compiled.made == 1
    runner.close()
