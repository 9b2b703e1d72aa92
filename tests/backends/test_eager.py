import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from autotune.backends.eager import BACKEND
from autotune.errors import ArtifactError
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.testing.backend_conformance import CORES, CPU, BackendConformance, RunnerConformance
from autotune.testing.toy_models import build_toy, expected, toy_inputs, toy_workload

GPU = Device(kind="cuda", name="NVIDIA H200", uuid="gpu-test", capability=(9, 0), cores=16)
OLD_GPU = Device(kind="cuda", name="Tesla P100", uuid="gpu-old", capability=(6, 0))


class TestEagerBackend(BackendConformance):
    backend = BACKEND
    module = "autotune.backends.eager"


class TestEagerRunner(RunnerConformance):
    backend = BACKEND
    module = "autotune.backends.eager"


def configuration(**values: str | int | bool) -> Configuration:
    return Configuration.of("eager", {"precision": "fp32", "form": "module", "threads": 1, **values})


@pytest.mark.parametrize("toy", ["convolutional", "tokens"])
def test_module_form_rebuilds_the_users_module_with_its_weights(toy: str, tmp_path: Path) -> None:
    built = build_toy(BACKEND, CPU, toy, tmp_path, factory=True, configuration=configuration())
    written = {path.name for path in built.folder.iterdir()} - {"artifact.json", "example.safetensors"}
    assert written == {"module.json", "weights.safetensors", "buffers.safetensors", "settings.json"}
    runner = BACKEND.load(built.folder, CPU)
    named = toy_inputs(toy, 3)
    for answer, reference in zip(runner(*named.values()), expected(toy, named), strict=True):
        torch.testing.assert_close(answer, reference)


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_is_computed_in_and_hidden_from_the_caller(form: str, precision: str, tmp_path: Path) -> None:
    chosen = configuration(form=form, precision=precision)
    built = build_toy(BACKEND, CPU, "convolutional", tmp_path, factory=True, configuration=chosen)
    named = toy_inputs("convolutional", 3)
    (answer,) = BACKEND.load(built.folder, CPU)(*named.values())
    (reference,) = expected("convolutional", named)
    assert answer.dtype is torch.float32
    error = float((answer - reference).norm() / reference.norm())
    assert 1e-5 < error < 3e-2


@pytest.mark.parametrize("form", ["module", "graph"])
def test_channels_last_gives_the_same_answer(form: str, tmp_path: Path) -> None:
    chosen = configuration(form=form, channels_last=True)
    built = build_toy(BACKEND, CPU, "convolutional", tmp_path, factory=True, configuration=chosen)
    seen: list[bool] = []
    runner = BACKEND.load(built.folder, CPU)
    named = toy_inputs("convolutional", 3)
    original: Any = torch.nn.functional.conv2d
    torch.testing.assert_close(runner(*named.values()), expected("convolutional", named), rtol=1e-4, atol=1e-5)
    if form == "module":
        with pytest.MonkeyPatch.context() as patch:

            def watched(image: torch.Tensor, weight: torch.Tensor, *rest: Any) -> Any:
                seen.extend(t.is_contiguous(memory_format=torch.channels_last) for t in (image, weight))
                return original(image, weight, *rest)

            patch.setattr(torch.nn.functional, "conv2d", watched)
            runner(*named.values())
        assert seen == [True, True]


def test_only_what_needs_a_convolution_asks_for_one() -> None:
    convolutional, tokens = toy_workload("convolutional"), toy_workload("tokens")
    for device in (CPU, GPU):
        with_it = {p.name for p in BACKEND.space(device, convolutional, has_factory=True).parameters}
        without = {p.name for p in BACKEND.space(device, tokens, has_factory=True).parameters}
        assert with_it - without == ({"channels_last"} if device is CPU else {"channels_last", "cudnn_benchmark"})


def test_without_a_factory_only_the_graph_can_be_run() -> None:
    for device in (CPU, GPU):
        assert {c["form"] for c in BACKEND.space(device, None, has_factory=False)} == {"graph"}
        assert {c["form"] for c in BACKEND.space(device, None, has_factory=True)} == {"graph", "module"}


def test_baselines_on_a_cpu_are_plain_fp32_at_each_thread_count() -> None:
    device = Device(kind="cpu", name="Test CPU", uuid="c", cores=6, isa=("amx_bf16",))
    for has_factory in (True, False):
        space = BACKEND.space(device, None, has_factory=has_factory)
        assert all(BACKEND.is_baseline(c, has_factory=has_factory) for c in space.defaults)
        assert sorted(int(c["threads"]) for c in space.defaults) == [1, 2, 4, 6]
        baselines = [c for c in space if BACKEND.is_baseline(c, has_factory=has_factory)]
        assert {c["precision"] for c in baselines} == {"fp32"} and {c["channels_last"] for c in baselines} == {False}


def test_baseline_on_a_gpu_has_the_frameworks_flags_and_no_knob() -> None:
    space = BACKEND.space(GPU, None, has_factory=True)
    assert [BACKEND.is_baseline(c, has_factory=True) for c in space.defaults] == [True, False, False]
    assert [c["precision"] for c in space.defaults] == ["default", "fp16", "fp16"]
    assert (space.defaults[2]["cuda_graph"], space.defaults[2]["channels_last"]) == (True, True)
    assert {c["precision"] for c in space} == {"default", "fp32", "tf32", "bf16", "fp16"}
    for found in itertools.chain(space, BACKEND.space(OLD_GPU, None, has_factory=True)):
        plain_module = found["precision"] == "default" and found["form"] == "module"
        assert BACKEND.is_baseline(found, has_factory=True) == plain_module


def test_a_gpu_without_half_precision_has_the_baseline_alone_as_its_default() -> None:
    space = BACKEND.space(OLD_GPU, None, has_factory=True)
    assert len(space.defaults) == 1 and BACKEND.is_baseline(space.defaults[0], has_factory=True)


@pytest.mark.parametrize("has_factory", [True, False])
def test_other_backends_and_turned_knobs_are_no_baseline(has_factory: bool) -> None:
    plain = BACKEND.space(CPU, None, has_factory=has_factory).defaults[0]
    assert BACKEND.is_baseline(plain, has_factory=has_factory)
    assert not BACKEND.is_baseline(Configuration.of("torchscript", dict(plain.values)), has_factory=has_factory)
    for knob in ({"channels_last": True}, {"precision": "bf16"}, {"precision": "default"}):
        turned = Configuration.of("eager", {**dict(plain.values), **knob})
        assert not BACKEND.is_baseline(turned, has_factory=has_factory)


def test_a_gpu_is_refused_where_torch_has_no_cuda() -> None:
    if torch.version.cuda is not None:
        pytest.skip("this torch is built with CUDA")
    found = BACKEND.probe(GPU)
    assert not found.works and "without CUDA" in found.reason and found.remedy.startswith("pip install")


def test_damaged_settings_are_refused(tmp_path: Path) -> None:
    built = build_toy(BACKEND, CPU, "tokens", tmp_path, configuration=configuration(form="graph"))
    settings = json.loads((built.folder / "settings.json").read_text())
    for damage in ("{", json.dumps({**settings, "schema": 99}), json.dumps({**settings, "more": 1})):
        (built.folder / "settings.json").write_text(damage)
        with pytest.raises(ArtifactError, match=r"settings\.json"):
            BACKEND.load(built.folder, CPU)


def test_a_closed_runner_says_so(tmp_path: Path) -> None:
    built = build_toy(BACKEND, CPU, "tokens", tmp_path, configuration=configuration(form="graph"))
    runner = BACKEND.load(built.folder, CPU)
    runner.close()
    with pytest.raises(ArtifactError, match="closed"):
        runner(*toy_inputs("tokens").values())


def test_threads_of_the_configuration_hold_during_the_call_only(tmp_path: Path) -> None:
    built = build_toy(BACKEND, CPU, "tokens", tmp_path, factory=True, configuration=configuration(threads=1))
    seen: list[int] = []
    original = torch.nn.functional.gelu

    def watched(value: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return original(value)

    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "gelu", watched)
        torch.set_num_threads(CORES + 1)
        try:
            BACKEND.load(built.folder, CPU)(*toy_inputs("tokens").values())
            assert torch.get_num_threads() == CORES + 1
        finally:
            torch.set_num_threads(before)
    assert set(seen) == {1}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestEagerRunnerOnGpu(RunnerConformance):
    backend = BACKEND
    module = "autotune.backends.eager"
    tolerance = 5e-3
    device = Device(kind="cuda", name="GPU", uuid="gpu", capability=(9, 0))


def test_a_gpu_tries_one_more_knob_in_its_cuda_graph_early() -> None:
    space = BACKEND.space(GPU, None, has_factory=True)
    assert [(h["cuda_graph"], h["cudnn_benchmark"], h["form"]) for h in space.hints] == [
        (True, True, "module"),
        (True, False, "graph"),
    ]
    assert not set(space.hints) & set(space.defaults)
    assert [h["cudnn_benchmark"] for h in BACKEND.space(GPU, None, has_factory=False).hints] == [True]
    assert not BACKEND.space(CPU, None, has_factory=True).hints
