"""Compiling the builds of a recording, in parallel and within a time limit, into a folder that can be copied."""

import io
import os
import tarfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from autotune.errors import AutotuneError, RequestError
from autotune.kernel import CompileResult
from autotune.kernels.executor import BuildResult, KernelExecutor
from autotune.programs.kernel_recording.builds import Recording
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem
from autotune.runtime.host_memory import HostMemory

AT_ONCE = 4
"""The builds of one compilation: they parse their headers once, and an error costs the others little."""

KNOWN_AT_ONCE = 64
"""The builds of one compilation for another problem: most of them are in the cache already."""

BYTES_A_JOB = 6e9
"""The peak memory of a compiler, with four kernels in a unit."""

Compiled = tuple[dict[Configuration, BuildResult], dict[str, AutotuneError]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    place: int
    builds: tuple[Configuration, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The number of kernels in a folder, and the bytes of their files; a file with several names counts once."""

    files: int
    bytes: int


def jobs_that_fit() -> int:
    """Return the number of compilers that cores and memory allow."""
    fit = int(HostMemory.read().available_bytes // BYTES_A_JOB)
    return max(1, min(len(os.sched_getaffinity(0)), fit))


def compile_recording(
    recording: Recording,
    executor: KernelExecutor,
    *,
    jobs: int,
    limit_s: float,
    tell: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, AutotuneError]:
    """Compile the missing builds and record them by group; returns the kinds that cannot be compiled.

    Every build is compiled for one of its problems first and then for the others, for which most are in the cache.
    No group begins that would end after ``limit_s`` if it took the longest time so far.
    """
    until, longest_s = clock() + limit_s, 0.0
    troubles: dict[str, AutotuneError] = {}

    def timed(group: _Group) -> tuple[_Group, Compiled, float]:
        begin = clock()
        done = executor.compile(recording.problems[group.place], group.builds, max(1.0, until - begin))
        return group, done, clock() - begin

    with ThreadPoolExecutor(jobs, thread_name_prefix="autotune-compile") as pool:
        for further in (False, True):
            waiting = _groups(recording, further=further)
            running: set[Future[tuple[_Group, Compiled, float]]] = set()
            while waiting or running:
                while waiting and len(running) < jobs and clock() + longest_s < until and not executor.server.closed:
                    group = waiting.pop(0)
                    if group.builds[0].backend not in troubles:
                        running.add(pool.submit(timed, group))
                if not running:
                    break
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    group, (results, missing), seconds = future.result()
                    longest_s = max(longest_s, seconds)
                    troubles |= missing
                    _record(recording, group, results)
                    recording.write(executor.folder)
                    done_now = sum(outcome is not None for outcome in results.values())
                    tell(
                        f"{len(recording.results)} of {_wanted(recording)} done, the last {done_now} in {seconds:.0f} s"
                    )
    return troubles


def pack(folder: Path, archive: Path) -> None:
    """Write a folder of compiled kernels as a compressed tar."""
    temporary = archive.with_name(f"{archive.name}.tmp")
    with tarfile.open(temporary, "w:xz") as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                tar.add(path, arcname=str(path.relative_to(folder)))
    os.replace(temporary, archive)


def unpack(archive: Path, folder: Path) -> None:
    """Extract the output of :func:`pack` into a folder, unless it has files; raises RequestError for another file."""
    if folder.exists() and any(folder.iterdir()):
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as tar:
            tar.extractall(folder, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise RequestError(
            f"reading the compiled kernels in {archive}", found=f"{type(error).__name__}: {error}",
            expected="a compressed tar", run="python -m autotune.programs.kernel_recording compile --archive FILE",
        ) from error  # fmt: skip


def size_of(folder: Path) -> Size:
    """Measure a folder of compiled kernels."""
    sizes = {path.stat().st_ino: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return Size(files=sum(path.suffix in (".so", ".cubin") for path in folder.rglob("*")), bytes=sum(sizes.values()))


def _groups(recording: Recording, *, further: bool) -> list[_Group]:
    """Return the builds to compile together: of one kind and for one problem, at first once for each epilogue."""
    covered = {(build, _epilogue(recording.problems[place])) for build, place in recording.results}
    groups: dict[tuple[str, int], list[Configuration]] = {}
    for chosen in recording.builds:
        for place in chosen.places:
            code = (chosen.build, _epilogue(recording.problems[place]))
            if (chosen.build, place) not in recording.results and (further or code not in covered):
                covered.add(code)
                groups.setdefault((chosen.build.backend, place), []).append(chosen.build)
    size = KNOWN_AT_ONCE if further else AT_ONCE
    return [
        _Group(place=place, builds=tuple(builds[first : first + size]))
        for (_, place), builds in groups.items()
        for first in range(0, len(builds), size)
    ]


def _epilogue(problem: GemmProblem) -> GemmProblem:
    """Return the part of a problem that decides the code of a kernel for every shape."""
    return replace(problem, m=1, n=1, k=1)


def _record(recording: Recording, group: _Group, results: dict[Configuration, BuildResult]) -> None:
    """Record the results of builds; one that was not finished is left for the next time."""
    for build, result in results.items():
        if isinstance(result, CompileResult):
            recording.results[build, group.place] = result
        elif result is not None:
            recording.results[build, group.place] = CompileResult(refusal=str(result))


def _wanted(recording: Recording) -> int:
    return sum(len(chosen.places) for chosen in recording.builds)


def refusals(recording: Recording) -> Sequence[str]:
    """Return a line for each refused build, with the reason and the number of its problems."""
    return [
        f"{build}: {next(iter(reasons.values())).strip().splitlines()[0]} ({len(reasons)} problems)"
        for build, reasons in recording.refused().items()
    ]
