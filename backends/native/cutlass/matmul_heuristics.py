"""The CUTLASS tiles that NVIDIA's nvMatmulHeuristics recommends for a GEMM; none if it is not installed.

It is proprietary and optional (the extra ``heuristics``), needs no GPU, and runs in a
process of its own. It has GPUs by name, and does not recommend a schedule: all legal schedules of a tile are listed.
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
"""Its names of GPUs by parts of ours; the first part that matches decides."""

PRECISIONS = {("fp16", "fp16"): "HSH", ("fp16", "fp32"): "HSS", ("bf16", "bf16"): "TST", ("bf16", "fp32"): "TSS"}
"""Types of operands and results; sums are in fp32."""

OVERSAMPLING = 4
"""Factor between requested and wanted answers: answers that differ in a warp's share only are the same tile here."""

QUERY_MODULE, TIMEOUT_S = "autotune.backends.native.cutlass.ask_matmul_heuristics", 10.0


def suggested(device: Device, problem: GemmProblem, count: int) -> tuple[Configuration, ...]:
    """Return up to ``count`` legal tiles, the most recommended first, each once."""
    gpu, precision = gpu_name(device.sku), PRECISIONS.get((problem.dtype, problem.output))
    if count < 1 or gpu is None or precision is None or problem.window is not None:
        return ()
    newest = device.capability == (9, 0)
    try:
        legal = cutlass_gemm.space(device, problem)
        sides = problem.m, problem.n, problem.k
        answers = _recommended("CUTLASS3" if newest else "CUTLASS", gpu, precision, sides, OVERSAMPLING * count)
    except SpaceError:
        return ()
    tiles = dict.fromkeys(tile for answer in answers for tile in _tiles(answer, newest=newest))
    return tuple(tile for tile in tiles if legal.refusal(tile) is None)[:count]


def gpu_name(sku: str) -> str | None:
    """Return its name for a SKU such as ``nvidia-h200``, ``None`` if it has none."""
    parts = f"-{sku}-"
    return next((name for part, name in GPUS.items() if f"-{part}-" in parts), None)


def _tiles(answer: Mapping[str, int], *, newest: bool) -> Iterator[Configuration]:
    """Yield the tiles of an answer: for sm_90a one for each schedule, which it does not recommend."""
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
def _recommended(
    target: str, gpu: str, precision: str, sides: tuple[int, int, int], count: int
) -> list[dict[str, int]]:
    """Return its answers, the best first; none if it is not installed or does not answer."""
    if importlib.util.find_spec("nvMatmulHeuristics") is None:
        return []
    question = {"target": target, "gpu": gpu, "precision": precision, **dict(zip("mnk", sides, strict=True))}
    try:
        process = subprocess.run(
            [sys.executable, "-m", QUERY_MODULE], input=json.dumps({**question, "count": count}), text=True,
            capture_output=True, timeout=TIMEOUT_S, check=True,
        )  # fmt: skip
        answers: list[dict[str, int]] = json.loads(process.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:  # it only gives advice
        tail = getattr(error, "stderr", None) or error
        log.warning("nvMatmulHeuristics has no recommendation for %s: %s", question, str(tail).strip()[-300:])
        return []
    return answers
