"""The standard sets of our kernels by architecture, and the kernels of a cache as they are packed."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from autotune.backends.native.cuda_kernels.cubin_cache import CompiledKernel, CubinCache, CubinRefusal
from autotune.backends.native.cuda_kernels.cubin_compiler import compiler
from autotune.backends.native.cuda_kernels.cuda_kind import CLUSTER_GEMM, HOPPER_GEMM
from autotune.backends.native.cuda_kernels.kernel_source import HERE, KernelSource
from autotune.errors import WorkError
from autotune.kernel import CompileResult, StoredKernel
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces.split_gemm import ARCHITECTURES, SplitBuild

KINDS = {kind.tiles.name: kind for kind in (HOPPER_GEMM, CLUSTER_GEMM)}

STANDARD_TILES = HERE / "standard_tiles.json"
"""The tiles of each architecture, by kind. Those of sm_90a give 95% of 390 problems at least eight tiles within 10% of
the predicted best; those of the others are the choice of the same model, and were never timed on such a GPU."""

OF_A_PROBLEM = 16
"""The builds that are compiled for a problem of a model, as many as a search compiles at most."""


def standard_sources(architecture: str, dtypes: Iterable[str]) -> Iterator[KernelSource]:
    """List the sources of a standard set: each tile as a product and as a convolution, in each type."""
    for kind, tiles in _standard_tiles().get(architecture, {}).items():
        for dtype in dtypes:
            for tile in tiles:
                for window in (False, True):
                    yield KINDS[kind].source_of(
                        SplitBuild(
                            kind=kind, architecture=architecture, dtype=dtype, output=dtype, window=window, tile=tile
                        )
                    )  # fmt: skip


def problem_sources(architecture: str, problem: GemmProblem, *, sm_count: int) -> Iterator[KernelSource]:
    """List the sources of the builds that a search without a GPU's rates begins with."""
    capability = next(pair for pair, name in ARCHITECTURES.items() if name == architecture)
    device = Device(kind="cuda", name=architecture, uuid="none", capability=capability)
    for kind in KINDS.values():
        if kind.builds(device, problem):
            for tile in kind.first(device, problem, OF_A_PROBLEM, sm_count=sm_count):
                yield kind.source_of(kind.tiles.build_of(device, problem, tile))


def compile_set(
    sources: Iterable[KernelSource], folder: Path, *, jobs: int, tell: Callable[[int, int], None]
) -> list[CompileResult]:
    """Compile sources into the caches of their kinds, ``jobs`` at once."""
    by_kind: dict[str, list[KernelSource]] = {}
    for source in dict.fromkeys(sources):
        by_kind.setdefault(source.build.kind, []).append(source)
    total, done = sum(map(len, by_kind.values())), 0
    results: list[CompileResult] = []
    for kind, same in by_kind.items():
        compiled = CubinCache(folder / kind).compile(
            compiler(),
            same,
            at_once=jobs,
            tell=lambda count, _, before=done: tell(before + count, total),  # type: ignore[misc]
        )
        done += len(same)
        results += [
            CompileResult(refusal=one.detail if isinstance(one, CubinRefusal) else None, compile_s=one.compile_s)
            for one in compiled
        ]
    return results


def stored_kernels(folder: Path) -> list[StoredKernel]:
    """List the kernels of a folder that has one for each kind; damaged ones are left out."""
    return [
        stored
        for kind in KINDS
        for kernel in CubinCache(folder / kind).all()
        if (stored := _stored(kind, kernel)) is not None
    ]


def check_stored(folder: Path, kernel: StoredKernel) -> None:
    """Read a kernel; raises WorkError if it is damaged or of another ABI."""
    CompiledKernel(folder=folder / kernel.kind, name=kernel.name).read()


def _stored(kind: str, kernel: CompiledKernel) -> StoredKernel | None:
    try:
        record = kernel.record()
    except WorkError:
        return None
    build = record.build
    form = "convolution" if build.window else "product"
    types = build.dtype if build.dtype == build.output else f"{build.dtype} to {build.output}"
    return StoredKernel(
        name=kernel.name, kind=kind, architecture=build.architecture, group=f"{types} {form}", abi=record.abi,
        cuda=record.cuda, files=tuple(f"{kind}/{kernel.name}.{suffix}" for suffix in ("cubin", "json")),
    )  # fmt: skip


@cache
def _standard_tiles() -> dict[str, dict[str, list[Configuration]]]:
    data = json.loads(STANDARD_TILES.read_text())
    return {
        architecture: {kind: [Configuration.of(kind, tile) for tile in tiles] for kind, tiles in kinds.items()}
        for architecture, kinds in data.items()
    }


def architectures() -> Sequence[str]:
    """List the architectures that have a standard set."""
    return tuple(_standard_tiles())
