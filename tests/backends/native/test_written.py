"""Norms and pointwise programs from a graph to compiled kernels in their places."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autotune.backends.native import written as module
from autotune.backends.native.binding import bind
from autotune.backends.native.fusions import fuse
from autotune.backends.native.sites import fused_nodes
from autotune.backends.native.triton_kernels.plan import Plan
from autotune.backends.native.written import FOLDER, stand_in, write_kernels
from autotune.device import Device
from autotune.model.precision import flat_module
from autotune.runtime import discovery
from tests.backends.native.triton_kernels.interpreted import interpret

CPU = discovery.find("cpu")
HOPPER = Device(kind="cuda", name="Test GPU", uuid="gpu", capability=(9, 0))
FUSIONS = ["norm", "pointwise"]


class Vision(nn.Module):
    """A tree of operators over images, with a factor for each channel, that lies channels last or not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        factor = torch.sigmoid(x.mean((2, 3), keepdim=True) * 2.0)
        return (x * factor).tanh() + x.abs()


class Language(nn.Module):
    """Norms of both kinds, with and without a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.layer = nn.LayerNorm(48), nn.RMSNorm(48, eps=1e-6), nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(x + self.layer(x))
        return y.transpose(0, 1)


INPUTS = {Vision: torch.randn(2, 3, 8, 9), Language: torch.randn(2, 5, 48)}


def fused(kind: type[nn.Module], dtype: torch.dtype, device: str = "cpu") -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    model, given = kind().to(device, dtype).eval(), INPUTS[kind].to(device, dtype)
    with torch.no_grad():
        program = fuse(torch.export.export(model, (given,)), FUSIONS).module
        return flat_module(torch.export.export(program, (given,))), given


class Interpreted:
    """A packed plan by Triton's interpreter."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder, self.calls = plan, folder, 0

    def __call__(self, buffers: dict[str, Tensor]) -> None:
        self.calls += 1
        taken = {name: buffers[name] for name in self.plan.buffers}
        (answered,) = interpret([(self.plan, {name: tensor.clone() for name, tensor in taken.items()})], self.folder)
        for name in ("out", "total"):
            if name in taken:
                taken[name].copy_(answered[name])


@pytest.mark.parametrize("kind", [Vision, Language])
@pytest.mark.parametrize("channels_last", [False, True])
def test_kernels_in_their_places_answer_like_the_operators(
    kind: type[nn.Module], channels_last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plans: dict[str, Plan] = {}
    pack = module.pack_plan

    def noting(plan: Plan, *rest: Any) -> dict[str, str]:
        files = pack(plan, *rest)
        plans[list(files)[-1]] = plan
        return files

    monkeypatch.setattr(module, "pack_plan", noting)
    used: list[Interpreted] = []

    def load(path: Path, device: int) -> Interpreted:
        used.append(Interpreted(plans[path.name], tmp_path))
        return used[-1]

    monkeypatch.setattr(module, "load_plan", load)
    graph, given = fused(kind, torch.float16)
    if channels_last:
        graph.to(memory_format=torch.channels_last)
    before = graph(given)
    record = write_kernels(graph, HOPPER, tmp_path / "kernels", channels_last=channels_last)
    nodes = list(fused_nodes(graph))
    assert len(record) == len(nodes) > 0
    written = json.loads(json.dumps(record))
    for entry in written.values():
        assert entry["plans"] and all((tmp_path / "kernels" / name).is_file() for name in entry["sources"])
    images = kind is Vision and channels_last
    assert [len(entry["plans"]) for entry in written.values()][-1] == (2 if images else 1)
    places = {
        int(index): stand_in(entry, nodes[int(index)], tmp_path / "kernels", HOPPER) for index, entry in written.items()
    }
    bound = copy.deepcopy(graph)
    bind(bound, places)
    after = bound(given)
    assert sum(one.calls for one in used) == len(nodes)
    torch.testing.assert_close(before, after, rtol=4e-3, atol=4e-3)
    if images:
        assert after.is_contiguous(memory_format=torch.channels_last)


def test_a_layout_without_a_kernel_is_torchs() -> None:
    graph, _ = fused(Vision, torch.float32)
    node = next(node for node in fused_nodes(graph) if node.target is module.POINTWISE)
    site = module.PointwiseSite({}, module.value(node))
    inputs, program = [torch.randn(2, 3)], '{"dtype":"float32","steps":[["neg",{"in":0}]]}'
    assert torch.equal(site(inputs, program), -inputs[0])


def test_nothing_is_written_for_a_cpu(tmp_path: Path) -> None:
    assert write_kernels(fused(Language, torch.float32)[0], CPU, tmp_path, channels_last=False) == {}


def test_without_triton_the_reason_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise module.WorkError("compiling", found="no package triton")

    monkeypatch.setattr(module.TritonCompiler, "find", absent)
    record = write_kernels(fused(Language, torch.float16)[0], HOPPER, tmp_path, channels_last=False)
    assert record and all("no package triton" in entry["why"] for entry in record.values())


def test_what_kernels_do_not_read_is_torchs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    record = write_kernels(fused(Language, torch.float64)[0], HOPPER, tmp_path, channels_last=False)
    assert record and all("a type that kernels do not read" in entry["why"] for entry in record.values())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [Vision, Language])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_on_a_gpu_also_in_a_graph(
    kind: type[nn.Module], channels_last: bool, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    device = discovery.find("cuda")
    graph, given = fused(kind, dtype, device.torch_name)
    if channels_last:
        graph.to(memory_format=torch.channels_last)
    bound = copy.deepcopy(graph)
    written = write_kernels(graph, device, tmp_path / "kernels", channels_last=channels_last)
    nodes = list(fused_nodes(bound))
    assert written and all("plans" in entry for entry in written.values()), written
    places = {index: stand_in(entry, nodes[index], tmp_path / "kernels", device) for index, entry in written.items()}
    bind(bound, places)
    with torch.inference_mode():
        bound(given)
        stream = torch.cuda.CUDAGraph()
        with torch.cuda.graph(stream):
            after = bound(given)
        for seed in (1, 2):
            given.copy_(torch.randn(given.shape, generator=torch.Generator().manual_seed(seed)))
            stream.replay()
            bound_of = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 1e-5}[dtype]
            torch.testing.assert_close(after, graph(given), rtol=bound_of, atol=bound_of)
    assert (tmp_path / "kernels" / FOLDER).is_dir()
