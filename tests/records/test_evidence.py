"""The evidence of plans, as version 0.1.0 stored it and as it is made now."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from autotune.records.canonical import canonical
from autotune.records.configuration import Configuration
from autotune.records.evidence import FinalistRecord, PlanEvidence
from autotune.records.plan import Plan
from tests.database.records import plan

STORED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "evidence_0_1_0.json").read_text())
"""Evidence by the objective of its study; version 0.1.0 wrote it."""
RESULTS = sorted((Path(__file__).parents[2] / "studies").glob("**/results/*.json"))


@pytest.fixture(params=sorted(STORED))
def stored(request: pytest.FixtureRequest) -> dict[str, Any]:
    return STORED[request.param]


def test_stored_evidence_has_its_values_as_attributes(stored: dict[str, Any]) -> None:
    evidence = PlanEvidence.from_dict(stored)
    assert (evidence.study, evidence.trial, evidence.rounds, evidence.seed) == ("s1", "f2", 8, 7)
    assert evidence.processes == (0, 0, 0, 1, 1, 1, 2, 2) and evidence.tied_with == tuple(stored["tied_with"])
    assert evidence.inputs == tuple(stored["inputs"]) and evidence.toolchain == {"driver": "570.1", "torch": "2.13.0"}
    assert evidence.objective is not None and evidence.objective.value == stored["objective"]["value"]
    assert evidence.objective.interval == tuple(stored["objective"]["interval"])
    assert evidence.objective.concurrency == stored["objective"].get("concurrency")
    winner = evidence.winner
    assert winner is not None and winner.uid == "f2" and winner.flags == ("busy_host",)
    assert winner.configuration == Configuration.of("inductor", {"precision": "fp16", "freezing": True})
    assert evidence.finalist_of(winner.configuration) is winner and winner.backend == "inductor"
    for finalist, entry in zip(evidence.finalists, stored["finalists"], strict=True):
        for name in ("latency_ms", "signal_error", "build_s", "is_baseline", "could_be_baseline", "utilisation"):
            assert getattr(finalist, name) == entry[name]
        assert [None if block is None else list(block) for block in finalist.samples_ms] == entry["samples_ms"]
        assert (finalist.figures is None) == ("figures" not in entry) and finalist.compared == entry["objective_value"]
    (frozen,) = (finalist for finalist in evidence.finalists if finalist.uid == "o3")
    assert frozen.samples_ms[-1] is None
    counted = [index for index, is_disturbed in enumerate(winner.disturbed) if is_disturbed]
    assert counted == stored["finalists"][0].get("disturbed_rounds", [])


def test_what_is_read_is_written_unchanged(stored: dict[str, Any]) -> None:
    assert json.dumps(PlanEvidence.from_dict(stored).as_dict()) == json.dumps(stored)
    sorted_keys = json.loads(canonical(stored))
    assert json.dumps(PlanEvidence.from_dict(sorted_keys).as_dict()) == json.dumps(sorted_keys)
    before = plan(evidence=PlanEvidence.from_dict(stored))
    assert before.as_dict()["evidence"] == stored and before.flags == ("busy_host",)
    after = Plan.from_dict(json.loads(json.dumps(before.as_dict())))
    assert after == before and after.evidence == before.evidence


def test_a_record_that_is_made_now_has_the_json_of_version_0_1_0(stored: dict[str, Any]) -> None:
    read = PlanEvidence.from_dict(stored)
    fresh = dataclasses.replace(
        read, stored_keys=None,
        finalists=tuple(dataclasses.replace(finalist, stored_keys=None) for finalist in read.finalists),
        objective=dataclasses.replace(read.objective, stored_keys=None) if read.objective else None,
    )  # fmt: skip
    assert json.dumps(fresh.as_dict()) == json.dumps(stored) and fresh == read
    assert "schema" not in fresh.as_dict()


@pytest.mark.parametrize("left_out", ["study", "objective", "finalists", "rounds", "processes", "inputs", "seed"])
def test_evidence_that_lacks_a_key_lacks_it_when_it_is_written_again(stored: dict[str, Any], left_out: str) -> None:
    older = {key: value for key, value in stored.items() if key != left_out}
    evidence = PlanEvidence.from_dict(older)
    assert json.dumps(evidence.as_dict()) == json.dumps(older) and not getattr(evidence, left_out)


def test_no_evidence_and_unknown_evidence_are_kept() -> None:
    assert plan(evidence=PlanEvidence.from_dict({})).evidence.as_dict() == {}
    assert Plan.__dataclass_fields__["evidence"].default_factory().as_dict() == {}  # type: ignore[misc]
    strange = PlanEvidence.from_dict({"finals": [1], "trial": "t"})
    assert strange.as_dict() == {"finals": [1], "trial": "t"} and strange.beside == {"finals": [1]}
    assert strange.winner is None and plan(evidence=strange).flags == ()


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_the_finals_of_committed_results_are_read_and_written_unchanged(path: Path) -> None:
    finals = json.loads(path.read_text())["finals"]
    records = [FinalistRecord.from_dict(entry) for entry in finals]
    assert finals and [json.dumps(record.as_dict()) for record in records] == [json.dumps(entry) for entry in finals]
    assert [record.could_be_baseline for record in records] == [entry["could_be_baseline"] for entry in finals]
    assert [record.compared for record in records] == [
        entry.get("objective_value", entry["latency_ms"]) for entry in finals
    ]


def test_a_finalist_that_does_not_say_so_could_be_the_baseline_if_it_is() -> None:
    entry = {"configuration": {"backend": "eager"}, "latency_ms": 1.0, "interval_ms": [0.9, 1.1]}
    assert FinalistRecord.from_dict({**entry, "is_baseline": True}).could_be_baseline
    assert not FinalistRecord.from_dict(entry).could_be_baseline


def test_a_finalist_without_its_samples_shows_none(stored: dict[str, Any]) -> None:
    finalist = PlanEvidence.from_dict(stored).finalists[0]
    short = {key: value for key, value in stored["finalists"][0].items() if key not in ("samples_ms", "uid")}
    assert finalist.without("samples_ms", "uid").as_dict() == short


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LaterEvidence(PlanEvidence):
    """Evidence as a later version of autotune may keep it."""

    schema: ClassVar[int] = 2
    names: ClassVar = (*PlanEvidence.names, "host")
    host: str = ""


def test_evidence_of_a_later_schema_is_refused_and_of_an_earlier_one_read(stored: dict[str, Any]) -> None:
    later = dataclasses.replace(LaterEvidence.from_dict(stored), stored_keys=None, host="a")
    assert later.as_dict()["schema"] == 2 and later.as_dict()["host"] == "a"
    with pytest.raises(ValueError, match="a PlanEvidence of schema 2, expected at most schema 1: a later version"):
        PlanEvidence.from_dict(later.as_dict())
    again = LaterEvidence.from_dict(json.loads(json.dumps(later.as_dict())))
    assert again == later and again.host == "a"
    assert LaterEvidence.from_dict(stored).as_dict() == stored


@pytest.mark.parametrize("content", [[1], 7, None, {"finalists": [{"latency_ms": 1.0}]}, {"schema": "1"}])
def test_what_is_no_evidence_is_refused(content: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        PlanEvidence.from_dict(content)


def test_items_of_the_former_dictionary_are_deprecated(stored: dict[str, Any]) -> None:
    evidence = PlanEvidence.from_dict(stored)
    for read, expected in (
        (lambda: evidence["study"], "s1"),
        (lambda: evidence.get("nothing", 3), 3),
        (lambda: "trial" in evidence, True),
        (lambda: dict(evidence), stored),
        (lambda: sorted(evidence), sorted(stored)),
        (lambda: evidence["finalists"][0]["uid"], "f2"),
    ):
        with pytest.warns(DeprecationWarning, match="PlanEvidence is a record: read its attributes"):
            assert read() == expected


def test_a_plan_takes_evidence_as_plain_data(stored: dict[str, Any]) -> None:
    taken = dataclasses.replace(plan(), evidence=stored)
    assert taken.evidence == PlanEvidence.from_dict(stored)
