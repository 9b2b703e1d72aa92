"""Our own GEMMs: compiled here for every architecture, and on a GPU held against the definition."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.backends.native.cuda_kernels.cubin_cache import CompiledKernel
from autotune.backends.native.cuda_kernels.cubin_compiler import find_compiler
from autotune.backends.native.cuda_kernels.cuda_kind import CLUSTER_GEMM, HOPPER_GEMM, CudaKind
from autotune.backends.native.cuda_kernels.kernel_source import KernelSource
from autotune.errors import WorkError
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem, Window
from autotune.runtime import discovery
from autotune.search_spaces.split_gemm import ARCHITECTURES
from tests.backends.native.kernel_problems import check, convolution, epilogues

HOPPER = Device(kind="cuda", name="Test GPU", uuid="gpu", capability=(9, 0))
PROBLEM = GemmProblem(m=128, n=768, k=3072, bias=True, activation="gelu")
KINDS = (CLUSTER_GEMM, HOPPER_GEMM)
needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="needs NVRTC or nvcc")


def first(kind: CudaKind) -> Configuration:
    return kind.first(HOPPER, PROBLEM, 1, sm_count=132)[0]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.tiles.name)
def test_shapes_and_epilogues_share_their_kernels(kind: CudaKind) -> None:
    def source(problem: GemmProblem) -> KernelSource:
        return kind.source_of(kind.tiles.build_of(HOPPER, problem, first(kind)))

    assert source(PROBLEM) == source(GemmProblem(m=16, n=1000, k=2048, residual=True))
    assert source(PROBLEM) != source(replace(PROBLEM, output="fp32"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.tiles.name)
def test_what_is_not_compiled_says_so(kind: CudaKind, tmp_path: Path) -> None:
    (candidate, *_) = kind.launches(HOPPER, PROBLEM, first(kind))
    for call in (
        lambda: kind.load(HOPPER, PROBLEM, candidate, tmp_path),
        lambda: kind.pack(HOPPER, PROBLEM, candidate, tmp_path, tmp_path / "to"),
    ):
        with pytest.raises(WorkError, match="it is not compiled in"):
            call()


@pytest.mark.usefixtures("no_cuda_compiler")
def test_without_a_compiler_the_reason_is_said(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="neither NVRTC nor nvcc"):
        CLUSTER_GEMM.compile(HOPPER, PROBLEM, [first(CLUSTER_GEMM)], tmp_path)


@needs_compiler
@pytest.mark.parametrize(
    ("kind", "capability"), [(CLUSTER_GEMM, (8, 0)), (CLUSTER_GEMM, (9, 0)), (HOPPER_GEMM, (9, 0))]
)
def test_a_kernel_compiles_and_travels(kind: CudaKind, capability: tuple[int, int], tmp_path: Path) -> None:
    device = replace(HOPPER, capability=capability)
    (made,) = kind.compile(device, PROBLEM, [first(kind)], tmp_path)
    assert made.refusal is None
    assert kind.compiled(device, PROBLEM, kind.builds(device, PROBLEM), tmp_path) == [first(kind)]
    candidate = kind.launches(device, PROBLEM, first(kind))[-1]
    target = tmp_path / "to"
    packed = kind.pack(device, PROBLEM, candidate, tmp_path, target)
    (name,) = {Path(file).stem for file in packed}
    record, code = CompiledKernel(folder=target, name=name).read()
    assert code.startswith(b"\x7fELF") and record.function.encode() in code
    assert record.build.architecture == ARCHITECTURES[capability] and record.registers > 0
    again = kind.compile(device, PROBLEM, [first(kind)], target)
    assert again[0].compile_s == 0.0


@needs_compiler
def test_tiles_of_every_form_compile(tmp_path: Path) -> None:
    problem = GemmProblem(m=200, n=768, k=768)
    tiles = random.Random(3).sample(list(HOPPER_GEMM.builds(HOPPER, problem)), 6)
    seen = Window(height=14, width=14, channels=64, kernel=(3, 3), padding=(1, 1))
    window = replace(problem, m=196, k=576, window=seen)
    for one in (problem, window):
        served = [tile for tile in tiles if tile in HOPPER_GEMM.builds(HOPPER, one)]
        assert served and all(made.refusal is None for made in HOPPER_GEMM.compile(HOPPER, one, served, tmp_path))


# From here on a GPU is needed.
SHAPES = ((1, 1000, 2048), (3, 64, 72), (49, 2048, 512), (128, 768, 3072), (197, 100, 768), (130, 257, 1032))
CONVOLUTIONS = (
    convolution(2, 64, Window(height=14, width=14, channels=64, kernel=(3, 3), padding=(1, 1))),
    convolution(1, 96, Window(height=56, width=56, channels=128, kernel=(3, 3), stride=(2, 2), padding=(1, 1))),
    convolution(3, 72, Window(height=15, width=11, channels=64, kernel=(1, 1), stride=(2, 2))),
    convolution(2, 40, Window(height=20, width=17, channels=64, kernel=(2, 5), stride=(1, 3), padding=(1, 0),
                              dilation=(3, 2))),
)  # fmt: skip


@pytest.mark.gpu
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.tiles.name)
@pytest.mark.parametrize(("dtype", "output"), [("fp16", "fp16"), ("bf16", "bf16"), ("fp16", "fp32")])
def test_random_tiles_compute_every_epilogue_of_any_shape(
    kind: CudaKind, dtype: str, output: str, tmp_path: Path
) -> None:
    device = discovery.find("cuda")
    draw = random.Random(output + dtype)
    tried: set[Configuration] = set()
    for base in [GemmProblem(m=m, n=n, k=k) for m, n, k in SHAPES] + list(CONVOLUTIONS):
        problem = draw.choice(list(epilogues(replace(base, dtype=dtype, output=output))))  # type: ignore[arg-type]
        builds = kind.builds(device, problem)
        builds = draw.sample(list(builds), min(8, len(builds)))
        results = kind.compile(device, problem, builds, tmp_path)
        assert all(made.refusal is None or "it spills" in made.refusal for made in results)
        for build in (build for build, made in zip(builds, results, strict=True) if made.refusal is None):
            for candidate in kind.launches(device, problem, build):
                for programmatic_launch in (False, True):
                    kernel = kind.load(device, problem, candidate, tmp_path, programmatic_launch=programmatic_launch)
                    check(kernel, problem, 5, device.torch_name)
                tried.add(candidate)
    assert len({candidate["splits"] for candidate in tried}) == 6
