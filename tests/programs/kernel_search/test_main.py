"""The report on recorded spaces as a program: a table, JSON, and an exit code that says whether the promise is kept."""

import json
from pathlib import Path

import pytest

from autotune.programs.kernel_search import main as kernel_search
from tests.kernels.kernel_simulator import SHAPES, record


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("spaces")
    paths = [folder / "small.json", folder / "large.json"]
    record(3, count=12, shapes=SHAPES[:4]).write(paths[0])
    record(4, count=60, shapes=SHAPES[:4]).write(paths[1])
    return paths


def test_the_table_and_the_json_say_the_same(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    code = kernel_search.main([*map(str, files), "--seeds", "2", "--half", "all", "--json", str(out)])
    text, found = capsys.readouterr().out, json.loads(out.read_text())
    assert len(found["runs"]) == 2 * 4 * 2
    assert [step["builds"] for step in found["after"]] == [4, 8, 12, 16]
    worst = max(run["regrets"][-1] for run in found["runs"])
    assert found["after"][-1]["worst"] == worst
    assert f"| {worst:.2%} |" in text
    assert found["passed"] == (worst <= 0.03) == (code == 0)
    assert "(synthetic), 60 builds, 4 problems" in text
    assert "Synthetic times prove nothing about a device." in text
    assert "128×3072×768 (space 2)" in text


def test_a_search_that_misses_the_best_is_an_exit_code_of_one(files: list[Path]) -> None:
    found = kernel_search.replay_spaces([record(4, count=60, shapes=SHAPES[:4])], half="all", seeds=1, checkpoints=(1,))
    assert not found["passed"]
    assert found["after"][0]["worst"] > 0.03


def test_the_halves_are_told_apart(files: list[Path], tmp_path: Path) -> None:
    seen = {}
    for half in ("settle", "report"):
        kernel_search.main([str(files[0]), "--seeds", "1", "--half", half, "--json", str(tmp_path / half)])
        seen[half] = {json.dumps(run["problem"]) for run in json.loads((tmp_path / half).read_text())["runs"]}
    assert len(seen["settle"]) == len(seen["report"]) == 2
    assert not seen["settle"] & seen["report"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.json"], "reading the recorded space nothing.json"),
        (["nothing.json", "--seeds", "0"], "0 is not a positive number"),
        (["nothing.json", "--half", "third"], "invalid choice"),
        ([], "required: FILE"),
    ],
)
def test_a_wrong_request_is_an_exit_code_of_two(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = kernel_search.main(arguments)
    except SystemExit as ended:  # what argparse itself refuses
        code = ended.code
    assert code == 2
    assert message in capsys.readouterr().err
