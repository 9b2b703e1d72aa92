"""A made-up GPU for tests: its times come from no device and prove nothing about one.

It is built otherwise than the estimate that the search begins with: rates of its own, drawn with the seed and up to a
third off; losses that the estimate knows nothing of (narrow tiles, deep clusters, few stages, swizzle, raster, order of
a reduction); a smooth random landscape over the tile; noise; builds that fail.
"""

import math
import random
from collections.abc import Iterator, Sequence

from autotune.kernels.rates import DeviceRates
from autotune.programs.kernel_search.space_file import RecordedBuild, RecordedLaunch, RecordedSpace
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.records.trial import Failure
from autotune.search_spaces import cutlass_gemm, cutlass_sm90

RATES = DeviceRates(
    sm_count=132,
    clock_hz=1.98e9,
    flops_per_clock=4096,
    flops_per_s=790e12,
    memory_bytes_per_s=4.3e12,
    shared_bytes=233472,
    cache_bytes=52428800,
)
DEVICE = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-0", capability=(9, 0))

SHAPES = (
    *((128, 3072, 768), (128, 768, 3072), (197, 3072, 768), (4096, 3072, 768), (4096, 768, 3072), (6304, 3072, 768)),
    *((8192, 8192, 8192), (16, 4096, 4096), (128, 2304, 768), (1024, 1024, 1024), (32, 11008, 4096), (3136, 256, 64)),
)


def problems(shapes: Sequence[tuple[int, int, int]] = SHAPES, **what: object) -> tuple[GemmProblem, ...]:
    return tuple(GemmProblem(m=m, n=n, k=k, bias=True, activation="gelu", **what) for m, n, k in shapes)  # type: ignore[arg-type]


class Simulator:
    """Times of candidates, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self._seed = seed
        self._tensor_share = draw.uniform(0.7, 0.95)
        self._intake_bytes_per_s = draw.uniform(45, 85) * 1.98e9
        self._cache_bytes_per_s = draw.uniform(6e12, 13e12)
        self._epilogue_s = draw.uniform(20, 50) / 128 / 1.98e9
        self._launch_s = draw.uniform(2e-6, 4e-6)
        self._narrow = draw.uniform(0.2, 1.2)
        self._cluster = [draw.uniform(-0.05, 0.04) for _ in range(2)]
        self._pingpong = draw.uniform(-0.12, 0.08)
        self._landscape = [
            (draw.uniform(0.01, 0.035), [draw.gauss(0, 0.7) for _ in range(8)], draw.uniform(0, 2 * math.pi))
            for _ in range(8)
        ]

    def time_us(self, problem: GemmProblem, candidate: Configuration) -> float:
        tile = dict(candidate.values)
        m, n, k, cm, cn = (int(tile[x]) for x in ("tile_m", "tile_n", "tile_k", "cluster_m", "cluster_n"))
        rows, columns = (-(-size // (t * c)) * c for size, t, c in ((problem.m, m, cm), (problem.n, n, cn)))
        blocks, steps = rows * columns, math.ceil(problem.k / k)
        splits = int(tile["splits"])
        spread = tile["scheduler"] == "stream_k" and splits == 1
        seats = 132 // (cm * cn) * cm * cn if cm * cn < 8 else 120
        stages = cutlass_sm90.stages(problem, tile)
        tensor_s = 2 * m * n * k / (4096 * 1.98e9 * self._tensor_share) * (1 + self._narrow * 16 / n)
        intake_s = (min(m, problem.m) + min(n, problem.n)) * k * 2 / self._intake_bytes_per_s
        step_s = math.hypot(tensor_s, intake_s) * (1 + 0.5 / stages**2) + 60e-9
        epilogue_s = m * n * self._epilogue_s + 0.4e-6
        shown_s = epilogue_s * (0.5 if tile["schedule"] == "pingpong" else 1.0)
        units = blocks * splits
        length = math.ceil(steps / splits)
        if spread and blocks % seats:
            busy_s = blocks * steps / min(seats, blocks * steps) * step_s * 1.05 + math.ceil(blocks / seats) * shown_s
            busy_s += 1.2e-6 + m * n * 8 / self._intake_bytes_per_s
        else:
            busy_s = math.ceil(units / seats) * (length * step_s + shown_s) + epilogue_s - shown_s
        if splits > 1:
            ordered = 1.0 if tile["reduction"] == "deterministic" else 0.6
            busy_s += ordered * (splits - 1) * (0.3e-6 + m * n * 4 / self._intake_bytes_per_s)
        misses = 1 - 0.04 * math.log2(int(tile["swizzle"])) * (1 if problem.n > problem.m else 0.4)
        misses *= {"heuristic": 1.0, "along_m": 1.03, "along_n": 0.985}[str(tile["raster"])]
        cache_s = 2 * blocks * problem.k * (m / cn + n / cm) / self._cache_bytes_per_s * misses
        total_s = self._launch_s + math.fsum(x**3 for x in (busy_s, cache_s, problem.bytes / 4.3e12)) ** (1 / 3)
        return 1e6 * total_s * math.exp(self._unknown(problem, candidate))

    def fails(self, build: Configuration) -> bool:
        return random.Random(f"{self._seed}/{build.digest}").random() < 0.04

    def _unknown(self, problem: GemmProblem, candidate: Configuration) -> float:
        tile = dict(candidate.values)
        names = ("tile_m", "tile_n", "tile_k", "cluster_m", "cluster_n")
        place = [math.log2(int(tile[x])) for x in names]
        place += [math.log2(size) / 3 for size in (problem.m, problem.n, problem.k)]
        waves = math.fsum(
            height * math.sin(math.fsum(x * y for x, y in zip(slope, place, strict=True)) + shift)
            for height, slope, shift in self._landscape
        )
        waves += self._cluster[0] * place[3] + self._cluster[1] * place[4]
        waves += self._pingpong * (tile["schedule"] == "pingpong")
        return waves + random.Random(f"{self._seed}/{problem.digest}/{candidate.digest}").gauss(0, 0.005)


def record(seed: int, *, count: int, shapes: Sequence[tuple[int, int, int]] = SHAPES) -> RecordedSpace:
    """Time a random part of the builds on every problem, launched in every way."""
    simulator, asked = Simulator(seed), problems(shapes)
    everything = list(cutlass_gemm.space(DEVICE, asked[0]))
    builds = sorted(random.Random(seed).sample(everything, min(count, len(everything))), key=everything.index)
    return RecordedSpace(
        source="synthetic",
        device_class="simulated",
        toolchain=f"seed {seed}",
        rates=RATES,
        problems=asked,
        builds=tuple(_recorded(simulator, asked, build, number) for number, build in enumerate(builds)),
    )


def _recorded(simulator: Simulator, asked: Sequence[GemmProblem], build: Configuration, number: int) -> RecordedBuild:
    if simulator.fails(build) and number % 2:
        return RecordedBuild(build=build, refusal="simulated refusal", compile_s=20.0)
    times_us: dict[Configuration, dict[int, float]] = {}
    failures: dict[Configuration, dict[int, Failure]] = {}
    for place, problem in enumerate(asked):
        for each in launches(problem, build):
            if simulator.fails(build):
                wrong = Failure(stage="check", kind="inaccurate", detail="simulated", figure=1.0)
                failures.setdefault(each, {})[place] = wrong
            else:
                times_us.setdefault(each, {})[place] = round(simulator.time_us(problem, each), 3)
    return RecordedBuild(
        build=build,
        compile_s=20.0,
        launches=tuple(
            RecordedLaunch(candidate=each, times_us=times_us.get(each, {}), failures=failures.get(each, {}))
            for each in dict.fromkeys([*times_us, *failures])
        ),
    )


def launches(problem: GemmProblem, build: Configuration) -> Iterator[Configuration]:
    return (each.configuration for each in cutlass_gemm.candidates(DEVICE, problem, build))
