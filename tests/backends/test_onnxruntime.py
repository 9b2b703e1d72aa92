import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autotune.backends import onnxruntime as backend
from autotune.backends.onnxruntime import BACKEND, fused_model
from autotune.model.capture import capture
from autotune.model.source import CapturedModel, write
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.testing.backend_conformance import CORES, CPU, BackendConformance, RunnerConformance
from autotune.testing.toy_models import build_artifact, build_toy, expected, toy_inputs, toy_source

GPU = Device(kind="cuda", name="NVIDIA H200", uuid="gpu-test", capability=(9, 0), cores=16)
needs_cuda = pytest.mark.skipif(not BACKEND.probe(GPU).works or not torch.cuda.is_available(), reason="needs CUDA")


def on_gpu(*, convolution: bool, **values: str | bool) -> Configuration:
    usual: dict[str, str | bool] = {"precision": "fp32", "graph_optimization": "all", "cuda_graph": False}
    if convolution:
        usual |= {"conv_algo_search": "EXHAUSTIVE", "nhwc": False}
    return Configuration.of("onnxruntime", {**usual, **values})


class TestOnnxRuntimeBackend(BackendConformance):
    backend = BACKEND
    module = "autotune.backends.onnxruntime"


class TestOnnxRuntimeRunner(RunnerConformance):
    backend = BACKEND
    module = "autotune.backends.onnxruntime"


@pytest.mark.gpu
@needs_cuda
class TestOnnxRuntimeCudaRunner(RunnerConformance):
    backend = BACKEND
    module = "autotune.backends.onnxruntime"
    device = GPU


@pytest.mark.gpu
@needs_cuda
class TestOnnxRuntimeCudaGraphRunner(RunnerConformance):
    backend = BACKEND
    module = "autotune.backends.onnxruntime"
    device = GPU
    configuration = on_gpu(convolution=True, cuda_graph=True)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_answers_are_ordered_with_the_callers_stream(cuda_graph: bool, tmp_path: Path) -> None:
    chosen = on_gpu(convolution=True, cuda_graph=cuda_graph)
    runner = BACKEND.load(build_toy(BACKEND, GPU, "convolutional", tmp_path, configuration=chosen).folder, GPU)
    named = toy_inputs("convolutional", 3)
    late = torch.zeros(2, 3, 16, 16, device="cuda")
    ready = named["image"].to("cuda")
    torch.cuda.synchronize()
    torch.cuda._sleep(50_000_000)
    late.copy_(ready)
    (answer,) = runner(late)
    late.zero_()
    torch.testing.assert_close(answer.cpu(), expected("convolutional", named)[0], rtol=1e-4, atol=1e-4)


def on_cpu(**values: str | int | bool) -> Configuration:
    usual: dict[str, str | int | bool] = {"precision": "fp32", "graph_optimization": "all", "threads": 1}
    return Configuration.of("onnxruntime", {**usual, "spinning": True, **values})


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> CapturedModel:
    return toy_source("convolutional", tmp_path_factory.mktemp("convolutional"))


@pytest.mark.parametrize(("level", "activations"), [("all", 0), ("extended", 0), ("basic", 1), ("disabled", 1)])
@pytest.mark.parametrize("threads", [1, CORES])
def test_a_level_decides_what_is_fused_and_keeps_the_answer(
    level: str, activations: int, threads: int, convolutional: CapturedModel, tmp_path: Path
) -> None:
    chosen = on_cpu(graph_optimization=level, threads=threads, spinning=False)
    build_artifact(BACKEND, convolutional, chosen, CPU, tmp_path)
    assert operators(tmp_path / "model.onnx")["Relu"] == activations
    named = toy_inputs("convolutional", 3)
    answers = BACKEND.load(tmp_path, CPU)(*named.values())
    torch.testing.assert_close(answers, expected("convolutional", named), rtol=1e-4, atol=1e-5)


def test_a_configuration_sets_the_options_of_its_session() -> None:
    options = backend._session_options(on_cpu(threads=3, spinning=False), level="basic")
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"


class Layer(nn.Module):
    """Attention and feed-forward as BERT has them; ``kind`` chooses where keys, values and mask come from."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.first, self.second = nn.LayerNorm(32), nn.LayerNorm(32)

    def forward(self, hidden: Tensor, other: Tensor, mask: Tensor | None) -> Tensor:
        source = other if self.kind == "cross" else hidden
        query, key, value = (
            layer(tensor).view(tensor.shape[0], -1, 4, 8).transpose(1, 2)
            for layer, tensor in ((self.query, hidden), (self.key, source), (self.value, source))
        )
        attended = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=self.kind == "causal", scale=0.3
        )
        hidden = self.first(hidden + self.out(attended.transpose(1, 2).flatten(2)))
        return self.second(hidden + self.down(torch.nn.functional.gelu(self.up(hidden))))


class Transformer(nn.Module):
    """Layers over integer tokens and a mask, each padded, causal, cross or open (under a mask that hides nothing)."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.layers = nn.ModuleList(map(Layer, kinds))

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = self.embedding(ids)
        other = hidden[:, :5] * mask[:, :5, None]
        masks = {
            "padded": mask.bool()[:, None, None, :].expand(-1, 1, ids.shape[1], -1),
            "open": torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool),
        }
        for layer in self.layers:
            hidden = layer(hidden, other, masks.get(layer.kind))
        return {"hidden": hidden, "pooled": hidden.mean(dim=1)}


def transformer(kinds: tuple[str, ...], folder: Path) -> tuple[CapturedModel, nn.Module, dict[str, Tensor]]:
    torch.manual_seed(3)
    module = Transformer(kinds).eval()
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    inputs = {"ids": torch.randint(0, 50, (2, 9)), "mask": mask}
    write(folder, capture("toy", 2, module, inputs), inputs, factory=None, seed=0)
    return CapturedModel(folder), module, inputs


def operators(path: Path) -> collections.Counter[str]:
    import onnx

    return collections.Counter(node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node)


@pytest.mark.parametrize(
    ("kinds", "fused"),
    [
        (("padded", "open"), [("Attention", True), ("Attention", False)]),
        (("causal", "cross"), [("Attention", False), ("MultiHeadAttention", False)]),
        (("causal",), [("Attention", False)]),  # nothing reads the mask
    ],
)
def test_transformer_fusions_fuse_attention_and_keep_the_answer(
    kinds: tuple[str, ...], fused: list[tuple[str, bool]], tmp_path: Path
) -> None:
    import onnx

    source, module, inputs = transformer(kinds, tmp_path / "source")
    path = fused_model(source, "fp32") / "model.onnx"
    counts = operators(path)
    assert counts["Softmax"] == 0
    assert counts["SkipLayerNormalization"] == 2 * len(kinds) and counts["BiasGelu"] == len(kinds)
    nodes = [node for node in onnx.load(str(path), load_external_data=False).graph.node if "Attention" in node.op_type]
    biased = [len(node.input) > 5 and node.input[5] != "" for node in nodes]
    assert [(node.op_type, bias) for node, bias in zip(nodes, biased, strict=True)] == fused

    (tmp_path / "artifact").mkdir()
    build_artifact(BACKEND, source, on_cpu(transformer_fusions=True), CPU, tmp_path / "artifact")
    answers = BACKEND.load(tmp_path / "artifact", CPU)(*inputs.values())
    assert_matches(answers, module, inputs, 1e-4)


def test_an_fp16_graph_is_fused_in_fp16_and_hides_it_from_the_caller(tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    source, module, inputs = transformer(("padded",), tmp_path / "source")
    (tmp_path / "artifact").mkdir()
    chosen = on_gpu(convolution=False, precision="fp16", transformer_fusions=True)
    BACKEND.build(source, chosen, GPU, tmp_path / "artifact")
    path = tmp_path / "artifact" / "model.onnx"
    assert operators(path)["Attention"] == 1
    weights = [tensor for tensor in onnx.load(str(path)).graph.initializer if len(tensor.dims) == 2]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    answers = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    assert_matches(tuple(map(torch.from_numpy, answers)), module, inputs, 2e-2)


def assert_matches(answers: tuple[Any, ...], module: nn.Module, inputs: Mapping[str, Tensor], tolerance: float) -> None:
    with torch.no_grad():
        references = tuple(module(**inputs).values())
    torch.testing.assert_close(answers, references, rtol=tolerance, atol=tolerance)


def test_fusions_refuse_a_graph_without_anything_to_fuse(convolutional: CapturedModel) -> None:
    with pytest.raises(RuntimeError, match="nothing in this graph could be fused"):
        fused_model(convolutional, "fp32")


def test_a_build_for_a_gpu_needs_none(convolutional: CapturedModel, tmp_path: Path) -> None:
    BACKEND.build(convolutional, on_gpu(convolution=True, precision="fp16"), GPU, tmp_path)
    assert (tmp_path / "model.onnx").is_file()
    assert operators(tmp_path / "model.onnx")["Cast"] == 2, "the caller's float32 is cast at both borders"


def test_a_package_for_cpus_takes_no_part_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "onnxruntime" / "capi"
    package.mkdir(parents=True)
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    monkeypatch.delitem(__import__("sys").modules, "onnxruntime", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    refused = BACKEND.probe(GPU)
    assert not refused.works and "CUDA provider" in refused.reason and "onnxruntime-gpu>=" in refused.remedy
    (package / "libonnxruntime_providers_cuda.so").touch()
    assert BACKEND.probe(GPU).works


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "find_spec", lambda name: None if name == "onnxscript" else object())
    refused = BACKEND.probe(CPU)
    assert refused.reason == "onnxscript is not installed"
    assert refused.remedy.startswith("pip install 'torch>=") and "'onnxruntime>=" in refused.remedy
