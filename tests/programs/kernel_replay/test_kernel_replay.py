"""The tuning of kernels in simulated time: the clock, the pool, and the figures of a replay."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.errors import RequestError
from autotune.programs.kernel_replay.main import costs_of, main
from autotune.programs.kernel_replay.problems import ModelProblems, read_problems, write_problems
from autotune.programs.kernel_replay.replay import ENOUGH, replay
from autotune.programs.kernel_replay.simulated import SimulatedClock, SimulatedPool, binary
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem

COMMITTED = Path(__file__).parents[3] / "studies" / "kernels" / "model-problems.json.gz"
SMALL = ModelProblems(
    name="small", batch=1,
    weights={GemmProblem(m=m, n=768, k=768, bias=True, activation="relu"): 2.0 for m in (64, 128, 512)},
)  # fmt: skip


def tuned(**values):
    return replay(
        SMALL, **{"costs": costs_of("nvrtc"), "seed": 0, "budget_s": 60.0, "cores": 16, **values}, thinking=False
    )


def test_a_replay_is_a_function_of_its_seed():
    first, again, other = tuned(), tuned(), tuned(seed=1)
    assert first == again != other
    assert first.problems == 3 and first.compiled >= ENOUGH and first.final_loss > 0


def test_time_passes_and_the_loss_falls():
    result = tuned(budget_s=200.0)
    losses = [moment.loss for moment in result.moments]
    assert losses == sorted(losses, reverse=True) and math.isfinite(losses[-1])
    counts = [(moment.begun, moment.enough) for moment in result.moments]
    assert counts == sorted(counts) and counts[-1] == (3, 3)
    assert result.all_enough_s is not None and 0 < result.all_enough_s <= result.end_s


def test_what_is_compiled_before_is_not_waited_for_and_costs_nothing():
    ready = tuned(costs=costs_of("compiled"))
    assert ready.compiled == 0 and ready.waiting <= 0.1
    slow = tuned(costs=replace(costs_of("nvrtc"), compile_s=dict.fromkeys(costs_of("nvrtc").compile_s, 15.0)))
    assert slow.waiting > 0.5 and slow.moments[0].begun < 3


def test_two_workers_compile_side_by_side_and_a_third_job_waits_for_one():
    clock = SimulatedClock()
    pool = SimulatedPool(2, clock, lambda: type("Executor", (), {"last_job_s": 4.0}))
    first, second = (pool.submit(lambda: ({}, {})) for _ in range(2))
    third = pool.submit(lambda: ({}, {}))
    assert (first.end_s, second.end_s, third.end_s) == (4.0, 4.0, 8.0) and not first.done
    clock.charge(1.0)
    pool.wait([first, third])
    assert clock() == 4.0 and pool.waited_s == 3.0 and first.done and not third.done
    third.result()
    assert clock() == 8.0


def test_a_build_is_shared_by_the_problems_that_its_binary_serves():
    build = Configuration.of("hopper_gemm", {"tile_m": 64})
    small, large = (GemmProblem(m=m, n=64, k=64, bias=True, activation=name) for m, name in ((8, "relu"), (64, "gelu")))
    assert binary(small, build) == binary(large, build) != binary(replace(small, dtype="bf16"), build)


def test_the_committed_problems_are_those_of_five_models_at_two_batches(tmp_path):
    models = read_problems(COMMITTED)
    assert len(models) == 10 and all(model.weights for model in models)
    write_problems(tmp_path / "again.gz", models)
    assert (tmp_path / "again.gz").read_bytes() == COMMITTED.read_bytes()
    (tmp_path / "again.gz").write_bytes(b"no file of problems")
    with pytest.raises(RequestError, match="--write"):
        read_problems(tmp_path / "again.gz")


def test_the_program_prints_a_row_for_each_replay_and_fails_a_target_that_is_missed(tmp_path, capsys):
    write_problems(tmp_path / "small.gz", [SMALL])
    words = ["--problems", str(tmp_path / "small.gz"), "--no-thinking", "--budget", "1"]
    assert main([*words, "--json", str(tmp_path / "out.json")]) == 1
    assert "| small, 1 (3) |" in capsys.readouterr().out
    assert '"all_enough_s": null' in (tmp_path / "out.json").read_text()
