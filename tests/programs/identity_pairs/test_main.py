"""Two hundred pairs in the tests, ten thousand in ``studies/identity``; and a fingerprint that leaves something out."""

import json
import random

import pytest

from autotune.model import form
from autotune.programs.identity_pairs import main as identity_pairs
from autotune.programs.identity_pairs.compared_pair import compare
from autotune.programs.identity_pairs.kinds import KINDS, draw_pair


@pytest.mark.timeout(900)  # half a minute on two free cores
def test_no_pair_of_two_hundred_shares_a_key_that_it_must_not_share(tmp_path, capsys):
    file = tmp_path / "pairs.json"
    assert identity_pairs.main(["--pairs", "200", "--workers", "2", "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert document["passed"] and document["pairs"] == 200 and document["environment"]["versions"]["torch"]
    rows = {row["check"]: row["raw"] for row in document["checks"]}
    assert set(rows) == set(KINDS) and all(raw["pairs"] == 20 for raw in rows.values())
    assert "all 10 passed" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_the_same_for_the_same_seed_and_differ_in_one_thing(kind):
    one, same, other = (draw_pair(kind, random.Random(seed)) for seed in ("a", "a", "b"))
    assert one == same and one != other
    assert one.first != one.second or one.requests[0] != one.requests[1]


def test_a_structure_that_leaves_numbers_out_is_found(monkeypatch, capsys):
    from autotune.model import fingerprint

    kept = fingerprint._canonical
    monkeypatch.setattr(fingerprint, "_canonical", lambda v, at: None if isinstance(v, float) else kept(v, at))
    monkeypatch.setattr(identity_pairs, "KINDS", {"constant": None})
    assert identity_pairs.main(["--pairs", "8"]) == 1
    shown = capsys.readouterr().out
    assert "FAIL" in shown and "they share structure" in " ".join(shown.split())


def broken_form(monkeypatch):
    monkeypatch.setattr(form, "_identity", lambda node: node["kind"])


def broken_gate(monkeypatch):
    from autotune.records.identity import PlanKey

    monkeypatch.setattr(PlanKey, "serves", lambda self, asked: self.structure == asked.structure)


def broken_weights(monkeypatch):
    from autotune.model import fingerprint

    monkeypatch.setattr(fingerprint, "_add_values", lambda digest, tensor: digest.update(str(tensor.shape).encode()))


def broken_refusal(monkeypatch):
    from autotune.model import state_watch

    monkeypatch.setattr(state_watch, "_changed", lambda before, now: iter(()))


def unstable_structure(monkeypatch):
    from autotune.model import fingerprint

    drawn = random.Random(0)
    monkeypatch.setattr(fingerprint, "_meta", lambda node: drawn.random())


@pytest.mark.parametrize(
    ("kind", "broken", "said"),
    [
        ("output key", broken_form, "they share form"),
        ("gate", broken_gate, "a plan of one serves the other"),
        ("weights", broken_weights, "they share weights"),
        ("buffer write", broken_refusal, "level"),
        ("request", unstable_structure, "equal models built twice differ in structure"),
    ],
)
def test_a_broken_key_is_found_in_each_kind(monkeypatch, kind, broken, said):
    broken(monkeypatch)
    found = [compare(kind, str(seed)).wrong for seed in range(8)]
    assert said in " ".join(reason for wrong in found for reason in wrong)
