"""The score: trajectories, random search, the replayed search, and the program on the committed studies."""

import json
import math
from pathlib import Path

import pytest

from autotune.database.exchange import export_studies
from autotune.database.store import Store
from autotune.programs.search_score import main as search_score
from autotune.programs.search_score.recording import recordings
from autotune.programs.search_score.replay import Trajectory, at_random, charged, searched
from autotune.programs.search_score.score import TIMES, RandomSearch
from autotune.programs.search_score.table import Table, table_of
from autotune.testing import sample_records as samples
from tests.programs.search_score.test_recording import COMMITTED, POINTS, item, parcel, row

FALLING = Trajectory(seconds=(10.0, 20.0), best=(3.0, 1.0))


@pytest.fixture(scope="module")
def table() -> Table:
    """Four configurations; the default is the slowest, the third the best, the second fails."""
    latencies = {0: 4.0, 1: None, 2: 1.0, 3: 2.0}
    trials = [
        item(number, 10 * number, 10 * number + 5, latency_ms=latency, build_s=None if latency is None else 2.0)
        for number, latency in latencies.items()
    ]
    (recording,) = recordings([parcel([row("s1")], trials)])
    return table_of(recording)


def test_a_trajectory_holds_until_the_next_improvement() -> None:
    assert [FALLING.at(second, 9.0) for second in (0, 9.9, 10, 19, 20, 99)] == [9.0, 9.0, 3.0, 3.0, 1.0, 1.0]
    assert FALLING.reached_s(3.0) == 10.0 and FALLING.reached_s(1.5) == 20.0 and FALLING.reached_s(0.5) == math.inf
    later = FALLING.since(12.0, 9.0)
    assert later.seconds == (0.0, 8.0) and later.best == (3.0, 1.0)
    assert FALLING.since(5.0, 9.0).at(0.0, 0.0) == 9.0


def test_every_trial_costs_its_time_and_only_a_success_lowers_the_best(table: Table) -> None:
    trajectory = charged(table, [POINTS[0], POINTS[1], POINTS[3], POINTS[2]])
    assert trajectory.seconds == pytest.approx((5.0, 15.0, 20.0)) and trajectory.best == (4.0, 2.0, 1.0)


def test_the_search_tries_the_whole_table_once_with_defaults_then_hints_first(table: Table) -> None:
    plain, hinted = searched(table, 0), searched(table, 0, [POINTS[2]])
    assert set(plain.order) == set(POINTS) and len(plain.order) == 4 and plain.after_defaults == 3
    assert plain.order[0] == hinted.order[0] == POINTS[0] and hinted.order[1] == POINTS[2]
    assert searched(table, 0) == plain


def test_random_search_is_a_shuffle_after_the_first(table: Table) -> None:
    orders = {tuple(at_random(table, seed, [POINTS[0]])) for seed in range(40)}
    assert len(orders) == 6 and all(order[0] == POINTS[0] and set(order) == set(POINTS) for order in orders)
    assert at_random(table, 3) == at_random(table, 3)


def test_the_score_is_zero_for_random_search_and_one_for_the_optimum_at_once() -> None:
    slow = Trajectory(seconds=(100.0,), best=(1.0,))
    random = RandomSearch.of([FALLING, slow], before=5.0, optimum=1.0)
    assert random.times_s[-1] == 100.0 and len(random.times_s) == TIMES
    assert random.score(Trajectory(seconds=(0.0,), best=(1.0,))) == pytest.approx(1.0)
    alone = RandomSearch.of([slow], before=5.0, optimum=1.0)
    assert alone.score(slow) == pytest.approx(0.0)
    never = Trajectory(seconds=(), best=())
    assert random.score(never) is not None and random.score(never) < 0
    assert random.score(FALLING) == pytest.approx(-random.score(slow), abs=1e-9), "their mean is random search"


def test_the_comparison_ends_when_random_search_has_come_most_of_the_way() -> None:
    steps = Trajectory(seconds=(10.0, 20.0, 900.0), best=(3.0, 1.01, 1.0))
    assert RandomSearch.of([steps], before=5.0, optimum=1.0).times_s[-1] == 20.0


def test_there_is_nothing_to_compare_if_random_search_begins_at_the_optimum() -> None:
    random = RandomSearch.of([FALLING], before=1.0, optimum=1.0)
    assert random.times_s == () and random.score(FALLING) is None


def test_the_program_scores_the_committed_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "score.json"
    assert search_score.main([str(COMMITTED), "--seeds", "2", "--json", str(out)]) == 0
    text, document = capsys.readouterr().out, json.loads(out.read_text())
    by_name = {
        (entry["name"], entry["batch"], entry["device_class"].split("/")[0]): entry for entry in document["recordings"]
    }
    silent = by_name["vit-b16", 1, "amd-epyc-2c"]
    assert silent["silence"] == "a default is within 3% of the best" and f"says nothing: {silent['silence']}" in text
    telling = [entry for entry in document["recordings"] if not entry["silence"]]
    (check,) = document["checks"]
    assert check["raw"]["recordings"] == len(telling) == 8 and check["raw"]["of"] == 18
    scores = [entry["search"]["score"] for entry in telling]
    assert check["raw"]["score"]["search"] == pytest.approx(sum(scores) / len(scores))
    assert check["raw"]["score"]["search"] > 0.5, "hints that do not wait for their backend come to about 0"
    for entry in telling:
        assert len(entry["times_s"]) == len(entry["random"]["best"]) == len(entry["search"]["best"]) == TIMES
        assert min(entry["search"]["near_s"]) > 0 and entry["optimum_ms"] < entry["best_default_ms"]
    vit = by_name["vit-b16", 1, "nvidia-h200"]["warm"]
    assert [hint["backend"] for hint in vit["hints"]] == ["native"]
    assert by_name["bert-base", 1, "intel-r-xeon-r-processor-16c"]["warm"]["not_recorded"] > 0


def test_a_file_without_a_search_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(str(tmp_path / "a.db")) as store:
        samples.begin(store)
        export_studies(store, ["resnet50"], tmp_path / "a.zip", artifacts=False)
    assert search_score.main([str(tmp_path / "a.zip")]) == 2
    assert "no study with a search" in capsys.readouterr().err
    assert search_score.main([str(tmp_path / "absent.zip")]) == 2
    assert "absent.zip cannot be read" in capsys.readouterr().err
