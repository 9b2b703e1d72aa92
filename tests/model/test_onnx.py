import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autotune.model.capture import capture
from autotune.model.onnx import exported
from autotune.model.source import CapturedModel, write


class Toy(nn.Module):
    """Reads one of two inputs; its constant expansion is one that the exporter's folding cannot evaluate."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)
        self.register_buffer("zeros", torch.zeros(1, 8, dtype=torch.int64))

    def forward(self, image: Tensor, unused: Tensor) -> dict[str, Tensor]:
        index = torch.gather(self.zeros.expand(1, -1), 1, torch.arange(2)[None])
        hidden = self.layer(image) + index.sum()
        return {"hidden": hidden, "best": hidden.argmax(dim=-1)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CapturedModel:
    folder = tmp_path_factory.mktemp("source")
    torch.manual_seed(0)
    inputs = {"image": torch.randn(2, 4), "unused": torch.ones(2, dtype=torch.int64)}
    write(folder, capture("toy", 2, Toy().eval(), inputs), inputs, factory=None, seed=0)
    return CapturedModel(folder)


def graph(folder: Path) -> Any:
    import onnx

    return onnx.load(str(folder / "model.onnx")).graph


def test_names_are_the_workloads(model: CapturedModel) -> None:
    found = graph(exported(model, "fp32"))
    assert [value.name for value in found.input] == ["image", "unused"]
    assert [value.name for value in found.output] == ["hidden", "best"]


def test_tf32_shares_the_fp32_export_and_a_second_call_exports_nothing(model: CapturedModel) -> None:
    first = exported(model, "fp32")
    stamp = (first / "model.onnx").stat().st_mtime_ns
    assert exported(model, "tf32") == exported(model, "fp32") == first
    assert (first / "model.onnx").stat().st_mtime_ns == stamp
    assert not list(model.folder.glob("scratch-*"))


def test_a_reduced_export_keeps_the_callers_dtypes(model: CapturedModel) -> None:
    import onnx

    found = graph(exported(model, "fp16"))
    assert [v.type.tensor_type.elem_type for v in found.input] == [onnx.TensorProto.FLOAT, onnx.TensorProto.INT64]
    assert [v.type.tensor_type.elem_type for v in found.output] == [onnx.TensorProto.FLOAT, onnx.TensorProto.INT64]
    assert onnx.TensorProto.FLOAT16 in {tensor.data_type for tensor in found.initializer}


def test_a_variant_is_made_by_its_rewrite_without_noise_and_kept_apart(
    model: CapturedModel, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def rewrite(program: Any, inputs: tuple[Any, ...]) -> Any:
        seen.append(tuple(tuple(tensor.shape) for tensor in inputs))
        return program

    folding = logging.getLogger("onnxscript.optimizer._constant_folding")
    before = folding.level
    with caplog.at_level(logging.WARNING):
        folder = exported(model, "fp32", variant="same", rewrite=rewrite)
    assert folding.level == before
    assert caplog.messages == [] and capfd.readouterr() == ("", "")
    assert folder != exported(model, "fp32") and (folder / "model.onnx").is_file()
    exported(model, "fp32", variant="same", rewrite=rewrite)
    assert seen == [((2, 4), (2,))]
