"""GEMMs over clusters: compiled here for every architecture, and on a GPU held against the definition."""

import ctypes
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.backends.native.cluster.kind import CLUSTER_GEMM, source_of
from autotune.configuration import Configuration
from autotune.device import Device
from autotune.errors import WorkError
from autotune.kernel import MadeKernel
from autotune.kernel_problem import GemmProblem
from autotune.runtime import discovery
from autotune.search_spaces.cluster_gemm import ARCHITECTURES, build_of
from tests.backends.native.kernel_problems import check, epilogues

HOPPER = Device(kind="cuda", name="Test GPU", uuid="gpu", capability=(9, 0))
PROBLEM = GemmProblem(m=128, n=768, k=3072, bias=True, activation="gelu")
BUILD = CLUSTER_GEMM.first(HOPPER, PROBLEM, 1, multiprocessors=132)[0]
FEW_BYTES = 16
"""What the smallest tiles with the most stages may spill of a thread, which costs nothing."""
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


def test_shapes_and_epilogues_share_their_kernels() -> None:
    other = GemmProblem(m=16, n=1000, k=2048, residual=True)
    assert source_of(build_of(HOPPER, PROBLEM, BUILD)) == source_of(build_of(HOPPER, other, BUILD))
    assert source_of(build_of(HOPPER, PROBLEM, BUILD)) != source_of(
        build_of(HOPPER, replace(PROBLEM, output="fp32"), BUILD)
    )


def test_what_is_not_compiled_says_so(tmp_path: Path) -> None:
    (candidate, *_) = CLUSTER_GEMM.launches(HOPPER, PROBLEM, BUILD)
    for call in (
        lambda: CLUSTER_GEMM.load(HOPPER, PROBLEM, candidate, tmp_path),
        lambda: CLUSTER_GEMM.pack(HOPPER, PROBLEM, candidate, tmp_path, tmp_path / "to"),
    ):
        with pytest.raises(WorkError, match="it is not compiled in"):
            call()


def test_without_a_compiler_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("NVCC", raising=False)
    with pytest.raises(WorkError, match="no nvcc on PATH"):
        CLUSTER_GEMM.compile(HOPPER, PROBLEM, [BUILD], tmp_path)


@needs_nvcc
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_a_kernel_compiles_and_travels(capability: tuple[int, int], tmp_path: Path) -> None:
    device = replace(HOPPER, capability=capability)
    (made,) = CLUSTER_GEMM.compile(device, PROBLEM, [BUILD], tmp_path)
    assert made.refusal is None
    candidate = CLUSTER_GEMM.launches(device, PROBLEM, BUILD)[-1]
    packed = CLUSTER_GEMM.pack(device, PROBLEM, candidate, tmp_path, tmp_path / "to")
    ((name, key),) = packed.items()
    library = ctypes.CDLL(str(tmp_path / "to" / name))
    assert hasattr(library, f"kernel_{key[:16]}_run") and hasattr(library, f"kernel_{key[:16]}_made")
    assert f"{ARCHITECTURES[capability]}".encode() in (tmp_path / "to" / name).read_bytes()


# From here on a GPU is needed.
SHAPES = ((1, 1000, 2048), (3, 64, 72), (49, 2048, 512), (128, 768, 3072), (197, 100, 768), (130, 257, 1032))


@pytest.mark.gpu
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("dtype", "output"), [("fp16", "fp16"), ("bf16", "bf16"), ("fp16", "fp32")])
def test_random_tiles_compute_every_epilogue_of_any_shape(dtype: str, output: str, tmp_path: Path) -> None:
    device = discovery.find("cuda")
    base = GemmProblem(m=512, n=4096, k=8192, dtype=dtype, output=output)  # type: ignore[arg-type]
    draw = random.Random(output + dtype)
    builds = draw.sample(list(CLUSTER_GEMM.builds(device, base)), 32)
    found = CLUSTER_GEMM.compile(device, base, builds, tmp_path)
    assert found == [MadeKernel(refusal=None, compile_s=made.compile_s) for made in found]
    tried: set[Configuration] = set()
    for build in builds:
        for m, n, k in SHAPES:
            problem = draw.choice(list(epilogues(replace(base, m=m, n=n, k=k))))
            if build not in CLUSTER_GEMM.builds(device, problem):
                continue
            for candidate in CLUSTER_GEMM.launches(device, problem, build):
                kernel = CLUSTER_GEMM.load(device, problem, candidate, tmp_path)
                assert kernel.made["spilled_bytes"] <= FEW_BYTES, candidate
                check(kernel, problem, 5, device.torch_name)
                tried.add(candidate)
    assert len({candidate["splits"] for candidate in tried}) == 6
