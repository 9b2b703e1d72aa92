"""Records a space of kernels: ``python -m autotune.programs.kernel_recording compile | time``.

``compile`` chooses builds for the problems of :data:`~autotune.programs.kernel_recording.builds.SHAPES` and compiles
them into a folder, which needs no GPU; ``time`` times them on one and writes a recorded space, on which ``python -m
autotune.programs.kernel_search`` tries the search over tiles. Both resume if they were stopped, and end within
``--limit`` seconds. The exit code is 0 when all is done, 1 if work is left for the same command, 2 if the request was
wrong.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from autotune import registry
from autotune.errors import RequestError
from autotune.execute.server import WorkerServer
from autotune.kernel import KernelToolchains
from autotune.kernels.executor import STEPS, KernelExecutor
from autotune.programs.frame import parser_of, positive, run_program, say
from autotune.programs.kernel_recording.builds import FILE, RATES, Recording, choose, read_rates, recorded_problems
from autotune.programs.kernel_recording.compile import compile_recording, jobs_that_fit, pack, refusals, size_of, unpack
from autotune.programs.kernel_recording.times import LAUNCHES, Recorder, Trials
from autotune.records.device import Device
from autotune.runtime import discovery
from autotune.runtime import toolchain as versions
from autotune.scratch import ScratchFolder

NAME = "kernel_recording"
BUILDS = 220


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    return run_program(NAME, _parser(), lambda run: int(run.options.run(run.options)), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(NAME, json_help="")
    steps = parser.add_subparsers(required=True)
    compiling = steps.add_parser("compile", help="choose builds and compile them; needs no GPU")
    target = compiling.add_mutually_exclusive_group()
    target.add_argument("--device", default="cuda", help="cpu, cuda or cuda:N")
    target.add_argument(
        "--device-like",
        type=absent_device,
        metavar="SKU/CAPABILITY",
        help="a device that is not here, such as nvidia-h200/9.0",
    )
    compiling.add_argument("--rates", type=Path, metavar="FILE", help="JSON of the rates of a device that is not here")
    compiling.add_argument(
        "--builds", type=positive, default=BUILDS, help=f"of the kind that has most of them (default: {BUILDS})"
    )
    compiling.add_argument("--jobs", type=positive, metavar="N", help="compilers at once (default: what fits)")
    compiling.add_argument("--archive", type=Path, metavar="FILE", help="write the folder as a compressed tar too")
    compiling.add_argument("--seed", type=int, default=0, help="of the choice (default: 0)")
    compiling.add_argument(
        "--backend", default=registry.tuning_kernels()[0], help="whose kernels (default: %(default)s)"
    )
    compiling.set_defaults(run=_compile)
    timing = steps.add_parser("time", help="time what is compiled, and write the record")
    timing.add_argument("record", type=Path, metavar="FILE", help="the record to write; compressed if named *.gz")
    timing.add_argument("--device", default="cuda", help="cpu, cuda or cuda:N")
    timing.add_argument(
        "--archive", type=Path, metavar="FILE", help="fill the folder from the output of compile --archive"
    )
    timing.add_argument(
        "--trials", type=Path, required=True, metavar="FILE", help="every trial, one line each, written at once"
    )
    timing.add_argument(
        "--launches", type=positive, default=LAUNCHES, help=f"of a build on a problem (default: {LAUNCHES})"
    )
    timing.set_defaults(run=_time)
    for step, limit_s in ((compiling, 3600.0), (timing, 540.0)):
        step.add_argument("--cache", type=Path, required=True, metavar="DIR", help="the folder of compiled kernels")
        step.add_argument("--limit", type=float, default=limit_s, metavar="S", help=f"seconds (default: {limit_s:g})")
    return parser


def _compile(options: argparse.Namespace) -> int:
    device = options.device_like or discovery.find(options.device)
    options.cache.mkdir(parents=True, exist_ok=True)
    with _executor(device, options.backend, options.cache, options.seed) as executor:
        recording = _chosen(options, device, executor)
        say(f"{len(recording.builds)} builds: {_counted(recording)}")
        troubles = compile_recording(
            recording, executor, jobs=options.jobs or jobs_that_fit(), limit_s=options.limit, tell=say
        )
    left = sum(len(recording.missing(place)) for place in range(len(recording.problems)))
    size = size_of(options.cache)
    refused = refusals(recording)
    lines = [
        *(f"- no kernels of kind {kind}: {error}" for kind, error in troubles.items()),
        *(f"- refused: {line}" for line in refused),
        f"{len(recording.builds)} builds, {len(refused)} refused, {left} of a build and a problem left; "
        f"{size.files} kernels in {size.bytes / 2**20:.1f} MiB",
    ]
    if options.archive is not None:
        pack(options.cache, options.archive)
        packed = options.archive.stat().st_size
        lines.append(
            f"{options.archive}: {packed / 2**20:.1f} MiB, {packed / max(size.files, 1) / 2**10:.0f} KiB a kernel"
        )
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if left else 0


def _time(options: argparse.Namespace) -> int:
    if options.archive is not None:
        unpack(options.archive, options.cache)
    recording = Recording.read(options.cache)
    device = discovery.find(options.device)
    if device.capability != recording.capability:
        raise RequestError(
            f"kernels for {recording.sku} on {device.name}",
            found=f"compute capability {device.capability}", expected=f"{recording.capability}, that of the kernels",
        )  # fmt: skip
    with _executor(device, recording.backend, options.cache, recording.seed) as executor:
        rates = executor.rates() or recording.rates
        if rates is None:
            raise RequestError(
                f"a record of {device.name}", found="a device with unknown rates",
                expected="rates in a file", run="python -m autotune.programs.kernel_recording compile --rates FILE",
            )  # fmt: skip
        recorder = Recorder(recording, executor, Trials(options.trials), launches=options.launches, tell=say)
        try:
            is_complete = recorder.run(options.limit)
        finally:
            recorder.record(rates).write(options.record)
    sys.stdout.write(_table(recorder) + "\n")
    return 0 if is_complete and not recorder.troubles else 1


def _chosen(options: argparse.Namespace, device: Device, executor: KernelExecutor) -> Recording:
    """Return the choice of an earlier run, else choose now."""
    requested = (options.backend, device.sku, options.seed, recorded_problems())
    if (options.cache / FILE).exists():
        earlier = Recording.read(options.cache)
        if requested != (earlier.backend, earlier.sku, earlier.seed, earlier.problems):
            raise RequestError(
                f"choosing builds for {device.sku}, seed {options.seed}, in {options.cache}",
                found=f"builds of {earlier.backend} for {earlier.sku}, seed {earlier.seed}, "
                f"{len(earlier.problems)} problems",
                expected="the same request to resume it, or another folder", run="--cache DIR",
            )  # fmt: skip
        return earlier
    rates = read_rates(options.rates) if options.rates else None
    if rates is None:
        rates = RATES.get(device.sku) if options.device_like else executor.rates()
    if rates is None and device.kind == "cuda":
        raise RequestError(
            f"choosing builds for {device.sku}", found="a device with unknown rates",
            expected=f"one of {', '.join(RATES)}, or rates in a file", run="--rates FILE",
        )  # fmt: skip
    provider = registry.kernels(options.backend)
    recording = choose(
        provider, device, recorded_problems(), backend=options.backend, rates=rates, builds=options.builds,
        seed=options.seed,
    )  # fmt: skip
    recording.write(options.cache)
    return recording


@contextmanager
def _executor(device: Device, backend: str, folder: Path, seed: int) -> Iterator[KernelExecutor]:
    toolchains = KernelToolchains(registry.kernels(backend), versions.current(device))
    with (
        ScratchFolder("recording") as scratch,
        WorkerServer(scratch, steps=STEPS, work="a recording of kernels") as server,
    ):
        executor = KernelExecutor(server, device, backend, folder.resolve(), toolchains=toolchains, seed=seed)
        with closing(executor):
            yield executor


def _counted(recording: Recording) -> str:
    counts = Counter((chosen.build.backend, chosen.origin) for chosen in recording.builds)
    return ", ".join(f"{count} of {kind} {origin}" for (kind, origin), count in sorted(counts.items()))


def _table(recorder: Recorder) -> str:
    """Return the results of each problem as Markdown."""
    lines = ["| m×n×k | timed | failed | best of ours, µs | best library, µs |", "| --- | ---: | ---: | ---: | ---: |"]
    for place, problem in enumerate(recorder.recording.problems):
        trials = recorder.trials.of(problem)
        complete = [trial for trial in trials if trial.state == "complete"]
        ours = [trial for trial in complete if trial.configuration.backend not in registry.library_kinds()]
        theirs = [trial for trial in complete if trial.configuration.backend in registry.library_kinds()]
        best = " | ".join(f"{some[0].median_us:.2f}" if some else "none" for some in (ours, theirs))
        trouble = f" ({recorder.troubles[place]})" if place in recorder.troubles else ""
        shape = f"{problem.m}×{problem.n}×{problem.k}{trouble}"
        lines.append(f"| {shape} | {len(complete)} | {len(trials) - len(complete)} | {best} |")
    return "\n".join(lines)


def absent_device(text: str) -> Device:
    """Read a device that is not here, such as ``nvidia-h200/9.0``."""
    sku, _, capability = text.partition("/")
    numbers = capability.split(".")
    if not sku or len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"a SKU and a compute capability expected, as nvidia-h200/9.0, found {text!r}")
    return Device(kind="cuda", name=sku, uuid="not-here", capability=(int(numbers[0]), int(numbers[1])))
