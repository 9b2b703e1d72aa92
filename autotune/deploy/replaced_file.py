"""The file that takes the place of a TorchScript file, written in one step, and the way back: replace, restore."""

import contextlib
import hashlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autotune import registry
from autotune.database.files import sync_folder
from autotune.deploy.drop_in import DIGEST, Original, compose, origin_of
from autotune.deploy.recheck import Example
from autotune.errors import ArtifactError, RequestError, WorkError
from autotune.measure.statistics import median, paired_test
from autotune.scratch import ScratchFolder

if TYPE_CHECKING:
    from autotune.database.store import Store
    from autotune.records.plan import Plan

KEPT = ".orig"
"""The suffix of the original beside a file that takes its place."""

PROOF = Path(__file__).with_name("drop_in_proof.py")
PROOF_S = 600.0
"""The time limit of the comparison in a fresh process."""

SURE = 0.05
"""The largest p-value of the pairs at which the new file is certainly faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacedFile:
    """The result for a file: ``written`` is ``None`` if nothing is faster than the original, which then stays.

    ``original_ms`` and ``ms`` are the medians of a call in paired rounds of one fresh process with torch alone;
    ``plan`` is the plan in the file, ``kept`` the copy of the original, if it was replaced.
    """

    written: Path | None
    kept: Path | None
    plan: "Plan"
    original_ms: float
    ms: float

    def __str__(self) -> str:
        if self.written is None:
            return f"nothing was written: the best file takes {self.ms:.3f} ms, the original {self.original_ms:.3f} ms"
        kept = f"; the original is {self.kept}" if self.kept else ""
        speedup = self.original_ms / self.ms
        return f"wrote {self.written}: {self.original_ms:.3f} ms → {self.ms:.3f} ms, {speedup:.2f}×{kept}"


def refuse_early(original: Original, out: Path) -> None:
    """Refuse what would fail after the search: a folder that cannot be written, or a kept original of another file."""
    kept = out.with_name(out.name + KEPT)
    if out.is_dir():
        raise RequestError(f"the file {out} cannot be written", found="a folder", expected="the name of a file")
    if _is_replaced(original, out) and kept.exists() and kept.read_bytes() != original.content:
        raise RequestError(
            f"the original is kept as {kept}", found="another file of that name",
            expected="no such file, or the same bytes", run=f"the same after moving {kept} away",
        )  # fmt: skip
    with _unfinished(out):
        pass


def replace(original: Original, out: Path, plan: "Plan", store: "Store") -> ReplacedFile:
    """Write the plan of a serving format as a file like the original, if it is faster in a fresh process.

    The file appears in one step; if it takes the original's place, that is kept beside it first, byte for byte. Raises
    ModelError if no file can be like the original, WorkError if the new one is not, or cannot be written.
    """
    if plan.artifact is None:
        raise ArtifactError(f"the plan of {plan.name} has no artifact", run="autotune tune, to build it again")
    mark = {
        "plan": plan.uid, "configuration": plan.configuration.as_dict(), "device_class": plan.device.device_class,
        DIGEST: hashlib.sha256(original.content).hexdigest(),
    }  # fmt: skip
    with (
        store.artifacts.verified(plan.artifact) as folder, ScratchFolder("served") as served,
        _unfinished(out) as unfinished,
    ):  # fmt: skip
        example = Example.of(folder)
        registry.write_served(plan.configuration, folder, served, {"plan": plan.uid})
        content = compose(original, served / "model.pt", example.inputs, mark, plan.device.kind)
        with _writing(out):
            unfinished.write_bytes(content)
        original_ms, ms, is_faster = _proved(original, unfinished, example, plan)
        result = ReplacedFile(written=None, kept=None, plan=plan, original_ms=original_ms, ms=ms)
        if not is_faster:
            return result
        kept = _kept(original, out) if _is_replaced(original, out) else None
        with _writing(out):
            if out.exists():
                shutil.copymode(out, unfinished)
            else:
                unfinished.chmod(0o666 & ~_umask())
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, out)
            sync_folder(out.resolve().parent)
    return ReplacedFile(written=out, kept=kept, plan=plan, original_ms=original_ms, ms=ms)


def restore(path: Path) -> None:
    """Bring the original of a file back, in one step.

    Raises RequestError if autotune did not write the file, ArtifactError if the original is not beside it.
    """
    try:
        origin = origin_of(path.read_bytes())
    except OSError as error:
        raise RequestError(
            f"no file {path}", found=error.strerror or str(error), expected="a file that autotune.optimize_file wrote"
        ) from error
    if origin is None:
        raise RequestError(
            f"nothing to restore for {path}", found="a file that autotune did not write, such as the original itself",
            expected="a file that autotune.optimize_file wrote",
        )  # fmt: skip
    kept = path.with_name(path.name + KEPT)
    try:
        sha256 = hashlib.sha256(kept.read_bytes()).hexdigest()
    except OSError as error:
        raise ArtifactError(
            f"the original of {path} is not beside it", found=f"{kept}: {error.strerror or error}",
            expected=f"the file of SHA-256 {str(origin.get(DIGEST))[:12]}…",
        ) from error  # fmt: skip
    if sha256 != origin.get(DIGEST):
        raise ArtifactError(
            f"{kept} is not the original of {path}", found=f"SHA-256 {sha256[:12]}…",
            expected=f"{str(origin.get(DIGEST))[:12]}…, which {path} was made from",
        )  # fmt: skip
    with _writing(path):
        os.replace(kept, path)
        sync_folder(path.resolve().parent)


def _is_replaced(original: Original, out: Path) -> bool:
    return out.exists() and out.samefile(original.path)


def _kept(original: Original, out: Path) -> Path:
    """Keep the original beside the file that will take its place."""
    kept = out.with_name(out.name + KEPT)
    if not kept.exists():
        with _unfinished(kept) as copy, _writing(kept):
            shutil.copy2(original.path, copy)
            with copy.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(copy, kept)
            sync_folder(kept.resolve().parent)
    return kept


def _proved(original: Original, new: Path, example: Example, plan: "Plan") -> tuple[float, float, bool]:
    """Compare the files in a fresh process; returns the medians in ms, and whether the new one is certainly faster."""
    import torch

    with ScratchFolder("drop-in") as scratch:
        given, taken = scratch / "example.pt", scratch / "answers.pt"
        torch.save(dict(example.inputs), given)
        command = [sys.executable, "-I", PROOF, original.path, new, given, taken, plan.device.torch_name]
        try:
            ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=PROOF_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise _not_alike(original.path, f"no answer of a fresh process within {PROOF_S:g} s") from error
        if ran.returncode != 0:
            tail = "\n    ".join(ran.stderr.strip().splitlines()[-8:])
            raise _not_alike(original.path, f"a fresh process ended with code {ran.returncode}\n    {tail}")
        found = torch.load(taken)
    verdict = example.answered_by(original.module).verdict(plan.objective, found["answer"])
    if verdict.failure is not None:
        raise _not_alike(original.path, verdict.failure.detail)
    if not found["state"]:
        raise _not_alike(original.path, "another state_dict")
    if not found["others"]:
        raise _not_alike(original.path, "another answer to twice the batch")
    before, after = zip(*found["rounds"], strict=True)
    ratios = [new_ms / old_ms for old_ms, new_ms in found["rounds"]]
    is_faster = median(ratios) < 1 and paired_test(list(map(math.log, ratios))) < SURE
    return median(before), median(after), is_faster


def _not_alike(path: Path, found: str) -> WorkError:
    return WorkError(
        f"the new file is not like {path}, which stays as it is", found=found, expected="the original's behaviour",
        run="autotune export, which writes the plan as a file of its own",
    )  # fmt: skip


@contextlib.contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """Give a file beside ``out`` to write into, which is gone afterwards unless it was moved."""
    with _writing(out):
        handle, name = tempfile.mkstemp(dir=out.resolve().parent, prefix=f".{out.name}-", suffix=".unfinished")
        os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WorkError(
            f"the file {out} cannot be written; no file has changed", found=error.strerror or str(error),
            expected="a folder that can be written, with room for twice the model", run="the same with another out=",
        ) from error  # fmt: skip


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
