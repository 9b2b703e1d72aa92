"""Queries nvMatmulHeuristics once, in a process of its own: ``python -m`` this module, JSON in and JSON out.

It is third-party native code, which has crashed its process before.
"""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

FIELDS = (
    "cta_tile_m", "cta_tile_n", "cta_tile_k", "warp_tile_m", "warp_tile_n", "cluster_m", "cluster_n", "stages",
    "split_k",
)  # fmt: skip


def answers(question: Mapping[str, Any]) -> list[dict[str, int]]:
    """Return ``count`` kernels for ``m``, ``n``, ``k``, A row-major and B column-major; the most recommended first."""
    from nvMatmulHeuristics import nvMatmulHeuristics as library

    interface = library.NvMatmulHeuristicsInterfaceEx(
        backend=library.NvMatmulHeuristicsTarget[question["target"]],
        gpu=library.NvMatmulHeuristicsNvidiaGpu[question["gpu"]],
    )
    layout = library.NvMatmulHeuristicsMatmulLayout.NT_ROW_MAJOR
    problem = interface.makeNvMatmulHeuristicsProblem(question["m"], question["n"], question["k"], layout)
    results = interface.get(problem, question["count"], precision=question["precision"])
    return [{name: int(getattr(answer["kernel"], name)) for name in FIELDS} for answer in results]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(answers(json.load(sys.stdin))) + "\n")
    sys.stdout.flush()
    os._exit(0)  # its objects cannot be destroyed while an interpreter ends
