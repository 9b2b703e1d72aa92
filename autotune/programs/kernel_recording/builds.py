"""The builds of a recorded space, chosen without a device, and the results of compiling them: Recording.

Half of a kind's builds are those that a search proposes before it has measured anything, in turn for each problem, so
that the best of a record is not only the best of builds that no search would try. The other half is drawn evenly: the
legal builds, in the order of their parameters, are divided into equal parts, and one is drawn of each part.
"""

import json
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from autotune.errors import RequestError
from autotune.kernel import CompileResult, KernelProvider, KernelSpace
from autotune.kernels.rates import DeviceRates
from autotune.kernels.search import KernelSearch
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem

SCHEMA = 1
FILE = "recording.json"

SHAPES: tuple[tuple[int, int, int, str], ...] = (
    (128, 3072, 768, "BERT-base, 128 tokens, batch 1: the first product of the MLP"),
    (4096, 3072, 768, "BERT-base, 128 tokens, batch 32: the same"),
    (4096, 768, 3072, "BERT-base, 128 tokens, batch 32: the second product of the MLP"),
    (197, 768, 3072, "ViT-B/16, batch 1: the second product of the MLP"),
    (1576, 2304, 768, "ViT-B/16, batch 8: queries, keys and values at once"),
    (6304, 3072, 768, "ViT-B/16, batch 32: the first product of the MLP"),
    (49, 2048, 512, "ResNet-50, batch 1: a 1×1 convolution of the last stage that widens"),
    (25088, 64, 256, "ResNet-50, batch 8: a 1×1 convolution of the first stage that narrows"),
    (6272, 256, 1024, "ResNet-50, batch 32: a 1×1 convolution of the third stage that narrows"),
    (1, 12288, 4096, "Llama-7B, 1 token: queries, keys and values at once"),
    (8, 11008, 4096, "Llama-7B, 8 tokens: the gate of the MLP"),
    (32, 4096, 11008, "Llama-7B, 32 tokens: the last product of the MLP"),
)
"""m, n, k and their origin. Problems of a record differ in nothing else, so they share one binary."""

PROPOSED = 16
"""The builds that a search may propose for one problem; it promises to need no more."""

PROPOSED_SHARE = 0.5

Origin = Literal["proposed", "spread"]

RATES: Mapping[str, DeviceRates] = {
    "nvidia-h200": DeviceRates(
        sm_count=132, clock_hz=1.98e9, flops_per_clock=4096, flops_per_s=790e12, memory_bytes_per_s=4.3e12,
        shared_bytes=233472, cache_bytes=52428800,
    )
}  # fmt: skip
"""By SKU, to choose builds without the device: from its data sheet, with the sustained rates that were measured on one
(:data:`~autotune.kernels.rates.SUSTAINED_FLOPS`). A record has the rates that were read from the device."""


def recorded_problems() -> tuple[GemmProblem, ...]:
    """Return the problems of a record: half precision, with a bias."""
    return tuple(GemmProblem(m=m, n=n, k=k, bias=True) for m, n, k, _ in SHAPES)


def read_rates(path: Path) -> DeviceRates:
    """Read a device's rates from a JSON file that has nothing else, or that has them under ``rates``.

    Raises RequestError if there are none.
    """
    try:
        data = json.loads(path.read_text())
        return DeviceRates.from_dict(data.get("rates", data))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RequestError(
            f"reading the rates of a device in {path}", found=f"{type(error).__name__}: {error}",
            expected=f"JSON with {', '.join(DeviceRates.names())}",
        ) from error  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenBuild:
    """A build, the origin of its choice, and the places of the problems whose spaces have it."""

    build: Configuration
    origin: Origin
    places: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.origin not in get_args(Origin):
            raise ValueError(f"origin must be one of {', '.join(get_args(Origin))}, found {self.origin!r}")


@dataclass(slots=True, kw_only=True)
class Recording:
    """Problems and chosen builds, with the ``results`` so far of compiling each build for each of its problems.

    It is the ``file`` in the folder of the compiled kernels, and is copied with that folder.
    """

    backend: str
    sku: str
    capability: tuple[int, int] | None
    seed: int
    rates: DeviceRates | None
    problems: tuple[GemmProblem, ...]
    builds: tuple[ChosenBuild, ...]
    results: dict[tuple[Configuration, int], CompileResult] = field(default_factory=dict)
    file: str = FILE

    def missing(self, place: int) -> list[Configuration]:
        """Return the builds of a problem that are not compiled yet."""
        return [
            chosen.build
            for chosen in self.builds
            if place in chosen.places and (chosen.build, place) not in self.results
        ]

    def compiled(self, place: int) -> list[Configuration]:
        """Return the builds that can be loaded for a problem."""
        results = ((chosen.build, self.results.get((chosen.build, place))) for chosen in self.builds)
        return [build for build, outcome in results if outcome is not None and outcome.refusal is None]

    def refused(self) -> dict[Configuration, dict[int, str]]:
        """Return the compiler's errors by build and the problem's place."""
        refusals: dict[Configuration, dict[int, str]] = {}
        for (build, place), outcome in self.results.items():
            if outcome.refusal is not None:
                refusals.setdefault(build, {})[place] = outcome.refusal
        return refusals

    def compile_s(self, build: Configuration) -> float:
        """Return the seconds of compiling a build; if it was compiled for several problems, the longest."""
        return max(
            (result.compile_s for (compiled, _), result in self.results.items() if compiled == build), default=0.0
        )

    def write(self, folder: Path) -> None:
        """Write the recording into a folder, atomically."""
        builds = []
        for chosen in self.builds:
            results = {
                place: self.results[chosen.build, place]
                for place in chosen.places
                if (chosen.build, place) in self.results
            }
            builds.append(
                {
                    "build": chosen.build.as_dict(), "origin": chosen.origin, "places": list(chosen.places),
                    "made": {str(place): asdict(outcome) for place, outcome in results.items()},
                }
            )  # fmt: skip
        data = {
            "schema": SCHEMA, "backend": self.backend, "sku": self.sku, "capability": self.capability,
            "seed": self.seed, "rates": self.rates.as_dict() if self.rates else None,
            "problems": [problem.as_dict() for problem in self.problems], "builds": builds,
        }  # fmt: skip
        temporary = folder / f"{self.file}.tmp"
        temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
        os.replace(temporary, folder / self.file)

    @classmethod
    def read(cls, folder: Path, file: str = FILE) -> "Recording":
        """Read the output of :meth:`write`; raises RequestError if there is none, or of another schema."""
        path = folder / file
        try:
            data = json.loads(path.read_text())
            if data["schema"] != SCHEMA:
                raise ValueError(f"schema {data['schema']!r}")
            return cls._of(data, file)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RequestError(
                f"reading the chosen builds in {folder}", found=f"{type(error).__name__}: {error}",
                expected=f"a file {file} of schema {SCHEMA}",
                run="python -m autotune.programs.kernel_recording compile",
            ) from error  # fmt: skip

    @classmethod
    def _of(cls, data: Mapping[str, Any], file: str) -> "Recording":
        chosen: list[ChosenBuild] = []
        results: dict[tuple[Configuration, int], CompileResult] = {}
        for entry in data["builds"]:
            build = Configuration.from_dict(entry["build"])
            chosen.append(ChosenBuild(build=build, origin=entry["origin"], places=tuple(entry["places"])))
            results |= {(build, int(place)): CompileResult(**outcome) for place, outcome in entry["made"].items()}
        return cls(
            backend=data["backend"], sku=data["sku"], seed=data["seed"],
            capability=tuple(data["capability"]) if data["capability"] else None,
            rates=DeviceRates.from_dict(data["rates"]) if data["rates"] else None,
            problems=tuple(GemmProblem.from_dict(problem) for problem in data["problems"]),
            builds=tuple(chosen), results=results, file=file,
        )  # fmt: skip


def choose(
    provider: KernelProvider,
    device: Device,
    problems: Sequence[GemmProblem],
    *,
    backend: str,
    rates: DeviceRates | None,
    builds: int,
    seed: int,
) -> Recording:
    """Choose builds: ``builds`` of the kind that has most, and the same share of every other kind.

    So a problem's kinds are mixed as in its space, and a kind for few problems does not reduce a kind for all.
    Raises SpaceError if a problem has no kernel at all.
    """
    spaces = [provider.space(device, problem) for problem in problems]
    places: dict[Configuration, list[int]] = {}
    for place, space in enumerate(spaces):
        for build in space.builds:
            places.setdefault(build, []).append(place)
    proposed = _proposed(spaces, problems, rates, seed)
    draw = random.Random(seed)
    chosen: list[ChosenBuild] = []
    kinds: dict[str, list[Configuration]] = {}
    for build in places:
        kinds.setdefault(build.backend, []).append(build)
    most = max(map(len, kinds.values()), default=0)
    for kind, legal in kinds.items():
        quota = min(len(legal), math.ceil(builds * len(legal) / most))
        first = [build for build in proposed if build.backend == kind][: round(PROPOSED_SHARE * quota)]
        already = set(first)
        rest = _spread([build for build in legal if build not in already], quota - len(first), draw)
        chosen += [ChosenBuild(build=build, origin="proposed", places=tuple(places[build])) for build in first]
        chosen += [ChosenBuild(build=build, origin="spread", places=tuple(places[build])) for build in rest]
    return Recording(
        backend=backend, sku=device.sku, capability=device.capability, seed=seed, rates=rates, problems=tuple(problems),
        builds=tuple(chosen),
    )  # fmt: skip


def _proposed(
    spaces: Sequence[KernelSpace], problems: Sequence[GemmProblem], rates: DeviceRates | None, seed: int
) -> list[Configuration]:
    """Return the proposals of searches without measurements: the first of each problem, then the second of each."""
    proposals = [
        KernelSearch(space, problem, rates=rates, seed=seed).ask(PROPOSED) if space.builds else ()
        for space, problem in zip(spaces, problems, strict=True)
    ]
    turns = (proposal[turn] for turn in range(PROPOSED) for proposal in proposals if turn < len(proposal))
    return list(dict.fromkeys(turns))


def _spread(ordered: Sequence[Configuration], count: int, draw: random.Random) -> Iterator[Configuration]:
    for part in range(count):
        yield ordered[draw.randrange(part * len(ordered) // count, (part + 1) * len(ordered) // count)]
