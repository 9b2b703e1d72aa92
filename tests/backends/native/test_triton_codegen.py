"""Norms, attention, pooling and pointwise programs from a graph to compiled kernels in their places."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autotune.backends.native import triton_codegen, triton_codegen_sites
from autotune.backends.native.binding import bind_kernels
from autotune.backends.native.fusions import fuse
from autotune.backends.native.sites import fused_nodes
from autotune.backends.native.triton_codegen import compile_triton_sites
from autotune.backends.native.triton_codegen_sites import FOLDER, load_site_module
from autotune.backends.native.triton_kernels.launch_plan import LaunchPlan
from autotune.model.precision import flat_module
from autotune.records.device import Device
from autotune.runtime import discovery
from tests.backends.native.triton_kernels.interpreted import interpret

CPU = discovery.find("cpu")
HOPPER = Device(kind="cuda", name="Test GPU", uuid="gpu", capability=(9, 0))


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
    """Norms of both kinds, with and without a residual, the last with a cast after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.layer = nn.LayerNorm(48), nn.RMSNorm(48, eps=1e-6), nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(x + self.layer(x))
        return y.transpose(0, 1).float()


class Attentive(nn.Module):
    """Attention among parts of one layer's answer, and over another's, with a mask of keys and without."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 3 * 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one.unflatten(2, (2, 16)).transpose(1, 2) for one in self.layer(x).split(32, 2))
        mask = (x[:, :, 0] > -1.0)[:, None, None, :]
        seen = functional.scaled_dot_product_attention(q, k, v, mask)
        return functional.scaled_dot_product_attention(seen, k, v, is_causal=True).transpose(1, 2).flatten(2)


class Pooled(nn.Module):
    """A network's first pooling and its last, with a cast after it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(functional.max_pool2d(self.conv(x), 3, 2, 1), 1).flatten(1).float()


class Squeezed(nn.Module):
    """A mean of images that are so large that blocks divide their pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3), keepdim=True)


class Depthwise(nn.Module):
    """A depthwise convolution with its activation, and one with a pad before it and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.first = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.second = nn.Conv2d(16, 16, (3, 2), groups=16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.second(functional.pad(functional.silu(self.first(x)), (1, 0, 0, 2))) + x


class Stem(nn.Module):
    """A first convolution over three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 5, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Grouped(nn.Module):
    """A group norm with its activation between convolutions, and one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.norms = nn.ModuleList([nn.GroupNorm(4, 16), nn.GroupNorm(2, 16)])

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[1](self.last(functional.silu(self.norms[0](self.first(x)))))


IMAGES = torch.randn(2, 3, 8, 9)
INPUTS = {
    Vision: IMAGES,
    Language: torch.randn(2, 5, 48),
    Attentive: torch.randn(2, 5, 48),
    Pooled: IMAGES,
    Squeezed: torch.randn(1, 3, 72, 72),
    Depthwise: IMAGES,
    Stem: IMAGES,
    Grouped: IMAGES,
}
FUSIONS = {
    Vision: ["pointwise"],
    Language: ["norm"],
    Attentive: ["attention_kernel", "pointwise"],
    Pooled: ["pooling"],
    Squeezed: ["pooling"],
    Depthwise: ["depthwise"],
    Stem: ["space_to_depth"],
    Grouped: ["norm"],
}
KINDS = pytest.mark.parametrize(
    ("kind", "channels_last"),
    [
        *((kind, last) for kind in (Vision, Language, Attentive, Grouped, Depthwise) for last in (False, True)),
        (Pooled, True),
        (Squeezed, True),
        (Stem, True),
    ],
)


def fused(kind: type[nn.Module], dtype: torch.dtype, device: str = "cpu") -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    model, given = kind().to(device, dtype).eval(), INPUTS[kind].to(device, dtype)
    with torch.no_grad():
        program = fuse(torch.export.export(model, (given,)), FUSIONS[kind]).module
        return flat_module(torch.export.export(program, (given,))), given


class Interpreted:
    """A packed plan by Triton's interpreter."""

    def __init__(self, plan: LaunchPlan, folder: Path) -> None:
        self.plan, self.folder, self.calls = plan, folder, 0

    def __call__(self, buffers: dict[str, Tensor]) -> None:
        self.calls += 1
        taken = {name: buffers[name] for name in self.plan.buffers}
        (answered,) = interpret([(self.plan, taken)], self.folder)
        for name in ("out", "total"):
            if name in taken:
                taken[name].copy_(answered[name])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which all tests find the kernels that one of them had compiled."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def compiled_once(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(compiled))


@KINDS
def test_kernels_in_their_places_answer_like_the_operators(
    kind: type[nn.Module], channels_last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    plans: dict[str, LaunchPlan] = {}
    pack = triton_codegen.pack_plan

    def noting(plan: LaunchPlan, *rest: Any) -> dict[str, str]:
        files = pack(plan, *rest)
        plans[list(files)[-1]] = plan
        return files

    monkeypatch.setattr(triton_codegen, "pack_plan", noting)
    used: list[Interpreted] = []

    def load(path: Path, device: int) -> Interpreted:
        used.append(Interpreted(plans[path.name], tmp_path))
        return used[-1]

    monkeypatch.setattr(triton_codegen_sites, "load_plan", load)
    graph, given = fused(kind, torch.float16)
    if channels_last:
        graph.to(memory_format=torch.channels_last)
    before = graph(given)
    record = compile_triton_sites(graph, HOPPER, tmp_path / "kernels", channels_last=channels_last)
    nodes = list(fused_nodes(graph))
    assert len(record) == len(nodes) > 0 and not any("_to_copy" in str(node.target) for node in graph.graph.nodes)
    for packed in record.values():
        assert packed.plans and all((tmp_path / "kernels" / name).is_file() for name in packed.sources)
    images = kind in (Vision, Stem, Grouped) and channels_last
    assert [len(packed.plans) for packed in record.values()][-1] == (2 if images else 1)
    places = {
        index: load_site_module(json.loads(json.dumps(packed.plans)), nodes[index], tmp_path / "kernels", HOPPER)
        for index, packed in record.items()
    }
    bound = copy.deepcopy(graph)
    bind_kernels(bound, places)
    after = bound(given)
    assert sum(one.calls for one in used) == len(nodes)
    assert (kind is Squeezed) == any(len(plan.launches) > 1 for plan in plans.values())
    torch.testing.assert_close(before, after, rtol=4e-3, atol=4e-3)
    if images or (kind is Depthwise and channels_last):
        assert after.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", INPUTS)
def test_every_kernel_compiles_with_programmatic_launch(kind: type[nn.Module], tmp_path: Path) -> None:
    pytest.importorskip("triton")
    graph, _ = fused(kind, torch.float16)
    record = compile_triton_sites(graph, HOPPER, tmp_path, channels_last=True, programmatic_launch=True)
    assert record and all(packed.plans for packed in record.values()), record
    launches = [json.loads(path.read_text())["early"] for path in (tmp_path / FOLDER).glob("*.json")
                if not path.name.endswith(".plan.json")]  # fmt: skip
    assert launches and all(launches)


def test_a_layout_without_a_kernel_is_torchs() -> None:
    graph, _ = fused(Vision, torch.float32)
    node = next(node for node in fused_nodes(graph) if node.target is triton_codegen_sites.POINTWISE)
    site = triton_codegen_sites.PointwiseSite({}, triton_codegen_sites.value(node))
    inputs, program = [torch.randn(2, 3)], '{"dtype":"float32","steps":[["neg",{"in":0}]]}'
    assert torch.equal(site(inputs, program), -inputs[0])


def test_pooling_is_torchs_unless_images_lie_channels_last(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    record = compile_triton_sites(fused(Pooled, torch.float16)[0], HOPPER, tmp_path, channels_last=False)
    assert len(record) == 2 and all("channels-last memory" in packed.why for packed in record.values())


def test_attention_of_another_type_is_torchs(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    record = compile_triton_sites(fused(Attentive, torch.float32)[0], HOPPER, tmp_path, channels_last=False)
    assert [packed for packed in record.values() if "fp16 or bf16" in packed.why]


class Refusing:
    """A plan that must not be called."""

    def __call__(self, buffers: dict[str, Tensor]) -> None:
        raise AssertionError("called for operands that it was not compiled for")


def test_operands_that_lie_otherwise_than_planned_are_torchs() -> None:
    x = torch.randn(2, 16, 3, 4)
    pool = triton_codegen_sites.PoolSite(Refusing(), triton_codegen_sites.MEAN_POOL, torch.empty(2, 16, 1, 1))  # type: ignore[arg-type]
    torch.testing.assert_close(pool(x), x.mean((2, 3), keepdim=True))
    q = torch.randn(2, 3, 5, 8)
    attention = triton_codegen_sites.AttentionSite(Refusing(), (triton_codegen_sites.layout(q),) * 3)  # type: ignore[arg-type]
    other = q.transpose(2, 3).contiguous().transpose(2, 3)
    expected = functional.scaled_dot_product_attention(other, q, q)
    torch.testing.assert_close(attention(other, q, q, None, False, None), expected)


def test_nothing_is_written_for_a_cpu(tmp_path: Path) -> None:
    assert compile_triton_sites(fused(Language, torch.float32)[0], CPU, tmp_path, channels_last=False) == {}


def test_without_triton_the_reason_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise triton_codegen.WorkError("compiling", found="no package triton")

    monkeypatch.setattr(triton_codegen.TritonCompiler, "find", absent)
    record = compile_triton_sites(fused(Language, torch.float16)[0], HOPPER, tmp_path, channels_last=False)
    assert record and all("no package triton" in packed.why for packed in record.values())


def test_what_kernels_do_not_read_is_torchs(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    record = compile_triton_sites(fused(Language, torch.float64)[0], HOPPER, tmp_path, channels_last=False)
    assert record and all("a type that kernels do not read" in packed.why for packed in record.values())


@pytest.mark.gpu
@KINDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_on_a_gpu_also_in_a_graph(
    kind: type[nn.Module], channels_last: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    device = discovery.find("cuda")
    graph, given = fused(kind, dtype, device.torch_name)
    if channels_last:
        graph.to(memory_format=torch.channels_last)
    bound = copy.deepcopy(graph)
    record = compile_triton_sites(graph, device, tmp_path / "kernels", channels_last=channels_last)
    nodes = list(fused_nodes(bound))
    if kind is Attentive and dtype is torch.float32:
        assert record and all("computes in fp16 or bf16" in packed.why for packed in record.values()), record
        return
    assert record and all(packed.plans for packed in record.values()), record
    places = {
        index: load_site_module(packed.plans, nodes[index], tmp_path / "kernels", device)
        for index, packed in record.items()
    }
    bind_kernels(bound, places)
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
