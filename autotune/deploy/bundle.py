"""Bundles: a plan with its artifact as a folder, for machines without the tuning database: write_bundle, load_bundle.

::

    <bundle>/manifest.json     the plan with its evidence, inputs and outputs, licences, size and SHA-256 of the files
    <bundle>/manifest.sig      the signature of the manifest's bytes, if it was signed
    <bundle>/artifact/…        the files of the artifact, whose digest the plan names
"""

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.database.files import hashed, names_below, open_plain, sync_folder
from autotune.database.manifest import ArtifactFile
from autotune.deploy.bundle_manifest import (
    ARTIFACT,
    MANIFEST,
    SIGNATURE,
    Manifest,
    damaged,
    manifest_document,
    read_manifest,
)
from autotune.deploy.signing import PrivateKey, PublicKey, PublicKeys
from autotune.errors import ArtifactError, RequestError, WorkError
from autotune.records.plan import Plan
from autotune.scratch import ScratchFolder

if TYPE_CHECKING:
    import torch

    from autotune.database.store import Store
    from autotune.deploy.model import OptimizedModel
    from autotune.deploy.portability import Portability
    from autotune.deploy.recheck import OnMiss


log = logging.getLogger("autotune")


class _UnreadableError(Exception):
    """A file that is to be copied cannot be opened."""


def write_bundle(plan: Plan, store: "Store", out: Path, *, key: PrivateKey | None = None) -> Path:
    """Write a plan and its artifact, verified, as a new folder ``out``, which appears as a whole or not at all.

    With a ``key`` the manifest is signed. Raises RequestError if ``out`` exists or the plan runs the model's own code,
    which a bundle does not hold, ArtifactError if the artifact is missing or damaged, WorkError if the folder cannot be
    written.
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
            document = manifest_document(plan, read_record(folder), files, _kernels(plan, folder))
            content = json.dumps(document, indent=1, sort_keys=True).encode()
            _write(unfinished / MANIFEST, content)
            if key is not None:
                _write(unfinished / SIGNATURE, key.sign(content))
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


def load_bundle(
    path: Path | str,
    *,
    device: str | None = None,
    require_signature: PublicKey | Sequence[PublicKey] | None = None,
    on_miss: "OnMiss" = "error",
    model: "torch.nn.Module | None" = None,
) -> "OptimizedModel":
    """Return the plan of a bundle, loaded: it takes the arguments of the model's forward and answers in its form.

    Neither a tuning database nor the model's code is needed. ``device`` is by default the CPU for a plan of a CPU, and
    else ``auto``. Every file is copied and verified before it is read; a bundle holds compiled code, so load only what
    you trust. ``require_signature`` is an Ed25519 public key, or several: PEM text, or the path of a file with it. A
    bundle that none of them signed is refused before anything else of it is parsed, whatever ``on_miss`` is.

    ``on_miss`` is the policy for a bundle that was not made for this device class and toolchain, or is damaged.
    ``error`` raises ArtifactError; ``fallback`` warns and returns ``model`` itself as the callable. With ``recheck`` a
    plan of another device of the same kind is used if its artifact runs on this one (see :func:`portability`), answers
    its example like the model, and is faster than ``model`` here, or without that, than the baseline was there.

    Raises RequestError if there is no bundle, SignatureError if it is not signed as required, ArtifactError if it is
    damaged, of another version, or for another device class or toolchain, WorkError if there is no room for the copies.
    """
    from autotune.deploy.fallback import fall_back
    from autotune.deploy.recheck import require_policy

    require_policy(on_miss)
    keys = None if require_signature is None else PublicKeys(require_signature)
    try:
        return _loaded(Path(path), device, keys, on_miss, model)
    except ArtifactError as miss:
        if on_miss != "fallback":
            raise
        return fall_back(model, miss, f"the bundle {path}")


def _loaded(
    bundle: Path, device: str | None, keys: PublicKeys | None, on_miss: "OnMiss", model: "torch.nn.Module | None"
) -> "OptimizedModel":  # fmt: skip
    from autotune.deploy.model import open_folder
    from autotune.deploy.portability import bundle_portability
    from autotune.deploy.recheck import Example, failing

    begin = time.perf_counter()
    manifest = read_manifest(bundle, keys)
    portable = bundle_portability(manifest.plan, device)
    recheck = portable.verdict == "works" and on_miss == "recheck"
    if portable.verdict != "optimal" and not recheck:
        raise _for_another_machine(bundle, portable)
    found = time.perf_counter()
    with verified_copy(bundle, manifest) as artifact:
        fast = open_folder(replace(manifest.plan, device=portable.device), artifact)
        fast.signature = manifest.signature
        opened = time.perf_counter()
        fast.seconds = {"look_up": found - begin, "open": opened - found}
        if not recheck:
            return fast
        example = Example.of(artifact)
    if wrong := failing(fast, example, portable.device, model):
        fast.close()
        raise _for_another_machine(bundle, portable, f"rechecked here: {wrong}")
    log.warning("the bundle %s was tuned on another device, and was rechecked on this one", bundle)
    fast.seconds = {**fast.seconds, "recheck": time.perf_counter() - opened}
    return fast


def require_runs(bundle: Path, portable: "Portability") -> None:
    """Raise ArtifactError if the plan of a bundle does not run as it is on a device."""
    if not portable.runs:
        raise _for_another_machine(bundle, portable)


@contextmanager
def verified_copy(bundle: Path, manifest: Manifest) -> Iterator[Path]:
    """Yield a folder with copies of the artifact's files, each verified; it is deleted afterwards.

    Raises ArtifactError if a file is damaged, WorkError if there is no room for the copies.
    """
    with ScratchFolder("bundle") as scratch:
        for file in manifest.files:
            try:
                copied = _copied(bundle / ARTIFACT, file.name, scratch / ARTIFACT)
            except _UnreadableError as error:
                raise damaged(bundle, str(error)) from error
            except OSError as error:
                raise WorkError(
                    f"the bundle {bundle} is verified on a copy", found=f"{scratch}: {error.strerror or error}",
                    expected="room for its files", run="the same with TMPDIR in a larger folder",
                ) from error  # fmt: skip
            if copied != file:
                raise damaged(bundle, f"{file.name} does not match its SHA-256")
        yield scratch / ARTIFACT


def _kernels(plan: Plan, artifact: Path) -> list[Mapping[str, object]]:
    """Return the places at which an artifact calls kernels, as its backend describes them; empty if it does not."""
    from autotune import registry

    explaining = registry.explaining(plan.configuration.backend)
    sites = [] if explaining is None else explaining.explain_artifact(artifact)["sites"]
    return list(sites) if isinstance(sites, list | tuple) else []


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


def _for_another_machine(bundle: Path, portable: "Portability", *more: str) -> ArtifactError:
    return ArtifactError(
        f"the bundle {bundle} was not made for this machine",
        found="\n    ".join((*portable.reasons, *more)),
        expected="the device class and the versions that the plan was measured under",
        run="autotune tune and autotune export on a machine like this one",
    )


def _not_written(out: Path, error: OSError) -> WorkError:
    return WorkError(
        f"the bundle {out} cannot be written", found=error.strerror or str(error),
        expected="a folder that can be written, with room for the artifact", run="the same command with another --out",
    )  # fmt: skip
