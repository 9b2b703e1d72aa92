"""A file that takes the place of its original in one step, and the way back."""

import errno
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace as changed
from types import SimpleNamespace

import pytest
import torch

from autotune.backends.torchscript import BACKEND
from autotune.deploy import replaced_file
from autotune.deploy.drop_in import Original, origin_of, quiet
from autotune.deploy.replaced_file import refuse_early, replace, restore
from autotune.errors import ArtifactError, RequestError, WorkError
from autotune.testing.backend_conformance import CPU
from autotune.testing.sample_records import PLAN
from autotune.testing.toy_models import build_toy, toy_inputs

TOY = "convolutional"
INFER = "import torch\nmodel = torch.jit.load('{path}')\nwith torch.no_grad(): print(model(torch.ones({shape})))\n"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The artifact of a toy, and a store that has it; the toy's own file is slow by many steps that change nothing."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads that wait for one another on a busy host hide what is slow
    configuration = next(
        one for one in BACKEND.space(CPU, None, has_factory=False) if BACKEND.is_plain_export(one, CPU)
    )
    built = build_toy(BACKEND, CPU, TOY, tmp_path / "toy", configuration=configuration)
    ((name, tensor),) = toy_inputs(TOY, 3).items()
    fast = torch.jit.load(str(built.folder / "model.ts"))

    class Slow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fast = fast

        def forward(self, image):
            waste = torch.zeros_like(image)
            for _ in range(200):
                waste = waste + image * 0
            return self.fast(image + waste)[0]

    with quiet():
        torch.jit.save(torch.jit.trace(Slow().eval(), tensor), tmp_path / "net.pt")

    @contextmanager
    def verified(digest):
        yield built.folder

    store = SimpleNamespace(artifacts=SimpleNamespace(verified=verified))
    plan = changed(PLAN, configuration=configuration, artifact="a" * 64, device=CPU)
    return SimpleNamespace(path=tmp_path / "net.pt", store=store, plan=plan, shape=list(tensor.shape), name=name)


def infer(path, shape):
    """Run a script that knows only torch, as the file's user does."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INFER.format(path=path, shape=shape)], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return done.stdout


def test_the_file_is_replaced_its_script_stays_and_restore_brings_it_back(toy):
    before, said = toy.path.read_bytes(), infer(toy.path, toy.shape)
    os.chmod(toy.path, 0o640)
    result = replace(Original.read(toy.path), toy.path, toy.plan, toy.store)
    assert result.written == toy.path and result.ms < result.original_ms and "×" in str(result)
    assert result.kept.name == "net.pt.orig" and result.kept.read_bytes() == before
    assert toy.path.stat().st_mode & 0o777 == 0o640
    assert origin_of(toy.path.read_bytes())["plan"] == toy.plan.uid
    assert infer(toy.path, toy.shape)[:12] == said[:12]
    assert [path.name for path in sorted(toy.path.parent.glob("*net*"))] == ["net.pt", "net.pt.orig"]
    restore(toy.path)
    assert toy.path.read_bytes() == before and not result.kept.exists()
    with pytest.raises(RequestError, match="nothing to restore"):
        restore(toy.path)


def test_another_name_leaves_the_original_alone(toy, tmp_path):
    before, out = toy.path.read_bytes(), tmp_path / "fast.pt"
    result = replace(Original.read(toy.path), out, toy.plan, toy.store)
    assert result.written == out and result.kept is None and toy.path.read_bytes() == before
    with pytest.raises(ArtifactError, match="is not beside it"):
        restore(out)


def test_what_is_not_faster_or_not_like_the_original_is_not_written(toy, monkeypatch):
    before = toy.path.read_bytes()
    monkeypatch.setattr(replaced_file, "SURE", 0.0)  # nothing is certain enough
    result = replace(Original.read(toy.path), toy.path, toy.plan, toy.store)
    assert result.written is None and "nothing was written" in str(result)
    monkeypatch.setattr("autotune.deploy.recheck.SLACK", -1.0)
    with pytest.raises(WorkError, match="is not like"):
        replace(Original.read(toy.path), toy.path, toy.plan, toy.store)
    assert toy.path.read_bytes() == before and len(list(toy.path.parent.glob("*net*"))) == 1


def test_a_kept_original_of_another_file_and_a_folder_are_refused_before_the_search(toy, tmp_path):
    original = Original.read(toy.path)
    refuse_early(original, toy.path)
    (tmp_path / "net.pt.orig").write_bytes(b"another")
    with pytest.raises(RequestError, match="is kept as"):
        refuse_early(original, toy.path)
    with pytest.raises(RequestError, match="cannot be written"):
        refuse_early(original, tmp_path)
    with pytest.raises(WorkError, match="cannot be written; no file has changed"):
        refuse_early(original, tmp_path / "missing" / "net.pt")


def test_an_original_that_was_exchanged_is_not_restored(toy):
    result = replace(Original.read(toy.path), toy.path, toy.plan, toy.store)
    after = toy.path.read_bytes()
    result.kept.write_bytes(b"another")
    with pytest.raises(ArtifactError, match="is not the original"):
        restore(toy.path)
    assert toy.path.read_bytes() == after


class Killed(BaseException):
    """The end of the process."""


@pytest.mark.parametrize("step", ["net.pt.orig", "net.pt"])
def test_whenever_the_process_ends_both_names_have_whole_files(toy, step, monkeypatch):
    before, real = toy.path.read_bytes(), os.replace

    def end_at_a_step(source, target):
        if target.name == step:
            raise Killed
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(replaced_file.os, "replace", end_at_a_step)
        replace(Original.read(toy.path), toy.path, toy.plan, toy.store)
    kept = toy.path.with_name("net.pt.orig")
    assert toy.path.read_bytes() == before and (kept.read_bytes() == before if step == "net.pt" else not kept.exists())
    assert replace(Original.read(toy.path), toy.path, toy.plan, toy.store).written == toy.path


def test_a_full_disk_leaves_the_original_whole(toy, monkeypatch):
    before = toy.path.read_bytes()

    def full(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(toy.path), "write_bytes", full)
    with pytest.raises(WorkError, match="no file has changed") as refused:
        replace(Original.read(toy.path), toy.path, toy.plan, toy.store)
    assert refused.value.found == "No space left on device"
    assert toy.path.read_bytes() == before and [path.name for path in toy.path.parent.glob("*net*")] == ["net.pt"]
