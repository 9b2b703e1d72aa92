"""The comparison with the libraries' calls: its products, its figures, and the program with toys on this CPU."""

import json
import math
import random
from dataclasses import replace

import pytest
import torch

from autotune import registry
from autotune.model import source
from autotune.model.capture import capture
from autotune.programs.kernel_comparison import main as kernel_comparison
from autotune.programs.kernel_comparison.finals import Race, overall, ratio_of, result_of
from autotune.programs.kernel_comparison.shapes import SHAPES, ComparedShape
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces import native
from studies import models
from tests.toy_kernels import LIBRARY, build, launch

HOPPER = Device(kind="cuda", name="NVIDIA H200", uuid="gpu", capability=(9, 0))
OURS = launch(build("none"))
SMALL = GemmProblem(m=8, n=16, k=32, dtype="fp32", output="fp32")


def test_forty_products_of_four_models():
    assert len({shape.problem for shape in SHAPES}) == len({shape.name for shape in SHAPES}) == 40
    assert {shape.model for shape in SHAPES} == {"bert_base", "vit_b16", "resnet50", "llama_7b"}
    assert {1, 8, 32} <= {shape.batch for shape in SHAPES}
    assert {shape.problem.activation for shape in SHAPES} == {"none", "relu", "gelu", "silu"}
    for shape in SHAPES:
        assert registry.kernels("native").space(HOPPER, shape.problem).builds


def test_those_of_a_study_come_out_of_its_captured_graph(tmp_path):
    torch.manual_seed(0)
    inputs = {"pixel_values": torch.zeros(1, 3, 224, 224)}
    captured = capture("resnet50", 1, models.resnet50(), inputs)
    source.write(tmp_path, captured, inputs, factory=None, seed=0)
    switches = {name: name not in native.LATER for name in native.FUSIONS}
    configuration = Configuration.of(
        "native", {"precision": "fp16", **switches, "channels_last": True, "kernels": "tuned", "cuda_graph": True}
    )
    found = registry.backend("native").kernel_problems(source.CapturedModel(tmp_path), configuration, HOPPER)
    for shape in SHAPES:
        if shape.model == "resnet50":
            # A batch makes more rows, and nothing else.
            assert shape.problem.m % shape.batch == 0
            assert replace(shape.problem, m=shape.problem.m // shape.batch) in found, shape.name


def race(ours_us, theirs_us, *, processes=5, rounds=12, process_noise=0.0, seed=0):
    draw = random.Random(seed)
    runs = []
    for _ in range(processes):
        shift = math.exp(draw.gauss(0, process_noise))
        blocks = {
            each.digest: [[us * by * math.exp(draw.gauss(0, 0.003)) for _ in range(5)] for _ in range(rounds)]
            for each, us, by in ((OURS, ours_us, shift), (LIBRARY, theirs_us, 1.0))
        }
        runs.append({"samples_us": blocks})
    return Race(problem=SMALL, finalists=(OURS, LIBRARY), chosen=OURS, runs=runs)


def test_a_ratio_is_the_library_over_ours_within_its_interval():
    ratio = ratio_of(race(10.0, 11.0), LIBRARY, OURS)
    assert ratio.ratio == pytest.approx(1.1, rel=0.005) and ratio.p_value < 1e-6
    assert 1.08 < ratio.interval[0] <= ratio.ratio <= ratio.interval[1] < 1.12
    loose = ratio_of(race(10.0, 11.0, process_noise=0.05), LIBRARY, OURS)
    assert loose.interval[1] / loose.interval[0] > 1.03  # as the processes differ, not as the rounds of one do
    assert ratio_of(race(10.0, 11.0), OURS, OURS).interval == (1.0, 1.0)


def test_means_are_geometric_and_slower_is_what_the_test_and_the_interval_say():
    faster, slower = result_of(race(10.0, 12.0)), result_of(race(12.0, 10.0))
    assert (faster.ours, faster.library, faster.rounds) == (OURS, LIBRARY, 60)
    joined = overall([faster, slower])
    assert joined.ours.ratio == pytest.approx(1.0, abs=0.01) and joined.slower == (SMALL,)
    assert joined.ours.interval[0] < 1.0 < joined.ours.interval[1]
    assert overall([faster, faster]).slower == ()
    assert overall([faster, faster]).chosen.ratio == pytest.approx(1.2, rel=0.01)
    assert result_of(replace(race(1.0, 1.0), failures=["it crashed"])) is None


def test_a_race_is_read_as_it_was_written():
    found = race(10.0, 11.0, processes=2)
    assert Race.from_dict(json.loads(json.dumps(found.as_dict()))) == found


@pytest.fixture
def program(toykernels, tmp_path, monkeypatch):
    """The program on toy kernels, and two products that are small enough for a CPU."""
    shapes = tuple(
        ComparedShape(model="toy", batch=m, what="a product", epilogue="none", problem=replace(SMALL, m=m))
        for m in (8, 1)
    )
    monkeypatch.setattr(kernel_comparison, "SHAPES", shapes)
    monkeypatch.setattr("autotune.kernels.executor.CANDIDATE_S", 3.0)

    def run(*options):
        common = ["--backend", toykernels, "--device", "cpu", "--cache", str(tmp_path / "cache")]
        common += ["--db", str(tmp_path / "kernels.db"), "--json", str(tmp_path / "found.json"), "--processes", "2"]
        return kernel_comparison.main([*common, "--rounds", "3", "--builds", "2", *options])

    return run


def test_products_are_tuned_and_compared_and_nothing_is_done_twice(program, tmp_path, capsys):
    assert program("--limit", "100") == 0
    told = capsys.readouterr()
    assert "| toy 8, a" in told.out and "| toy 1, a" in told.out and "Geometric mean over 2 products" in told.out
    data = json.loads((tmp_path / "found.json").read_text())
    assert [each["what"] for each in data["products"]] == ["a product"] * 2 and not data["missing"]
    for each in data["products"]:
        found = Race.from_dict(each["race"])
        assert len(found.runs) == 2 and len(found.finalists) >= 2
        assert all(len(blocks) == 3 for run in found.runs for blocks in run["samples_us"].values())
        result = result_of(found)
        assert each["result"]["of_ours"]["ratio"] == result.of_ours.ratio and result.rounds == 6
        assert each["result"]["library"] == LIBRARY.as_dict()
        assert {run["conditions"]["sets"] for run in found.runs} == {4}
    assert data["overall"]["ours"]["ratio"] > 0 and data["environment"]["device"] == "cpu"

    before = [each["race"] for each in data["products"]]
    assert program("--limit", "100") == 0
    assert [each["race"] for each in json.loads((tmp_path / "found.json").read_text())["products"]] == before


def test_without_time_for_the_finals_the_next_run_does_them(program, tmp_path, capsys):
    assert program("--limit", "0.001", "--only", "toy-8-") == 1
    assert "not compared: toy-8-8x16x32" in capsys.readouterr().out
    assert program("--limit", "100", "--only", "toy-8-") == 0


def test_a_finalist_that_fails_costs_its_own_product_only(program, monkeypatch, tmp_path, capsys):
    from autotune.programs.kernel_comparison.finals import Race as Races

    tuned = Races.of

    def broken(one):
        found = tuned(one)
        return (
            replace(found, finalists=(*found.finalists, launch(build("inaccurate", 9))))
            if one.problem.m == 8
            else found
        )

    monkeypatch.setattr(Races, "of", broken)
    assert program("--limit", "100") == 1
    told = capsys.readouterr().out
    assert "not compared: toy-8-8x16x32" in told and "off by" in told and "| toy 1," in told


def test_what_the_search_begins_with_is_compiled_without_any_timing(program, tmp_path, capsys):
    assert program("--compile-only", "--first", "2", "--archive", str(tmp_path / "toys.tar.xz")) == 0
    assert "3 builds of a product compiled, 0 refused, 0 left" in capsys.readouterr().out
    assert not (tmp_path / "kernels.db").exists() and (tmp_path / "toys.tar.xz").exists()


def test_requests_that_make_no_sense_are_refused(program, tmp_path, capsys):
    assert program("--only", "gpt") == 2
    assert "no product of such a name" in capsys.readouterr().err
    (tmp_path / "found.json").write_text("{}")
    assert program("--limit", "30") == 2
    assert "resuming" in capsys.readouterr().err
