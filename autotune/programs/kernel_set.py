"""Chooses the tiles of a standard set of kernels: ``python -m autotune.programs.kernel_set --arch sm_80``.

By estimates alone: of the kernel problems of models (``kernel_replay --write`` makes their file) each shall have eight
tiles whose estimates are within 10% of its best. The tile that serves most problems which lack some is taken first.
Prints what is reached after 16, 32, 64 and all tiles; ``--out`` writes the set into the file of standard sets.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from autotune import registry, standard_streams
from autotune.errors import RequestError
from autotune.kernels.cost import KernelCost
from autotune.kernels.rates import DeviceRates
from autotune.programs.check_result import CheckResult
from autotune.programs.document import rows_of
from autotune.programs.frame import Run, parser_of, run_program
from autotune.programs.kernel_replay.problems import read_problems
from autotune.programs.surroundings import environment
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem

NAME, BACKEND = "kernel_set", "native"
WANTED, WITHIN = 8, 0.1
MOST = 64
"""The most tiles of a set: each is compiled as a product and as a convolution, in two types."""

STEPS = (16, 32, 64)


class _Properties:
    """The properties of a GPU in the form that torch has them, from NVIDIA's data sheets and white papers."""

    def __init__(
        self, name: str, capability: tuple[int, int], sms: int, mhz: int, memory_mhz: int, bits: int, shared_kb: int,
        cache_mb: int,
    ) -> None:  # fmt: skip
        self.name, (self.major, self.minor), self.multi_processor_count = name, capability, sms
        self.shared_memory_per_multiprocessor, self.L2_cache_size = shared_kb << 10, cache_mb << 20
        self.clock_rate, self.memory_clock_rate, self.memory_bus_width = 1000 * mhz, 1000 * memory_mhz, bits


GPUS: Mapping[str, _Properties] = {
    "sm_80": _Properties("A100 SXM 40 GB", (8, 0), 108, 1410, 1215, 5120, 164, 40),
    "sm_86": _Properties("A10", (8, 6), 72, 1695, 6251, 384, 100, 6),
    "sm_89": _Properties("L4", (8, 9), 58, 2040, 6251, 192, 100, 48),
}
"""The GPU of each architecture whose rates the estimates use."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    parser = parser_of(NAME, "write the chosen tiles and what they reach")
    parser.add_argument("problems", type=Path, help="a file of kernel_replay --write")
    parser.add_argument("--arch", choices=tuple(GPUS), required=True, help="the architecture")
    parser.add_argument("--kind", default="cluster_gemm", help="the kind of kernels (cluster_gemm)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="replace the set of this architecture in this file")
    return run_program(NAME, parser, _choose, arguments)


def _choose(run: Run) -> int:
    options: argparse.Namespace = run.options
    properties = GPUS[options.arch]
    device = Device(
        kind="cuda", name=properties.name, uuid="none", capability=(properties.major, properties.minor)
    )  # fmt: skip
    problems = {
        replace(problem, dtype="fp16", output="fp16")
        for model in read_problems(options.problems)
        for problem in model.weights
    }  # fmt: skip
    good = _good_tiles(
        sorted(problems, key=lambda one: one.canonical), device, DeviceRates.of(properties), options.kind
    )
    if not good:
        raise RequestError(
            f"a set of {options.kind} for {options.arch}", found="no problem with a tile",
            expected="a kind of kernels of that architecture",
        )  # fmt: skip
    chosen, reached = _cover(good)
    results = [
        CheckResult(
            check=f"{count} tiles", limit="for information", passed=True,
            figure=f"{reached[count - 1] / len(good):.0%} of {len(good)} problems have {WANTED} tiles",
        )
        for count in (*(step for step in STEPS if step < len(chosen)), len(chosen))
    ]  # fmt: skip
    if options.out is not None:
        _write(options.out, options.arch, options.kind, chosen)
    more = {"tiles": [dict(tile.values) for tile in chosen], "gpu": properties.name}
    return run.report(rows_of(results), environment("cpu"), more=more)


def _good_tiles(
    problems: Sequence[GemmProblem], device: Device, rates: DeviceRates, kind: str
) -> Mapping[GemmProblem, frozenset[Configuration]]:
    """Return the tiles of each problem that are within 10% of its best, the best eight at least."""
    good = {}
    for problem in problems:
        builds = [build for build in registry.kernels(BACKEND).space(device, problem).builds if build.backend == kind]
        if not builds:
            continue
        cost = KernelCost(rates, problem)
        us = cost.table(cost.tiles(builds)).us
        order = sorted(range(len(builds)), key=lambda number: (us[number], builds[number].digest))
        limit = max((1 + WITHIN) * us[order[0]], us[order[min(WANTED, len(order)) - 1]])
        good[problem] = frozenset(builds[number] for number in order if us[number] <= limit)
    return good


def _cover(good: Mapping[GemmProblem, frozenset[Configuration]]) -> tuple[list[Configuration], list[int]]:
    """Take tile after tile; return them, and after each the number of problems that have enough."""
    chosen: list[Configuration] = []
    reached: list[int] = []
    have: Counter[GemmProblem] = Counter()
    while len(chosen) < MOST:
        serves: Counter[Configuration] = Counter()
        for problem, tiles in good.items():
            if have[problem] < min(WANTED, len(tiles)):
                serves.update(tiles)
        for tile in chosen:
            serves.pop(tile, None)
        if not serves:
            break
        best = min(serves, key=lambda tile: (-serves[tile], tile.digest))
        chosen.append(best)
        have.update(problem for problem, tiles in good.items() if best in tiles)
        reached.append(sum(have[problem] >= min(WANTED, len(tiles)) for problem, tiles in good.items()))
    return chosen, reached


def _write(path: Path, architecture: str, kind: str, tiles: Sequence[Configuration]) -> None:
    sets = json.loads(path.read_text())
    sets.setdefault(architecture, {})[kind] = [dict(tile.values) for tile in tiles]
    lines = []
    for name, kinds in sets.items():
        groups = [
            f"  {json.dumps(group)}: [\n" + ",\n".join(f"   {json.dumps(tile)}" for tile in rows) + "\n  ]"
            for group, rows in kinds.items()
        ]
        lines.append(f" {json.dumps(name)}: {{\n" + ",\n".join(groups) + "\n }")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    standard_streams.run(main)
