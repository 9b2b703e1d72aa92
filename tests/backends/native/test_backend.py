"""The native backend from a captured model to a runner, on a CPU; and kernels in their places."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from autotune.backends.native.backend import BACKEND
from autotune.backends.native.binding import ConvSite, GemmSite, bind_kernels, site_bias
from autotune.backends.native.fusions import fuse
from autotune.backends.native.native_kernels import KERNELS
from autotune.backends.native.packing import conv_by_torch
from autotune.backends.native.sites import fused_nodes, is_split, reads_any_layout, sites
from autotune.errors import ArtifactError
from autotune.kernel import KnownKernel, KnownKernels
from autotune.model import capture, source
from autotune.records.configuration import Configuration
from autotune.runtime import discovery
from autotune.search_spaces.native import native_space
from autotune.testing.toy_models import build_artifact

CPU = discovery.find("cpu")
IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 16), nn.GELU(),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    found = capture.capture("toy", 2, network(), {"input": IMAGE})
    source.write(folder, found, {"input": IMAGE}, factory=None, seed=0)
    return folder


def space(captured):
    model = source.CapturedModel(captured)
    found = BACKEND.graph_features(model, CPU)
    assert found["conv_bn"] == 1 and found["conv_act"] == 2 and found["gemm_epilogue"] == 1 and found["attention"] == 0
    features = (*model.workload.features, *(f"native.{name}:{count}" for name, count in found.items()))
    return native_space(CPU, dataclasses.replace(model.workload, features=features))


def test_every_default_and_hint_answers_like_the_model(captured, tmp_path):
    found = space(captured)
    assert found.defaults
    for number, configuration in enumerate((*found.defaults, *found.hints)):
        folder = tmp_path / str(number)
        folder.mkdir()
        build_artifact(BACKEND, source.CapturedModel(captured), configuration, CPU, folder)
        runner = BACKEND.load(folder, CPU)
        error = (runner(IMAGE)[0] - network()(IMAGE)).abs().max()
        assert error < (1e-5 if configuration["precision"] == "fp32" else 5e-2)
        assert BACKEND.explain_artifact(folder)["fusions"] == {"conv_bn": 1}
        runner.close()


def test_a_fusion_that_matches_nowhere_is_not_searched(captured):
    names = {parameter.name for parameter in space(captured).parameters}
    assert "conv_bn" in names and not names & {"attention", "qkv"}


@pytest.mark.parametrize("values", [{}, {"depthwise": True}, {"depthwise": True, "channels_last": True}])
def test_a_depthwise_convolution_goes_through_build_and_load(tmp_path, values):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, stride=2, groups=8), nn.BatchNorm2d(8),
        nn.Hardswish(),
    ).eval()  # fmt: skip
    (tmp_path / "source").mkdir()
    (tmp_path / "artifact").mkdir()
    found = capture.capture("toy", 2, model, {"input": IMAGE})
    source.write(tmp_path / "source", found, {"input": IMAGE}, factory=None, seed=0)
    captured = source.CapturedModel(tmp_path / "source")
    assert BACKEND.graph_features(captured, CPU)["depthwise"] == 1
    configuration = Configuration.of("native", {"precision": "fp32", "conv_bn": True, "conv_act": True, **values})
    build_artifact(BACKEND, captured, configuration, CPU, tmp_path / "artifact")
    record = BACKEND.explain_artifact(tmp_path / "artifact")
    assert record["fusions"] == {"conv_bn": 1, "conv_act": 1 if values else 2, **({"depthwise": 1} if values else {})}
    runner = BACKEND.load(tmp_path / "artifact", CPU)
    torch.testing.assert_close(runner(IMAGE)[0], model(IMAGE), rtol=1e-5, atol=1e-5)
    runner.close()


def test_a_damaged_record_is_refused(captured, tmp_path):
    build_artifact(BACKEND, source.CapturedModel(captured), space(captured).defaults[0], CPU, tmp_path)
    (tmp_path / "native.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(ArtifactError, match="no readable record"):
        BACKEND.load(tmp_path, CPU)


class Called:
    """A kernel that computes by torch, and counts."""

    made: dict[str, float] = {}  # noqa: RUF012

    def __init__(self, problem):
        self.problem, self.calls = problem, 0

    def __call__(self, a, b, bias, residual, out):
        self.calls += 1
        problem = self.problem
        assert tuple(a.shape) == (problem.m, problem.k) and tuple(b.shape) == (problem.n, problem.k)
        assert a.is_contiguous() and b.is_contiguous() and out.is_contiguous() and bias.dtype == torch.float32
        answer = a @ b.T + bias + (0 if residual is None else residual)
        out.copy_(
            {"none": lambda x: x, "relu": torch.relu, "gelu": nn.functional.gelu}[self.problem.activation](answer)
        )


def test_kernels_in_their_places_answer_like_the_operators():
    model = network()
    with torch.no_grad():
        program = torch.export.export(model, (IMAGE,))
        module = fuse(program, ["conv_bn", "gemm_epilogue", "conv_act"]).module
        before = module(IMAGE)
        found = sites(module, channels_last=True)
        problems = {site.index: site.problem for site in found if site.problem is not None}
        assert sorted((p.m, p.n, p.k, p.activation) for p in problems.values()) == [
            (2, 16, 16, "gelu"), (98, 16, 8, "relu")
        ]  # fmt: skip
        kernels = {index: Called(problem) for index, problem in problems.items()}
        parts = dict(model.named_modules())
        places = {
            index: GemmSite(kernel, parts["7"].bias.float())
            if problems[index].k == 16
            else ConvSite(kernel, parts["3"].bias.float(), problems[index])
            for index, kernel in kernels.items()
        }
        bind_kernels(module, places)
        after = module(IMAGE)
    assert all(kernel.calls == 1 for kernel in kernels.values())
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-6)


class Block(nn.Module):
    """Convolutions that are GEMMs of a window, one of them with a residual."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, (3, 1), padding=(2, 0), dilation=(2, 1), bias=False)
        self.third = nn.Conv2d(16, 24, 1, stride=2)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.third(torch.relu(self.second(x) + x))


def test_kernels_of_convolutions_in_their_places_answer_like_the_operators():
    torch.manual_seed(0)
    model, images = Block().to(torch.bfloat16).eval(), torch.randn(2, 8, 9, 7).to(torch.bfloat16)
    with torch.no_grad():
        module = fuse(torch.export.export(model, (images,)), ["conv_act"]).module
        module.to(memory_format=torch.channels_last)
        before = module(images.to(memory_format=torch.channels_last))
        found = sites(module, channels_last=True)
        assert [(site.problem.m, site.problem.n, site.problem.k) for site in found] == [
            (126, 16, 72), (126, 16, 48), (40, 24, 16)
        ]  # fmt: skip
        assert [site.problem.residual for site in found] == [False, True, False]
        for memory in (torch.channels_last, torch.contiguous_format):
            bound = copy.deepcopy(module)
            places = {}
            for site, biased in zip(found, (model.first, None, model.third), strict=True):
                kernel = KERNELS.load(CPU, site.problem, KERNELS.space(CPU, site.problem).ready[0], Path())
                bias = None if biased is None else biased.bias
                wanted = site_bias(bias, wanted=site.problem.bias, length=site.problem.n, device=images.device)
                places[site.index] = ConvSite(kernel, wanted, site.problem)
            bind_kernels(bound, places)
            after = bound(images.to(memory_format=memory))
            assert after.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(before, after, rtol=2e-2, atol=2e-2)


class Patches(nn.Module):
    """A convolution that takes images apart, as the first layer of a vision transformer does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, (4, 2), stride=(4, 2))

    def forward(self, x):
        return torch.relu(self.conv(x))


@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
def test_a_convolution_that_takes_images_apart_is_a_product_of_their_parts(memory):
    torch.manual_seed(0)
    model, images = Patches().eval(), torch.randn(2, 3, 12, 8)
    with torch.no_grad():
        module = fuse(torch.export.export(model, (images,)), ["conv_act"]).module
        module.to(memory_format=torch.channels_last)
        before = module(images)
        (site,) = sites(module, channels_last=True)
        problem = site.problem
        assert (problem.m, problem.n, problem.k, problem.window, problem.activation) == (24, 16, 24, None, "relu")
        (node,) = fused_nodes(module)
        bind_kernels(module, {site.index: conv_by_torch({"problem": problem.as_dict()}, module, node, CPU)})
        after = module(images.to(memory_format=memory))
    assert after.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)


def test_images_of_which_blocks_are_taken_come_as_they_lie():
    def taken(model):
        program = torch.export.export(model.eval(), (IMAGE,))
        return reads_any_layout(fuse(program, ["space_to_depth", "conv_act"]).module)

    assert taken(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU()))
    assert not taken(nn.Conv2d(3, 8, 3))
    assert not taken(Both())


class Both(nn.Module):
    """Reads images by blocks, and as they are."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv(x) + x[..., ::2, ::2]


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "split"),
    [
        ((4, 2), (4, 2), (0, 0), (1, 1), True),
        ((4, 2), (4, 1), (0, 0), (1, 1), False),
        ((4, 2), (4, 2), (1, 0), (1, 1), False),
        ((4, 2), (4, 2), (0, 0), (1, 2), False),
        ((5, 2), (5, 2), (0, 0), (1, 1), False),  # the last rows are in no place
    ],
)
def test_every_pixel_of_images_that_are_taken_apart_is_in_one_part(kernel, stride, padding, dilation, split):
    assert is_split((2, 3, 12, 8), kernel, stride, padding, dilation) is split


def test_a_build_has_the_kernels_that_it_was_handed_and_no_other(captured, tmp_path):
    kernel = KnownKernel(configuration=space(captured).defaults[0], median_us=1.5)
    known = KnownKernels(folder=tmp_path, best={"a" * 64: kernel}, library={}, near={"a" * 64: (kernel, kernel)})
    assert source.CapturedModel(captured, known).known_kernels == KnownKernels.from_dict(known.as_dict()) == known
    assert source.CapturedModel(captured).known_kernels is None
