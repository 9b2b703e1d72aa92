"""The rewritten graph is computed once for all that need it, and an artifact of it is that of a build by itself."""

import filecmp
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from autotune.backends.native.backend import BACKEND, PROGRAM
from autotune.backends.native.rewriting import rewritten
from autotune.model import capture, source
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.runtime import discovery
from autotune.search_spaces.native import native_space
from autotune.testing.toy_models import build_artifact

CPU = discovery.find("cpu")
HOPPER = Device(kind="cuda", name="NVIDIA H200", uuid="none", capability=(9, 0))
INPUTS = {"input": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


@pytest.fixture
def model(tmp_path: Path) -> source.CapturedModel:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 16)
    )
    folder = tmp_path / "model"
    source.write(folder, capture.capture("toy", 2, network.eval(), INPUTS), INPUTS, factory=None, seed=0)
    return source.CapturedModel(folder)


def tuned(**values: str | bool) -> Configuration:
    hints = native_space(HOPPER, None).hints
    hint = next(hint for hint in hints if hint["kernels"] == "tuned" and hint["precision"] == "fp16")
    return Configuration.of("native", {**dict(hint.values), **values})


def test_a_build_takes_the_graph_that_its_problems_were_found_in(model, tmp_path):
    problems = BACKEND.kernel_problems(model, tuned(), HOPPER)
    (shared,) = (model.folder / "shared").iterdir()
    configuration = native_space(CPU, None).defaults[0]
    others = (tuned(kernels="overlapped"), tuned(programmatic_launch=False), tuned(channels_last=False))
    assert all(rewritten(model, other, HOPPER).file.parent == shared for other in others)
    assert rewritten(model, tuned(conv_bn=False), HOPPER).file.parent != shared
    assert rewritten(model, tuned(precision="bf16"), HOPPER).file.parent != shared
    assert BACKEND.kernel_problems(model, tuned(), HOPPER) == problems

    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        build_artifact(BACKEND, model, configuration, CPU, folder)
    assert filecmp.cmp(first / PROGRAM, second / PROGRAM, shallow=False)
    assert json.loads((first / "native.json").read_text()) == json.loads((second / "native.json").read_text())
    answers = [BACKEND.load(folder, CPU)(INPUTS["input"])[0] for folder in (first, second)]
    assert torch.equal(*answers)


def test_fp32_and_tf32_share_a_graph(model):
    assert rewritten(model, tuned(precision="fp32"), CPU).file == rewritten(model, tuned(precision="tf32"), CPU).file


def test_graphs_beside_large_shared_results_are_not_shared(model, tmp_path, monkeypatch):
    shared = rewritten(model, tuned(), HOPPER)
    assert shared.file is not None and model.shared_bytes >= shared.file.stat().st_size
    monkeypatch.setattr("autotune.backends.native.rewriting.SHARED_BYTES", 1)
    assert rewritten(model, tuned(), HOPPER).file == shared.file  # there already
    alone = rewritten(model, tuned(conv_bn=False), HOPPER)
    assert alone.file is None and alone.matches["pooling"] == shared.matches["pooling"] == 1
    assert list((model.folder / "shared").iterdir()) == [shared.file.parent]
    alone.put(tmp_path / "graph.pt2")
    assert (tmp_path / "graph.pt2").stat().st_size > 1000


def test_a_graph_that_cannot_be_saved_for_others_is_still_there_for_this_build(model, monkeypatch):
    def full(program, file):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    graph = rewritten(model, tuned(), HOPPER)
    assert graph.file is None and graph.matches["conv_bn"] == 1
    assert model.shared_bytes == 0 and not list((model.folder / "shared").iterdir())


def test_an_artifact_keeps_its_graph_when_the_shared_one_is_gone(model, tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    build_artifact(BACKEND, model, native_space(CPU, None).defaults[0], CPU, folder)
    (shared,) = (model.folder / "shared").iterdir()
    for file in shared.iterdir():
        file.unlink()
    assert BACKEND.load(folder, CPU)(INPUTS["input"])[0].shape == (2, 16)


def test_a_graph_that_was_not_written_whole_is_written_again(model):
    def break_off(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        model.shared("graph", break_off)
    assert not list(model.folder.glob("unfinished-*"))

    def race(folder: Path) -> None:
        (folder / "whole").write_text("slower")
        model.shared("graph", lambda other: (other / "whole").write_text("faster") and None)

    assert (model.shared("graph", race) / "whole").read_text() == "faster"
    assert not list(model.folder.glob("unfinished-*"))
