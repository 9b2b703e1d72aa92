"""What NVIDIA's nvMatmulHeuristics recommends for a GEMM, as CUTLASS tiles; nothing where it is not installed.

It is proprietary and optional (``pip install 'autotune-inference[heuristics]'``), needs no GPU, and is asked in a
process of its own. It knows GPUs by name, and says nothing of the schedule: each is taken that a tile is legal for.
"""

import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache

from autotune.errors import SpaceError
from autotune.records.configuration import Configuration, Scalar
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces import cutlass_gemm

log = logging.getLogger(__name__)

GPUS = {
    "h200": "H200_SXM", "h100-pcie": "H100_PCIE", "h100-nvl": "H100_NVL", "h100": "H100_SXM", "h20": "H20_SXM",
    "a100-80gb-pcie": "A100_PCIE_80GB", "a100-pcie": "A100_PCIE_80GB", "a100": "A100_SXM_80GB", "a30": "A30_PCIE",
    "a10": "A10_PCIE", "a40": "A40_PCIE", "l40s": "L40S", "l40": "L40", "l4": "L4", "l20": "L20",
}  # fmt: skip
"""Its names by parts of ours; the first that fits counts."""

PRECISIONS = {("fp16", "fp16"): "HSH", ("fp16", "fp32"): "HSS", ("bf16", "bf16"): "TST", ("bf16", "fp32"): "TSS"}
"""Types of operands and results; sums are in fp32."""

ASKED = 4
"""So many times as many are asked for as are wanted: what differs in a warp's share alone is one tile here."""

ASKING, TIMEOUT_S = "autotune.backends.native.cutlass.ask_matmul_heuristics", 10.0


def suggested(device: Device, problem: GemmProblem, count: int) -> tuple[Configuration, ...]:
    """Give up to ``count`` legal tiles, the most recommended first, each once."""
    gpu, precision = gpu_name(device.sku), PRECISIONS.get((problem.dtype, problem.output))
    if count < 1 or gpu is None or precision is None or problem.window is not None:
        return ()
    newest = device.capability == (9, 0)
    try:
        legal = cutlass_gemm.space(device, problem)
        sides = problem.m, problem.n, problem.k
        answers = _asked("CUTLASS3" if newest else "CUTLASS", gpu, precision, sides, ASKED * count)
    except SpaceError:
        return ()
    tiles = dict.fromkeys(tile for answer in answers for tile in _tiles(answer, newest=newest))
    return tuple(tile for tile in tiles if legal.refusal(tile) is None)[:count]


def gpu_name(sku: str) -> str | None:
    """The name that it has for a SKU such as ``nvidia-h200``, ``None`` where it has none."""
    parts = f"-{sku}-"
    return next((name for part, name in GPUS.items() if f"-{part}-" in parts), None)


def _tiles(answer: Mapping[str, int], *, newest: bool) -> Iterator[Configuration]:
    """An answer as tiles of the space: for sm_90a under the schedules that it leaves open."""
    tile: dict[str, Scalar] = {f"tile_{side}": answer[f"cta_tile_{side}"] for side in "mnk"}
    if not newest:
        warps = {f"warp_{side}": answer[f"warp_tile_{side}"] for side in "mn"}
        yield Configuration.of(cutlass_gemm.NAME, {**tile, **warps, "stages": answer["stages"]})
        return
    tile |= {"cluster_m": answer["cluster_m"], "cluster_n": answer["cluster_n"]}
    if answer["split_k"] > 1:
        yield Configuration.of(cutlass_gemm.NAME, {**tile, "schedule": "cooperative", "scheduler": "stream_k"})
        return
    for schedule in ("pingpong", "cooperative"):
        yield Configuration.of(cutlass_gemm.NAME, {**tile, "schedule": schedule, "scheduler": "persistent"})


@cache
def _asked(target: str, gpu: str, precision: str, sides: tuple[int, int, int], count: int) -> list[dict[str, int]]:
    """Its answers, the first the best; none where it is not installed or does not answer."""
    if importlib.util.find_spec("nvMatmulHeuristics") is None:
        return []
    question = {"target": target, "gpu": gpu, "precision": precision, **dict(zip("mnk", sides, strict=True))}
    try:
        told = subprocess.run(
            [sys.executable, "-m", ASKING], input=json.dumps({**question, "count": count}), text=True,
            capture_output=True, timeout=TIMEOUT_S, check=True,
        )  # fmt: skip
        found: list[dict[str, int]] = json.loads(told.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:  # it only gives advice
        tail = getattr(error, "stderr", None) or error
        log.warning("nvMatmulHeuristics says nothing of %s: %s", question, str(tail).strip()[-300:])
        return []
    return found
