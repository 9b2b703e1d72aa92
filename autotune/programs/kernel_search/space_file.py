"""A recorded space: every build of it timed on many problems, so that searches can be tested without a device.

A binary computes every shape, so one file has problems that differ in m, n and k only, and for each build the times of
each of its launches on each problem. A launch that is not in a problem's space has neither a time nor a failure.
"""

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from autotune.errors import RequestError
from autotune.kernels.rates import DeviceRates
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial
from autotune.records.trial import Failure

SCHEMA = 1
Source = Literal["measured", "synthetic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedLaunch:
    """One candidate: its median in microseconds, or its failure, by the problem's place."""

    candidate: Configuration
    times_us: Mapping[int, float] = field(default_factory=dict)
    failures: Mapping[int, Failure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place, us in self.times_us.items():
            if isinstance(us, bool) or not isinstance(us, int | float) or not 0 < us < math.inf:
                raise ValueError(f"{self.candidate} on problem {place}: a positive time expected, found {us!r}")
        if both := sorted(set(self.times_us) & set(self.failures)):
            raise ValueError(f"{self.candidate} has a time and a failure on problems {both}")

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {
            "candidate": self.candidate.as_dict(),
            "times_us": {str(place): us for place, us in sorted(self.times_us.items())},
            "failures": {str(place): failure.as_dict() for place, failure in sorted(self.failures.items())},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RecordedLaunch":
        """Read the output of :meth:`as_dict`."""
        return cls(
            candidate=Configuration.from_dict(data["candidate"]),
            times_us={int(place): us for place, us in data["times_us"].items()},
            failures={int(place): Failure(**failure) for place, failure in data["failures"].items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedBuild:
    """One build with its launches, the plainest first; none if the compiler refused it."""

    build: Configuration
    refusal: str | None = None
    compile_s: float = 0.0
    launches: tuple[RecordedLaunch, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.launches) == (self.refusal is not None):
            raise ValueError(f"{self.build} has launches or a refusal, found {len(self.launches)} and {self.refusal!r}")
        if not 0 <= self.compile_s < math.inf:
            raise ValueError(f"{self.build} was compiled in a number of seconds, found {self.compile_s!r}")
        values = set(self.build.values)
        for launch in self.launches:
            if launch.candidate.backend != self.build.backend or not values <= set(launch.candidate.values):
                raise ValueError(f"{launch.candidate} is not a launch of {self.build}")

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {
            "build": self.build.as_dict(),
            "refusal": self.refusal,
            "compile_s": self.compile_s,
            "launches": [launch.as_dict() for launch in self.launches],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RecordedBuild":
        """Read the output of :meth:`as_dict`."""
        build = Configuration.from_dict(data["build"])
        launches = tuple(RecordedLaunch.from_dict(launch) for launch in data["launches"])
        return cls(build=build, refusal=data["refusal"], compile_s=data["compile_s"], launches=launches)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedSpace:
    """Problems, builds, and the measurements of every pair, on one device class with one toolchain.

    ``source`` distinguishes times of a device from those of a simulator, which prove nothing about a device.
    """

    source: Source
    device_class: str
    toolchain: str
    rates: DeviceRates
    problems: tuple[GemmProblem, ...]
    builds: tuple[RecordedBuild, ...]
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"the schema of a recorded space is {SCHEMA}, found {self.schema!r}")
        if self.source not in get_args(Source):
            raise ValueError(f"source must be one of {', '.join(get_args(Source))}, found {self.source!r}")
        if not self.problems or not self.builds:
            raise ValueError(f"a recorded space has {len(self.problems)} problems and {len(self.builds)} builds")
        if len({replace(problem, m=1, n=1, k=1) for problem in self.problems}) > 1:
            raise ValueError("problems of a recorded space differ in m, n and k alone")
        for name, members in (("problem", self.problems), ("build", [each.build for each in self.builds])):
            if len(set(members)) != len(members):
                raise ValueError(f"a {name} stands twice in a recorded space")
        places = range(len(self.problems))
        for launch in (launch for build in self.builds for launch in build.launches):
            if wrong := [place for place in (*launch.times_us, *launch.failures) if place not in places]:
                raise ValueError(f"{launch.candidate} has problems {wrong}, of {len(places)}")

    @classmethod
    def of(
        cls,
        trials: Iterable[KernelTrial],
        builds: Mapping[Configuration, tuple[float, tuple[Configuration, ...]]],
        *,
        rates: DeviceRates,
        refusals: Mapping[Configuration, str] | None = None,
    ) -> "RecordedSpace":
        """Combine measured trials; ``builds`` has each build's compile time and launches, the plainest first.

        Raises ``ValueError`` if trials are of several device classes or toolchains, or there is none.
        """
        measured = list(trials)
        origins = {(trial.device_class, trial.toolchain) for trial in measured}
        if len(origins) != 1:
            raise ValueError(f"trials of one device class and toolchain make a recorded space, found {len(origins)}")
        ((device_class, toolchain),) = origins
        place = {problem: number for number, problem in enumerate(dict.fromkeys(trial.problem for trial in measured))}
        times_us: dict[Configuration, dict[int, float]] = {}
        failures: dict[Configuration, dict[int, Failure]] = {}
        for trial in measured:
            if trial.failure is not None:
                failures.setdefault(trial.configuration, {})[place[trial.problem]] = trial.failure
            elif trial.median_us is not None:
                times_us.setdefault(trial.configuration, {})[place[trial.problem]] = trial.median_us
        compiled = [
            RecordedBuild(
                build=build,
                compile_s=compile_s,
                launches=tuple(
                    RecordedLaunch(
                        candidate=candidate, times_us=times_us.get(candidate, {}), failures=failures.get(candidate, {})
                    )
                    for candidate in launches
                ),
            )
            for build, (compile_s, launches) in builds.items()
        ]
        refused = [RecordedBuild(build=build, refusal=why) for build, why in (refusals or {}).items()]
        return cls(
            source="measured",
            device_class=device_class,
            toolchain=toolchain,
            rates=rates,
            problems=tuple(place),
            builds=(*compiled, *refused),
        )

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {
            "schema": self.schema,
            "source": self.source,
            "device_class": self.device_class,
            "toolchain": self.toolchain,
            "rates": self.rates.as_dict(),
            "problems": [problem.as_dict() for problem in self.problems],
            "builds": [build.as_dict() for build in self.builds],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RecordedSpace":
        """Read the output of :meth:`as_dict`, also after a trip through JSON."""
        return cls(
            **{
                **data,
                "rates": DeviceRates.from_dict(data["rates"]),
                "problems": tuple(GemmProblem.from_dict(problem) for problem in data["problems"]),
                "builds": tuple(RecordedBuild.from_dict(build) for build in data["builds"]),
            }
        )

    def write(self, path: Path) -> None:
        """Write it as JSON, compressed if the name ends in ``.gz``; equal records have equal bytes."""
        data = (json.dumps(self.as_dict(), allow_nan=False) + "\n").encode()
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def read_recorded_space(path: Path) -> RecordedSpace:
    """Read the output of :meth:`RecordedSpace.write`; raises RequestError for another file."""
    try:
        data = path.read_bytes()
        return RecordedSpace.from_dict(json.loads(gzip.decompress(data) if path.suffix == ".gz" else data))
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, AttributeError) as problem:
        raise RequestError(
            f"reading the recorded space {path}",
            found=f"{type(problem).__name__}: {problem}",
            expected=f"JSON of a recorded space of schema {SCHEMA}",
        ) from problem
