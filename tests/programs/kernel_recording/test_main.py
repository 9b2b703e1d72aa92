"""Recording a space of kernels, with toys on this CPU and with nvcc for a GPU that is not here."""

import importlib.util
import json
import math
import shutil
import tarfile
from collections import Counter
from dataclasses import replace

import pytest

from autotune import registry
from autotune.errors import RequestError
from autotune.kernel import CompileResult
from autotune.kernels.timing import TimingLimits
from autotune.programs.kernel_recording import builds as kernel_recording_builds
from autotune.programs.kernel_recording import main as kernel_recording
from autotune.programs.kernel_recording.builds import RATES, Recording, choose, recorded_problems
from autotune.programs.kernel_recording.compile import pack, size_of, unpack
from autotune.programs.kernel_recording.times import Trials, spread_launches
from autotune.programs.kernel_search.main import main as replay
from autotune.programs.kernel_search.space_file import read_recorded_space
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from tests.toy_kernels import FAULTS, LIBRARY

HOPPER = Device(kind="cuda", name="NVIDIA H200", uuid="gpu", capability=(9, 0))
RULES = RATES["nvidia-h200"]


@pytest.fixture
def toys(toykernels, tmp_path, monkeypatch):
    """The program on toy kernels: of 8, 9 and 10 rows, small enough for a CPU."""
    monkeypatch.setattr(kernel_recording_builds, "SHAPES", tuple((m, 16, 32, "a toy") for m in (8, 9, 10)))
    monkeypatch.setattr("autotune.kernels.executor.CANDIDATE_S", 3.0)
    for stage in ("SCREENING", "AGAIN"):
        monkeypatch.setattr(
            f"autotune.programs.kernel_recording.times.{stage}", {"cpu": TimingLimits(sampling_s=0.02, least_samples=7)}
        )
    (tmp_path / "rates.json").write_text(json.dumps(RULES.as_dict()))

    def run(step, *options, folder="cache"):
        common = ["--device", "cpu", "--cache", str(tmp_path / folder)]
        if step == "compile":
            common += ["--backend", toykernels, "--rates", str(tmp_path / "rates.json")]
        else:
            common += ["--trials", str(tmp_path / "trials.jsonl"), str(tmp_path / "record.json.gz")]
        return kernel_recording.main([step, *common, *options])

    return run


def test_problems_differ_in_their_shape_alone_and_serve_every_kind():
    problems = recorded_problems()
    assert len(set(problems)) == 12
    assert len({replace(problem, m=1, n=1, k=1) for problem in problems}) == 1
    kinds = [{build.backend for build in registry.kernels("native").space(HOPPER, one).builds} for one in problems]
    assert all("cutlass" in some for some in kinds) and any("triton_gemm" in some for some in kinds)


def test_builds_are_proposed_and_spread_and_kinds_have_the_share_that_they_serve():
    problems = [GemmProblem(m=m, n=2048, k=512, bias=True) for m in (16, 256, 512, 4096)]
    provider = registry.kernels("native")

    def chosen(seed):
        return choose(provider, HOPPER, problems, backend="native", rates=RULES, builds=40, seed=seed)

    recording = chosen(0)
    counts = Counter(one.build.backend for one in recording.builds)
    legal = Counter(build.backend for build in {one for p in problems for one in provider.space(HOPPER, p).builds})
    assert counts == {kind: math.ceil(40 * count / max(legal.values())) for kind, count in legal.items()}
    assert counts["cutlass"] == 40 and counts["triton_gemm"] > 1
    assert len({one.build for one in recording.builds}) == len(recording.builds)
    assert sum(one.origin == "proposed" for one in recording.builds if one.build.backend == "cutlass") == 20
    spread = [one.build for one in recording.builds if one.build.backend == "cutlass" and one.origin == "spread"]
    assert len({build["tile_m"] for build in spread}) == 4 and len({build["scheduler"] for build in spread}) == 2
    spaces = [set(provider.space(HOPPER, problem).builds) for problem in problems]
    assert all((one.build in spaces[place]) == (place in one.places) for one in recording.builds for place in range(4))
    assert chosen(0) == recording and chosen(1) != recording


def test_a_recording_is_read_as_it_was_written(tmp_path):
    problems = [GemmProblem(m=256, n=2048, k=512, bias=True)]
    recording = choose(registry.kernels("native"), HOPPER, problems, backend="native", rates=RULES, builds=3, seed=0)
    recording.results[recording.builds[0].build, 0] = CompileResult(compile_s=2.0)
    recording.results[recording.builds[1].build, 0] = CompileResult(refusal="no such tile")
    recording.write(tmp_path)
    read = Recording.read(tmp_path)
    assert read == recording
    assert read.missing(0) == [one.build for one in recording.builds[2:]] and read.compiled(0) == [
        recording.builds[0].build
    ]
    assert read.compile_s(recording.builds[0].build) == 2.0
    assert read.refused() == {recording.builds[1].build: {0: "no such tile"}}
    with pytest.raises(RequestError, match="chosen builds"):
        Recording.read(tmp_path / "nowhere")


def test_launches_differ_from_the_plainest_in_one_thing_first():
    space = registry.kernels("native").space(HOPPER, GemmProblem(m=4096, n=3072, k=768, bias=True))
    cutlass = [one for one in space.builds if one.backend == "cutlass"]
    build = next(one for one in cutlass if one["scheduler"] == "stream_k" and one["tile_m"] == 128)
    launches = space.launches(build)
    chosen = spread_launches(launches, 10)
    assert len(launches) > 40 and chosen[0] == launches[0] and len(set(chosen)) == 10

    def differing(launch):
        return {name for name, value in launch.values if value != launches[0][name]} - {"splits"}

    assert all(len(differing(launch)) == 1 for launch in chosen[1:])
    assert {"swizzle", "raster", "decomposition", "reduction"} == {next(iter(differing(one))) for one in chosen[1:]}
    assert set(spread_launches(launches, 1000)) == set(launches)


def test_a_record_is_made_of_toys_and_can_be_replayed(toys, tmp_path, capsys):
    assert toys("compile", "--builds", "4") == 0
    assert "4 builds, 0 refused, 0 of a build and a problem left" in capsys.readouterr().out
    assert toys("time", "--limit", "60") == 0
    told = capsys.readouterr()
    assert "more candidates on 3 problems: about" in told.err
    assert told.out.count("| 9 | 0 |") == 3  # two launches of four builds, and the library's call

    recorded = read_recorded_space(tmp_path / "record.json.gz")
    assert recorded.problems == recorded_problems() and len(recorded.builds) == 4
    assert all(len(build.launches) == 2 and build.compile_s == 0.5 for build in recorded.builds)
    assert all(set(launch.times_us) == {0, 1, 2} for build in recorded.builds for launch in build.launches)
    trials = Trials(tmp_path / "trials.jsonl")
    assert {stage for stage, _ in trials.latest.values()} == {"again"}  # so few are all among the best
    for place, problem in enumerate(recorded.problems):
        medians = {trial.configuration: trial.median_us for trial in trials.of(problem)}
        assert LIBRARY in medians
        assert all(one.times_us[place] == medians[one.candidate] for each in recorded.builds for one in each.launches)
    # Whether the search meets its promise on toys that are all equally fast is up to the noise.
    replay(
        [str(tmp_path / "record.json.gz"), "--half", "all", "--seeds", "1", "--json", str(tmp_path / "replayed.json")]
    )
    assert len(json.loads((tmp_path / "replayed.json").read_text())["runs"]) == 3

    before = (tmp_path / "trials.jsonl").read_bytes()
    assert toys("time") == 0
    assert (tmp_path / "trials.jsonl").read_bytes() == before


def test_what_the_time_does_not_suffice_for_is_done_by_the_next_run(toys, tmp_path, capsys):
    assert toys("compile", "--builds", "4", "--limit", "0") == 1
    assert "12 of a build and a problem left" in capsys.readouterr().out
    assert toys("compile", "--builds", "4") == 0
    assert toys("time", "--limit", "3") == 1
    timed = len(Trials(tmp_path / "trials.jsonl").latest)
    assert timed > 0 and read_recorded_space(tmp_path / "record.json.gz").builds
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"stage": "scree')  # a run that was killed as it wrote
    assert toys("time", "--limit", "60") == 0
    assert len(Trials(tmp_path / "trials.jsonl").latest) == 27


def test_whatever_goes_wrong_is_recorded_and_the_rest_goes_on(toys, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kernel_recording_builds, "SHAPES", ((2, 16, 32, "every fault"),))
    assert toys("compile", "--builds", str(len(FAULTS))) == 0
    assert "- refused: toy(fault=refused, number=1): no such tile (1 problems)" in capsys.readouterr().out
    toys("time", "--limit", "120")
    recorded = read_recorded_space(tmp_path / "record.json.gz")
    ends = {each.build["fault"]: each for each in recorded.builds}
    assert ends["refused"].refusal == "no such tile" and set(ends) == set(FAULTS)
    kinds = {
        fault: each.launches[0].failures[0].kind
        for fault, each in ends.items()
        if each.launches and each.launches[0].failures
    }
    assert kinds == {
        "error": "error", "crash": "crash", "hang": "timeout", "inaccurate": "inaccurate", "non_finite": "non_finite",
        "unwritten": "non_finite", "outside": "error", "second_call": "inaccurate", "out_of_memory": "out_of_memory",
    }  # fmt: skip
    assert len(ends["none"].launches) == 2 and len(ends["crash"].launches) == 1


def test_another_request_or_device_is_refused(toys, tmp_path, capsys):
    assert toys("compile", "--builds", "2", "--archive", str(tmp_path / "toys.tar.xz")) == 0
    assert toys("compile", "--seed", "1") == 2
    assert "another folder" in capsys.readouterr().err
    assert toys("time", folder="empty") == 2
    assert toys("time", "--archive", str(tmp_path / "toys.tar.xz"), folder="empty") == 0
    recording = Recording.read(tmp_path / "cache")
    recording.capability = (9, 0)
    recording.write(tmp_path / "cache")
    assert toys("time") == 2
    assert "compute capability None" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        toys("compile", "--device-like", "nvidia-h200")


def test_an_archive_keeps_names_of_one_file_together(tmp_path):
    folder, copy = tmp_path / "kernels", tmp_path / "copy"
    folder.mkdir()
    (folder / "recording.json").write_text("{}")
    (folder / "a.so").write_bytes(bytes(1000))
    (folder / "b.so").hardlink_to(folder / "a.so")
    assert size_of(folder).files == 2 and size_of(folder).bytes == 1002
    pack(folder, tmp_path / "kernels.tar.xz")
    unpack(tmp_path / "kernels.tar.xz", copy)
    assert size_of(copy) == size_of(folder) and (copy / "b.so").samefile(copy / "a.so")
    with tarfile.open(tmp_path / "kernels.tar.xz") as tar:
        assert sorted(tar.getnames()) == ["a.so", "b.so", "recording.json"]
    (tmp_path / "none.tar").write_text("no tar")
    with pytest.raises(RequestError, match="compressed tar"):
        unpack(tmp_path / "none.tar", tmp_path / "other")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.skipif(importlib.util.find_spec("cutlass_library") is None, reason="needs nvidia-cutlass")
def test_a_kernel_for_a_gpu_that_is_not_here_is_compiled(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kernel_recording_builds, "SHAPES", ((256, 512, 128, "small"), (512, 512, 128, "another")))
    arguments = [
        "compile",
        "--device-like",
        "nvidia-h200/9.0",
        "--cache",
        str(tmp_path),
        "--builds",
        "1",
        "--jobs",
        "1",
    ]
    assert kernel_recording.main(arguments) == 0
    assert "0 refused, 0 of a build and a problem left" in capsys.readouterr().out
    recording = Recording.read(tmp_path)
    (build,) = (build for build in recording.compiled(1) if build.backend == "cutlass")
    assert recording.compile_s(build) > 0 and list(tmp_path.rglob("*.so"))
