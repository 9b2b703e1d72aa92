"""Triton's kernels as a kind, without a GPU: compiled, found again and packed."""

from importlib import metadata
from pathlib import Path

import pytest

from autotune.backends.native import triton_gemm as module
from autotune.backends.native.triton_gemm import TRITON_GEMM
from autotune.configuration import Configuration
from autotune.device import Device
from autotune.errors import WorkError
from autotune.kernel_problem import GemmProblem

HOPPER = Device(kind="cuda", name="Test GPU", uuid="gpu", capability=(9, 0))
PROBLEM = GemmProblem(m=3, n=64, k=256, bias=True, activation="relu")
SPLIT = Configuration.of(
    "triton_gemm", {"form": "dot", "block_n": 32, "block_k": 64, "split_k": 2, "warps": 4, "stages": 2}
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("kernels")
    (made,) = TRITON_GEMM.compile(HOPPER, PROBLEM, [SPLIT], folder)
    assert made.refusal is None and made.compile_s > 0
    return folder


def test_the_build_is_one_of_the_problem() -> None:
    builds = TRITON_GEMM.builds(HOPPER, PROBLEM)
    assert SPLIT in builds and TRITON_GEMM.launches(HOPPER, PROBLEM, SPLIT) == (SPLIT,)
    assert set(TRITON_GEMM.first(HOPPER, PROBLEM, 4, multiprocessors=132)) <= set(builds)
    assert TRITON_GEMM.builds(HOPPER, GemmProblem(m=65, n=64, k=256)) == ()


def test_what_was_compiled_takes_no_time_again(cache: Path) -> None:
    (made,) = TRITON_GEMM.compile(HOPPER, PROBLEM, [SPLIT], cache)
    assert (made.refusal, made.compile_s) == (None, 0.0)


def test_what_is_packed_is_found_without_triton(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = module._find(HOPPER, PROBLEM, SPLIT, cache)
    packed = TRITON_GEMM.pack(HOPPER, PROBLEM, SPLIT, cache, tmp_path / "artifact")
    assert sorted(path.name for path in (tmp_path / "artifact").iterdir()) == sorted(packed)

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    monkeypatch.setattr(module, "plan", None)
    after = module._find(HOPPER, PROBLEM, SPLIT, tmp_path / "artifact")
    assert (after.launches, after.workspace_bytes) == (before.launches, before.workspace_bytes)
    assert [kernel.read() for kernel in after.kernels] == [kernel.read() for kernel in before.kernels]
    assert len(after.kernels) == 2


def test_what_is_not_compiled_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    with pytest.raises(WorkError, match=r"not compiled(.|\n)*autotune kernels tune"):
        TRITON_GEMM.load(HOPPER, PROBLEM, SPLIT, tmp_path)
