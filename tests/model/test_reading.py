"""What a block reads is noted, and a change of it is noticed."""

import contextlib
import ctypes
import glob
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from autotune.model.factory import make_module
from autotune.model.reading import is_third_party, own_sources, unchanged, watching


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WIDTH_OF_TEST", "3")
    write_weights(1.0)
    Path("settings.json").write_text('{"width": 3}')
    Path("checkpoints").mkdir()
    Path("checkpoints/step-1.pt").touch()
    return tmp_path


def write_weights(value):
    tensors = {"w": torch.full((2, 2), value)}
    torch.save(tensors, "weights.pt")
    save_file(tensors, "weights.safetensors")
    numpy.save("weights.npy", tensors["w"].numpy())
    numpy.savez("weights.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    torch.jit.save(torch.jit.trace(lambda x: x * value, torch.ones(1)), "weights.ts")
    torch.export.save(torch.export.export(torch.nn.Linear(1, int(value)), (torch.ones(1, 1),)), "weights.pt2")


def opened_safely():
    with safe_open("weights.safetensors", framework="pt") as file:
        assert isinstance(file, safe_open)
        return file.get_tensor("w")


def newest():
    return sorted(glob.glob("checkpoints/*.pt"))[-1]


NEW_WEIGHTS = [
    lambda: torch.load("weights.pt"),
    lambda: torch.load("weights.pt", mmap=True),
    lambda: torch.jit.load("weights.ts"),
    lambda: torch.export.load("weights.pt2"),
    lambda: load_file("weights.safetensors"),
    lambda: load_file(filename=Path("weights.safetensors")),
    opened_safely,
    lambda: numpy.load("weights.npy"),
    lambda: numpy.load("weights.npy", mmap_mode="r"),
    lambda: numpy.load("weights.npz")["w"],
    lambda: open("weights.npy", "rb").close(),
    lambda: Path("weights.npy").read_bytes(),
    lambda: os.close(os.open("weights.npy", os.O_RDONLY)),
    lambda: torch.UntypedStorage.from_file("weights.npy", False, 64),
    lambda: os.path.getsize("weights.npy") + os.path.getmtime("weights.npy"),
]


@pytest.mark.parametrize("read", NEW_WEIGHTS)
def test_a_file_of_weights_that_changed_is_noticed(read):
    with watching() as reading:
        kept = read()
    record = json.loads(json.dumps(reading.record()))
    assert unchanged(record) and not record["unknown"]
    assert kept is None or kept is not reading
    write_weights(2.0)
    assert not unchanged(record)


def file_becomes_folder():
    Path("settings.json").unlink()
    Path("settings.json").mkdir()
    Path("settings.json/x").touch()


@pytest.mark.parametrize(
    ("read", "change"),
    [
        (lambda: torch.load(io.BytesIO(Path("weights.pt").read_bytes())), lambda: write_weights(2.0)),
        (lambda: json.loads(Path("settings.json").read_text()), lambda: Path("settings.json").write_text("{}")),
        (lambda: Path("settings.json").read_text(), lambda: Path("settings.json").unlink()),
        (lambda: Path("settings.json").exists(), lambda: Path("settings.json").unlink()),
        (lambda: os.listdir("checkpoints"), lambda: Path("checkpoints/step-2.pt").touch()),
        (lambda: os.listdir("checkpoints"), lambda: shutil.rmtree("checkpoints")),
        (newest, lambda: Path("checkpoints/step-2.pt").touch()),
        (lambda: list(Path("checkpoints").glob("*.pt")), lambda: Path("checkpoints/step-2.pt").touch()),
        (lambda: os.listdir(), lambda: Path("step-2.pt").touch()),
        (lambda: os.environ["WIDTH_OF_TEST"], lambda: os.environ.update(WIDTH_OF_TEST="4")),
        (lambda: os.environ.get("WIDTH_OF_TEST"), lambda: os.environ.pop("WIDTH_OF_TEST")),
        (lambda: os.getenv("NONE_OF_TEST", "1"), lambda: os.environ.update(NONE_OF_TEST="1")),
        (lambda: "NONE_OF_TEST" in os.environ, lambda: os.environ.update(NONE_OF_TEST="1")),
        (lambda: os.path.exists("absent.pt"), lambda: Path("absent.pt").touch()),
        (lambda: Path("absent.pt").is_file(), lambda: Path("absent.pt").touch()),
        (lambda: os.path.isdir("absent"), lambda: Path("absent").mkdir()),
        (lambda: os.path.exists("settings.json/x"), file_becomes_folder),
    ],
)  # fmt: skip
def test_whatever_else_decides_is_noticed(read, change, monkeypatch):
    monkeypatch.delenv("NONE_OF_TEST", raising=False)
    with watching() as reading:
        read()
    record = json.loads(json.dumps(reading.record()))
    assert unchanged(record), record
    change()
    assert not unchanged(record), record
    os.environ.pop("NONE_OF_TEST", None)


@pytest.mark.parametrize(
    "read", [lambda: Path("absent.json").read_text(), lambda: load_file("absent.json"), lambda: os.stat("absent.json")]
)
def test_an_absent_file_that_was_opened_is_noticed_when_it_appears(read):
    with watching() as reading, pytest.raises(FileNotFoundError):
        read()
    record = reading.record()
    assert record["absent"] == [str(Path("absent.json").absolute())] and unchanged(record)
    Path("absent.json").touch()
    assert not unchanged(record)


def test_a_link_that_leads_elsewhere_is_noticed():
    Path("checkpoints/step-2.pt").write_text("2")
    Path("latest.pt").symlink_to("checkpoints/step-1.pt")
    with watching() as reading:
        Path("latest.pt").read_bytes()
    record = reading.record()
    assert unchanged(record)
    Path("latest.pt").unlink()
    Path("latest.pt").symlink_to("checkpoints/step-2.pt")
    assert not unchanged(record)


def test_a_file_that_is_read_in_another_thread_is_noticed():
    with watching() as reading:
        thread = threading.Thread(target=lambda: Path("settings.json").read_text())
        thread.start()
        thread.join()
    assert list(reading.record()["files"]) == [str(Path("settings.json").absolute())]


def fork():
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)


def counts_up():
    settings = Path("settings.json").read_text()
    Path("settings.json").write_text(f"{settings} ")


@pytest.mark.parametrize(
    ("do", "word"),
    [
        (lambda: subprocess.run(["true"]), "true"),
        (lambda: os.system("true"), "true"),
        (lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0), "/bin/true"),
        (fork, "process"),
        (lambda: sqlite3.connect("weights.db").close(), "weights.db"),
        (lambda: __import__("socket").socket().connect(("127.0.0.1", 1)), "127.0.0.1"),
        (lambda: __import__("urllib.request").request.urlopen("http://127.0.0.1:1/x"), "127.0.0.1"),
        (lambda: ctypes.CDLL(str(Path("weights.npy").absolute())), "weights.npy"),
        (counts_up, "read and written"),
    ],
)  # fmt: skip
def test_what_cannot_be_known_is_never_unchanged(do, word):
    with watching() as reading, contextlib.suppress(OSError):
        do()
    record = reading.record()
    assert any(word in reason for reason in record["unknown"]), record["unknown"]
    assert not unchanged(record)


def test_what_a_block_writes_and_what_libraries_do_for_themselves_does_not_count():
    with watching() as reading:
        Path("scratch.txt").write_text("one")
        Path("scratch.txt").read_text()
        if not os.path.exists("cache.pt"):
            torch.save({}, "cache.pt")
        os.makedirs("made", exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            save_file({"x": torch.ones(1)}, f"{folder}/x.safetensors")
            assert os.listdir(folder) == ["x.safetensors"] and os.path.isdir(folder)
            assert os.path.getsize(f"{folder}/x.safetensors")
            load_file(f"{folder}/x.safetensors")
        os.environ["SET_HERE"] = "1"
        shutil.which("python")
        Path("/proc/self/status").read_text()
        numpy.ones(1)
    record = reading.record()
    assert unchanged(record), record
    assert record["environment"].keys() <= {"PATH", "TMPDIR", "TEMP", "TMP"} and not record["unknown"]
    Path("scratch.txt").write_text("two")
    assert unchanged(record), record
    os.environ.pop("SET_HERE")


def test_the_process_is_as_before_after_the_block():
    import safetensors
    import safetensors.torch

    before = (os.stat, type(os.environ).__getitem__, safetensors.safe_open, safetensors.torch.safe_open, safe_open)
    supported = [set(each) for each in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks)]
    with pytest.raises(ValueError, match="on purpose"), watching():
        assert os.stat in os.supports_follow_symlinks
        raise ValueError("on purpose")
    after = (os.stat, type(os.environ).__getitem__, safetensors.safe_open, safetensors.torch.safe_open, safe_open)
    assert after == before
    assert supported == [set(each) for each in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks)]


def test_nested_blocks_note_each_their_own():
    with watching() as outer:
        Path("settings.json").read_text()
        with watching() as inner:
            Path("weights.npy").read_bytes()
            load_file("weights.safetensors")
    names = [{Path(file).name for file in reading.record()["files"]} for reading in (outer, inner)]
    assert names == [{"settings.json", "weights.npy", "weights.safetensors"}, {"weights.npy", "weights.safetensors"}]


MODEL = """
import json, os, yaml
from pathlib import Path
import torch
from parts import Part

HERE = Path(__file__).parent

def make():
    settings = json.loads((HERE / "settings.json").read_text())
    from late import scale
    return Part(settings["width"])
"""
PARTS = "from torch import nn\nclass Part(nn.Linear):\n    def __init__(self, width): super().__init__(width, 1)\n"


def test_a_factory_reads_its_sources_and_its_files(here, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    sources = {"model.py": MODEL, "parts.py": PARTS, "late.py": "scale = 1", "settings.json": '{"width": 3}'}
    for name, text in sources.items():
        (folder / name).write_text(text)
    with watching() as reading:
        make_module(f"{folder}/model.py:make", 0)
    record = reading.record()
    assert set(record["files"]) == {str(folder / name) for name in sources}
    assert {"torch", "yaml"} <= set(record["packages"])
    assert not record["folders"] and not record["unknown"] and not record["absent"]
    assert unchanged(record)
    (folder / "parts.py").write_text(PARTS + "\n")
    assert not unchanged(record)


def test_sources_are_those_of_no_installed_package():
    assert own_sources({"torch", "json", "autotune.model.reading", "autotune.backends.eager", "not_there"}) == {}
    assert set(own_sources({__name__})) == {str(Path(__file__).resolve())}
    assert is_third_party("torch") and not is_third_party("json") and not is_third_party("autotune.errors")


def test_a_record_is_checked_without_torch(here):
    with watching() as reading:
        torch.load("weights.pt")
    Path("record.json").write_text(json.dumps(reading.record()))
    code = (
        "import json, sys\nfrom autotune.model.reading import unchanged\n"
        "assert unchanged(json.load(open('record.json')))\nassert not {'torch', 'numpy'} & set(sys.modules)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(root)})


def test_importing_an_installed_package_reads_nothing_that_counts():
    """In a fresh process: everything that the import of a large package opens or looks up is covered by versions."""
    code = (
        "import json\nfrom autotune.model.reading import watching\n"
        "with watching() as reading:\n    import onnxruntime, torch, scipy.stats, sqlalchemy\n"
        "print(json.dumps(reading.record()))"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True
    )
    record = json.loads(ran.stdout)
    assert unchanged(record), record
    assert {"torch", "scipy"} <= set(record["packages"])
    assert not any(record[part] for part in ("folders", "present", "absent", "environment", "unknown")), record
