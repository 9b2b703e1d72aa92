"""NVIDIA's own library where it is installed; elsewhere how its answers are read."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.backends.native.cutlass import matmul_heuristics
from autotune.backends.native.cutlass.matmul_heuristics import gpu_name, suggested
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces import cutlass_gemm

H200 = Device(kind="cuda", name="NVIDIA H200", uuid="gpu", capability=(9, 0))
A100 = Device(kind="cuda", name="NVIDIA A100-SXM4-80GB", uuid="gpu", capability=(8, 0))
PROBLEM = GemmProblem(m=4096, n=3072, k=768, bias=True)
installed = pytest.mark.skipif(
    importlib.util.find_spec("nvMatmulHeuristics") is None, reason="needs nvidia-matmul-heuristics"
)


def answer(**values: int) -> dict[str, int]:
    plain = {"cta_tile_m": 128, "cta_tile_n": 128, "cta_tile_k": 64, "cluster_m": 1, "cluster_n": 2, "split_k": 1}
    return {**plain, "warp_tile_m": 64, "warp_tile_n": 64, "stages": 4, **values}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    given: list[dict[str, int]] = []
    monkeypatch.setattr(matmul_heuristics, "_recommended", lambda *_: given)
    return given


def test_answers_become_legal_tiles_each_once_in_their_order(answers: list[dict[str, int]]) -> None:
    answers += [answer(cta_tile_m=64), answer(cta_tile_m=64, warp_tile_m=32), answer(cta_tile_k=24), answer(split_k=3)]
    first, second = suggested(H200, PROBLEM, 8)
    assert (first["tile_m"], first["schedule"], first["scheduler"]) == (64, "pingpong", "persistent")
    assert (second["tile_m"], second["schedule"], second["scheduler"]) == (128, "cooperative", "stream_k")
    assert (second["cluster_m"], second["cluster_n"]) == (1, 2)
    answers[:] = [answer()]
    assert [tile["schedule"] for tile in suggested(H200, PROBLEM, 8)] == ["pingpong", "cooperative"]
    assert len(suggested(H200, PROBLEM, 1)) == 1 and suggested(H200, PROBLEM, 0) == ()


def test_older_gpus_have_warps_and_stages_in_their_tiles(answers: list[dict[str, int]]) -> None:
    answers.append(answer(stages=3))
    (tile,) = suggested(A100, PROBLEM, 8)
    assert (tile["warp_m"], tile["warp_n"], tile["stages"]) == (64, 64, 3)
    assert cutlass_gemm.space(A100, PROBLEM).refusal(tile) is None


def test_nothing_is_suggested_for_what_it_does_not_know(answers: list[dict[str, int]]) -> None:
    answers.append(answer())
    assert not suggested(replace(H200, name="NVIDIA B100"), PROBLEM, 8)
    assert not suggested(H200, replace(PROBLEM, dtype="fp32", output="fp32"), 8)
    assert not suggested(H200, replace(PROBLEM, k=770), 8)


def test_gpus_are_known_by_their_parts() -> None:
    found = {sku: gpu_name(sku) for sku in ("nvidia-h200", "nvidia-h100-80gb-hbm3", "nvidia-h100-pcie", "nvidia-l4")}
    assert list(found.values()) == ["H200_SXM", "H100_SXM", "H100_PCIE", "L4"]
    assert gpu_name("nvidia-l40s") == "L40S" and gpu_name("nvidia-t4") is None


@installed
@pytest.mark.parametrize("device", [H200, A100])
def test_the_library_itself_suggests_legal_tiles(device: Device) -> None:
    for problem in (PROBLEM, GemmProblem(m=1, n=12288, k=4096, dtype="bf16", output="bf16")):
        tiles = suggested(device, problem, 4)
        space = cutlass_gemm.space(device, problem)
        assert tiles and len(set(tiles)) == len(tiles) and all(space.refusal(tile) is None for tile in tiles)


@pytest.mark.parametrize("does", ["raise RuntimeError('another interface')", "import os; os.abort()", "print('no')"])
def test_a_library_that_goes_wrong_suggests_nothing(does: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "nvMatmulHeuristics"
    package.mkdir()
    (package / "__init__.py").write_text(does + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    matmul_heuristics._recommended.cache_clear()
    assert suggested(H200, PROBLEM, 4) == ()
    matmul_heuristics._recommended.cache_clear()
