"""Recorded spaces: what is written is read, and what is wrong is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import RequestError
from autotune.programs.kernel_search.space_file import RecordedSpace, read_recorded_space
from autotune.records.kernel_trial import KernelTrial
from autotune.records.trial import Failure
from tests.kernels.kernel_simulator import RATES, problems, record

SPACE = record(1, count=24, shapes=((128, 768, 768), (512, 768, 768)))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    SPACE.write(tmp_path / "space.json")
    assert read_recorded_space(tmp_path / "space.json") == SPACE
    assert any(launch.failures for build in SPACE.builds for launch in build.launches) or any(
        build.refusal for build in SPACE.builds
    )


def test_a_compressed_file_is_the_same_for_the_same_record_and_damage_is_told(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one.json.gz", "two.json.gz")]
    for path in paths:
        SPACE.write(path)
        assert read_recorded_space(path) == SPACE
    data = paths[0].read_bytes()
    assert data == paths[1].read_bytes() and len(data) < len(json.dumps(SPACE.as_dict())) / 3
    for damaged in (data[: len(data) // 2], data[:100] + bytes(100) + data[200:], b"{}"):
        paths[0].write_bytes(damaged)
        with pytest.raises(RequestError, match="recorded space"):
            read_recorded_space(paths[0])


def changed(**change: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(SPACE.as_dict())), **change}


def with_launch(**change: Any) -> dict[str, Any]:
    data = changed()
    build = next(each for each in data["builds"] if each["launches"])
    build["launches"][0].update(change)
    return data


WRONG = {
    "schema of a recorded space is 1, found 2": lambda: changed(schema=2),
    "source must be one of measured, synthetic": lambda: changed(source="guessed"),
    "has 0 problems": lambda: changed(problems=[]),
    "and 0 builds": lambda: changed(builds=[]),
    "differ in m, n and k alone": lambda: changed(
        problems=[problem.as_dict() for problem in (*problems(((1, 8, 8),)), *problems(((2, 8, 8),), residual=True))]
    ),
    "build stands twice": lambda: changed(builds=[changed()["builds"][0]] * 2),
    "problem stands twice": lambda: changed(problems=[changed()["problems"][0]] * 2),
    "a positive time expected, found -1": lambda: with_launch(times_us={"0": -1}, failures={}),
    "a positive time expected, found '5'": lambda: with_launch(times_us={"0": "5"}, failures={}),
    "has a time and a failure on problems": lambda: with_launch(
        times_us={"0": 1.0}, failures={"0": Failure(stage="check", kind="error", detail="x").as_dict()}
    ),
    r"has problems \[2\], of 2": lambda: with_launch(times_us={"2": 1.0}, failures={}),
    "is not a launch of": lambda: with_launch(candidate={"backend": "cutlass", "swizzle": 1}),
    "KeyError: 'builds'": lambda: {name: value for name, value in changed().items() if name != "builds"},
    "unexpected keyword": lambda: changed(surprise=1),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_file_is_one_clear_message(message: str, tmp_path: Path) -> None:
    path = tmp_path / "space.json"
    path.write_text(json.dumps(WRONG[message]()))
    with pytest.raises(RequestError, match=rf"reading the recorded space .*space.json[\s\S]*{message}"):
        read_recorded_space(path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{"])
def test_what_is_no_recorded_space_at_all(text: str, tmp_path: Path) -> None:
    (tmp_path / "space.json").write_text(text)
    with pytest.raises(RequestError, match="JSON of a recorded space"):
        read_recorded_space(tmp_path / "space.json")
    with pytest.raises(RequestError, match="FileNotFoundError"):
        read_recorded_space(tmp_path / "nothing.json")


def trials() -> list[KernelTrial]:
    found = []
    for build in SPACE.builds:
        for launch in build.launches:
            for place, problem in enumerate(SPACE.problems):
                if place not in launch.times_us and place not in launch.failures:
                    continue
                failure = launch.failures.get(place)
                found.append(
                    KernelTrial(
                        problem=problem,
                        device_class="simulated",
                        toolchain="seed 1",
                        configuration=launch.candidate,
                        state="failed" if failure else "complete",
                        samples_us=() if failure else (launch.times_us[place],) * 3,
                        failure=failure,
                    )
                )
    return found


def test_measured_trials_make_a_recorded_space() -> None:
    builds = {
        each.build: (each.compile_s, tuple(launch.candidate for launch in each.launches))
        for each in SPACE.builds
        if each.refusal is None
    }
    refusals = {each.build: each.refusal for each in SPACE.builds if each.refusal is not None}
    made = RecordedSpace.of(trials(), builds, rates=RATES, refusals=refusals)
    assert made.source == "measured"
    assert made.problems == SPACE.problems
    assert {each.build: each.launches for each in made.builds} == {each.build: each.launches for each in SPACE.builds}


def test_trials_of_two_toolchains_do_not() -> None:
    one = trials()[0]
    other = KernelTrial.from_dict({**one.as_dict(), "toolchain": "newer"})
    with pytest.raises(ValueError, match="one device class and toolchain make a recorded space, found 2"):
        RecordedSpace.of([one, other], {}, rates=RATES)
