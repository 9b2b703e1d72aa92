"""Nothing in a captured graph is unpickled, whatever the file asks for."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from autotune.errors import ArtifactError
from autotune.model.program import load_program

CONFIG = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


class Tripwire:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (self.path, "ran"))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "program.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(3, 2).eval(), (torch.randn(2, 3),)), str(path))
    return path


def rewritten(program: Path, target: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """Change the archive's entries, named without the folder that holds them all."""
    with zipfile.ZipFile(program) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in entries.items():
            archive.writestr(f"{target.stem}/{name}" if name != "version" else name, content)
    return target


def with_pickled_weight(entries: dict[str, bytes], payload: bytes, tripwire: bytes) -> None:
    configuration = json.loads(entries[CONFIG])
    configuration["config"]["weight"]["use_pickle"] = True
    entries[CONFIG] = json.dumps(configuration).encode()
    entries["data/weights/weight_0"] = tripwire


def with_opaque_constant(entries: dict[str, bytes], payload: bytes, tripwire: bytes) -> None:
    constant = json.loads(entries[CONFIG])["config"]["weight"] | {"path_name": "opaque_obj_0", "use_pickle": False}
    entries[CONSTANTS] = json.dumps({"config": {"x": constant}}).encode()
    entries["data/constants/opaque_obj_0"] = payload


def with_example_inputs(entries: dict[str, bytes], payload: bytes, tripwire: bytes) -> None:
    entries["data/sample_inputs/model.pt"] = tripwire


def with_legacy_constants(entries: dict[str, bytes], payload: bytes, tripwire: bytes) -> None:
    entries["data/constants/model.pt"] = tripwire


def as_before_2_8(entries: dict[str, bytes], payload: bytes, tripwire: bytes) -> None:
    entries.clear()
    entries.update({"version": b"8.8", "serialized_constants.pt": tripwire})


CHANGES = [with_pickled_weight, with_opaque_constant, with_example_inputs, with_legacy_constants, as_before_2_8]


@pytest.mark.parametrize("change", CHANGES)
def test_a_pickle_inside_is_refused_before_it_runs(
    program: Path, tmp_path: Path, change: Callable[[dict[str, bytes], bytes, bytes], None]
) -> None:
    torch.save(Tripwire(tmp_path / "ran"), tmp_path / "tripwire.pt")
    payload, tripwire = pickle.dumps(Tripwire(tmp_path / "ran")), (tmp_path / "tripwire.pt").read_bytes()
    path = rewritten(program, tmp_path / "bad.pt2", lambda entries: change(entries, payload, tripwire))
    with pytest.raises(ArtifactError, match=r"bad\.pt2 is refused"):
        load_program(path)
    assert not (tmp_path / "ran").exists()


def test_torch_itself_would_have_run_it(program: Path, tmp_path: Path) -> None:
    """Why this module is there; where this fails, torch has learnt to refuse, and the module can go."""
    torch.save(Tripwire(tmp_path / "ran"), tmp_path / "tripwire.pt")
    tripwire = (tmp_path / "tripwire.pt").read_bytes()
    path = rewritten(program, tmp_path / "bad.pt2", lambda entries: with_pickled_weight(entries, b"", tripwire))
    with pytest.raises(Exception):  # noqa: B017 what it makes of the rest is torch's affair
        torch.export.load(str(path))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["raw pickle", "torch.save", "cut off", "compressed", "no file"])
def test_what_is_no_graph_is_refused(program: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bad.pt2"
    if kind == "raw pickle":
        path.write_bytes(pickle.dumps(Tripwire(tmp_path / "ran")))
    elif kind == "torch.save":
        torch.save(Tripwire(tmp_path / "ran"), path)
    elif kind == "cut off":
        path.write_bytes(program.read_bytes()[:-200])
    elif kind == "compressed":
        with zipfile.ZipFile(program) as sound, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
            for name in sound.namelist():
                bomb.writestr(name, sound.read(name))
    with pytest.raises(ArtifactError, match=r"bad\.pt2 is refused"):
        load_program(path)
    assert not (tmp_path / "ran").exists()


def test_a_graph_that_was_captured_is_read(program: Path, tmp_path: Path) -> None:
    inputs = torch.randn(2, 3)
    copy = rewritten(program, tmp_path / "program.pt2", lambda entries: None)
    assert torch.equal(load_program(copy).module()(inputs), load_program(program).module()(inputs))
