"""Bundles: a plan with its artifact as a folder, for machines without the tuning database: write_bundle, load_bundle.

::

    <bundle>/manifest.json     the plan with its evidence, inputs and outputs, licences, size and SHA-256 of the files
    <bundle>/artifact/…        the files of the artifact, whose digest the plan names
"""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autotune import __version__
from autotune.database.files import hashed, names_below, open_plain, sync_folder
from autotune.database.manifest import ArtifactFile, digest_of
from autotune.errors import ArtifactError, RequestError, WorkError
from autotune.records.plan import Plan
from autotune.scratch import ScratchFolder

if TYPE_CHECKING:
    from autotune.database.store import Store
    from autotune.deploy.model import OptimizedModel
    from autotune.records.device import Device
    from autotune.runtime.artifact import ArtifactRecord

SCHEMA = 1
MANIFEST, ARTIFACT = "manifest.json", "artifact"

MOST_BYTES = 64 << 20
"""The largest manifest that is read."""

AGAIN = "autotune export, on the machine with the tuning database"


class _UnreadableError(Exception):
    """A file that is to be copied cannot be opened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of ``manifest.json``."""

    plan: Plan
    files: tuple[ArtifactFile, ...]


def write_bundle(plan: Plan, store: "Store", out: Path) -> Path:
    """Write a plan and its artifact, verified, as a new folder ``out``, which appears as a whole or not at all.

    Raises RequestError if ``out`` exists or the plan runs the model's own code, which a bundle does not hold,
    ArtifactError if the artifact is missing or damaged, WorkError if the folder cannot be written.
    """
    from autotune.model.source import holds_model_file
    from autotune.registry import serving_formats
    from autotune.runtime.artifact import read_record

    if os.path.lexists(out):
        raise RequestError("a bundle is a new folder", found=f"{out} exists", expected="a name that is free")
    if plan.artifact is None:
        raise ArtifactError(f"the plan of {plan.name} has no artifact", run="autotune tune, to build it again")
    with store.artifacts.verified(plan.artifact) as folder:
        if plan.configuration.get("form", "") == "module" and not holds_model_file(folder):
            raise RequestError(
                f"a bundle of {plan.name} without the model's code", found=f"a plan that runs it: {plan.configuration}",
                expected="a plan of a compiled format",
                run=f"autotune tune with serve_as: {' or '.join(serving_formats())}",
            )  # fmt: skip
        try:
            unfinished = Path(tempfile.mkdtemp(dir=out.resolve().parent, prefix=f".{out.name}-"))
        except OSError as error:
            raise _not_written(out, error) from error
        try:
            files = [
                _copied(folder, name, unfinished / ARTIFACT)
                for name in names_below(folder, refusal="the artifact", hard_links=True)
            ]
            document = _document(plan, read_record(folder), files)
            _write(unfinished / MANIFEST, json.dumps(document, indent=1, sort_keys=True).encode())
            unfinished.chmod(0o755)
            sync_folder(unfinished)
            os.rename(unfinished, out)
            sync_folder(out.resolve().parent)
        except _UnreadableError as error:
            run = "autotune tune STUDY, which builds it again"
            raise ArtifactError(f"Artifact {plan.artifact} is damaged", found=str(error), run=run) from error
        except OSError as error:
            raise _not_written(out, error) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return out


def load_bundle(path: Path | str, *, device: str | None = None) -> "OptimizedModel":
    """Return the plan of a bundle, loaded: it takes the arguments of the model's forward and answers in its form.

    Neither a tuning database nor the model's code is needed. ``device`` is by default the CPU for a plan of a CPU, and
    else ``auto``. Every file is copied and verified before it is read; a bundle holds compiled code, so load only what
    you trust. Raises RequestError if there is no bundle, ArtifactError if it is damaged, of a later version, or for
    another device class or toolchain, WorkError if there is no room for the copies.
    """
    from autotune.deploy.model import open_folder
    from autotune.runtime import discovery

    folder = Path(path)
    begin = time.perf_counter()
    manifest = read_manifest(folder)
    kind = "cpu" if manifest.plan.device.kind == "cpu" else "auto"
    plan = replace(manifest.plan, device=_fitting(manifest.plan, discovery.find(device or kind), folder))
    found = time.perf_counter()
    with ScratchFolder("bundle") as scratch:
        for file in manifest.files:
            try:
                copied = _copied(folder / ARTIFACT, file.name, scratch / ARTIFACT)
            except _UnreadableError as error:
                raise _damaged(folder, str(error)) from error
            except OSError as error:
                raise WorkError(
                    f"the bundle {folder} is verified on a copy", found=f"{scratch}: {error.strerror or error}",
                    expected="room for its files", run="the same with TMPDIR in a larger folder",
                ) from error  # fmt: skip
            if copied != file:
                raise _damaged(folder, f"{file.name} does not match its SHA-256")
        fast = open_folder(plan, scratch / ARTIFACT)
    fast.seconds = {"look_up": found - begin, "open": time.perf_counter() - found}
    return fast


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a bundle, whose files must be those that it lists, and those of its plan's artifact.

    The content of the files is not read. Raises RequestError if there is no bundle, ArtifactError if it is wrong.
    """
    try:
        with open_plain(folder / MANIFEST) as stream:
            text = stream.read(MOST_BYTES)
    except OSError as error:
        raise RequestError(
            f"no bundle at {folder}", found=f"no {MANIFEST}: {error.strerror or error}",
            expected="a folder that autotune export wrote", run=AGAIN,
        ) from error  # fmt: skip
    try:
        data = json.loads(text)
        if data["schema"] != SCHEMA:
            raise _of_another_version(folder, data["schema"])
        files = tuple(ArtifactFile(**entry) for entry in data["files"])
        manifest = Manifest(plan=Plan.from_dict(data["plan"]), files=files)
        digest = digest_of(files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(folder, f"{MANIFEST}: {type(error).__name__}: {error}") from error
    if digest != manifest.plan.artifact:
        raise _damaged(folder, f"{MANIFEST} lists other files than those of its plan's artifact")
    try:
        there = set(names_below(folder / ARTIFACT, refusal=f"the bundle {folder} is damaged"))
    except OSError as error:
        raise _damaged(folder, f"{ARTIFACT}: {error.strerror or error}") from error
    listed = {file.name for file in files}
    if there != listed:
        names = ", ".join(sorted(there ^ listed)[:4])
        raise _damaged(folder, f"files that are missing, or that {MANIFEST} does not list: {names}")
    return manifest


def _document(plan: Plan, record: "ArtifactRecord", files: Sequence[ArtifactFile]) -> dict[str, object]:
    return {
        "schema": SCHEMA, "autotune": __version__, "plan": plan.as_dict(), "files": [file.as_dict() for file in files],
        "inputs": list(map(asdict, record.inputs)), "outputs": list(map(asdict, record.outputs)),
        "signature": record.signature, "licences": _licences(plan),
    }  # fmt: skip


def _licences(plan: Plan) -> Mapping[str, str]:
    """Return the licences of the libraries that the plan's backend needs, as their packages declare them."""
    from importlib import metadata

    from autotune.runtime.toolchain import EVERYWHERE, ON_GPUS

    found: dict[str, str] = {}
    for entry in plan.toolchain.as_dict():
        for name in (EVERYWHERE | ON_GPUS).get(entry, ()):
            with contextlib.suppress(metadata.PackageNotFoundError):
                fields = metadata.metadata(name)
                declared = [fields[key] for key in ("License-Expression", "License") if key in fields]
                found[name] = declared[0].splitlines()[0] if declared else "not declared"
                break
    return found


def _copied(folder: Path, name: str, target: Path) -> ArtifactFile:
    """Copy a plain file of a folder, and return it as it was copied.

    Raises _UnreadableError if it cannot be opened, OSError if the copy cannot be written.
    """
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    try:
        source = open_plain(folder / name)
    except OSError as error:
        raise _UnreadableError(f"{name}: {error.strerror or error}") from error
    with source, (target / name).open("wb") as copy:
        size, sha256 = hashed(source, copy)
        copy.flush()
        os.fsync(copy.fileno())
    return ArtifactFile(name=name, size_bytes=size, sha256=sha256)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _fitting(plan: Plan, device: "Device", folder: Path) -> "Device":
    """Return the device if the plan is for its class and the toolchain here; raises ArtifactError otherwise."""
    from autotune import registry
    from autotune.runtime import toolchain

    differences = []
    if device.device_class != plan.device.device_class:
        differences.append(f"device class {plan.device.device_class}, and here is {device.device_class}")
    names = registry.backend(plan.configuration.backend).toolchain
    here, own = toolchain.current(device, names).as_dict(), plan.toolchain.as_dict()
    differences += [
        f"{name} {own.get(name, 'none')}, and here is {here.get(name, 'none')}"
        for name in sorted({*here, *own}) if here.get(name) != own.get(name)
    ]  # fmt: skip
    if differences:
        raise ArtifactError(
            f"the bundle {folder} was not made for this machine",
            found="\n    ".join(f"made for {difference}" for difference in differences),
            expected="the device class and the versions that the plan was measured under",
            run="autotune tune and autotune export on a machine like this one",
        )
    return device


def _damaged(folder: Path, found: str) -> ArtifactError:
    return ArtifactError(f"the bundle {folder} is damaged", found=found, run=AGAIN)


def _of_another_version(folder: Path, schema: object) -> ArtifactError:
    return ArtifactError(
        f"the bundle {folder} was written by another version of autotune", found=f"schema {schema}",
        expected=f"schema {SCHEMA}", run="pip install the version that wrote it (`autotune` in its manifest.json)",
    )  # fmt: skip


def _not_written(out: Path, error: OSError) -> WorkError:
    return WorkError(
        f"the bundle {out} cannot be written", found=error.strerror or str(error),
        expected="a folder that can be written, with room for the artifact", run="the same command with another --out",
    )  # fmt: skip
