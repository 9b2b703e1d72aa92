from pathlib import Path

import pytest

from autotune.database.artifacts import ArtifactStore
from autotune.programs.reliability import artifacts
from autotune.programs.reliability.campaign import Campaign


def campaign(folder: Path) -> Campaign:
    return Campaign(folder=folder, databases={"sqlite": f"sqlite:///{folder}/a.db"}, quick=True, seed=1)


def test_damaged_artifacts_are_refused(tmp_path: Path) -> None:
    (outcome,) = artifacts.damaged_artifacts(campaign(tmp_path))
    assert outcome.passed and outcome.raw == {"artifacts": 20, "refused": 20, "healed": 20}


def test_a_store_that_verifies_nothing_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ArtifactStore, "_verified", staticmethod(lambda digest, path, file: ()))
    monkeypatch.setattr(ArtifactStore, "_check_unchanged", lambda *_: None)
    (outcome,) = artifacts.damaged_artifacts(campaign(tmp_path))
    assert not outcome.passed and outcome.raw["loaded"] > 0


def test_killed_writers_leave_nothing_in_part(tmp_path: Path) -> None:
    (outcome,) = artifacts.killed_writes(campaign(tmp_path))
    assert outcome.passed, outcome.figure
    assert outcome.raw["kills"] == 5 and outcome.raw["artifacts"] > 0


def test_an_artifact_in_part_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(store: ArtifactStore, *_: object) -> tuple[list[str], bool]:
        (tmp_path / "built").mkdir(exist_ok=True)
        (tmp_path / "built" / "a").write_bytes(b"whole")
        digest = store.add(tmp_path / "built")
        blob = store.blob(store.files(digest)[0].sha256)
        blob.chmod(0o600)
        blob.write_bytes(b"who")
        return [digest], True

    monkeypatch.setattr(artifacts, "_kill_one", kill)
    (outcome,) = artifacts.killed_writes(campaign(tmp_path))
    assert not outcome.passed and outcome.raw["findings"][0]["what"] == "blob"
