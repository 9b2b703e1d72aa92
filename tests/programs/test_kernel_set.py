"""The program that chooses standard sets: every committed set is legal, and is what the program chooses."""

import json
import shutil
from pathlib import Path

import pytest

from autotune.backends.native.cuda_kernels import kernel_sets
from autotune.programs import kernel_set
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces.split_gemm import ARCHITECTURES

PROBLEMS = Path(__file__).parents[2] / "studies" / "kernels" / "model-problems.json.gz"
LARGE = GemmProblem(m=8192, n=4096, k=4096)


@pytest.mark.parametrize("architecture", kernel_sets.architectures())
def test_every_tile_of_a_standard_set_is_one_that_a_search_may_choose(architecture: str) -> None:
    (capability,) = (pair for pair, name in ARCHITECTURES.items() if name == architecture)
    device = Device(kind="cuda", name="Test GPU", uuid="gpu", capability=capability)
    sources = list(kernel_sets.standard_sources(architecture, ["fp16"]))
    assert len({source.key for source in sources}) == len(sources) >= 32
    for kind in {source.build.kind for source in sources}:
        space = set(kernel_sets.KINDS[kind].builds(device, LARGE))
        tiles = {source.build.tile for source in sources if source.build.kind == kind}
        assert tiles <= space, sorted(map(str, tiles - space))[:3]


def test_the_committed_sets_are_those_that_the_program_chooses(tmp_path: Path) -> None:
    out, whole = tmp_path / "tiles.json", json.loads(kernel_sets.STANDARD_TILES.read_text())
    shutil.copy(kernel_sets.STANDARD_TILES, out)
    out.write_text(json.dumps({**whole, "sm_86": {}}))
    assert kernel_set.main([str(PROBLEMS), "--arch", "sm_86", "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == whole
