"""The manifest of a bundle: written, and read with suspicion: Manifest, manifest_document, read_manifest."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autotune import __version__
from autotune.database.files import names_below, open_plain
from autotune.database.manifest import ArtifactFile, digest_of
from autotune.errors import ArtifactError, RequestError, SignatureError
from autotune.records.plan import Plan

if TYPE_CHECKING:
    from autotune.deploy.signing import PublicKeys
    from autotune.runtime.artifact import ArtifactRecord

SCHEMA = 1
MANIFEST, SIGNATURE, ARTIFACT = "manifest.json", "manifest.sig", "artifact"

MOST_BYTES = 64 << 20
"""The largest manifest that is read."""

AGAIN = "autotune export, on the machine with the tuning database"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of ``manifest.json``; ``signature`` says what is known of the signature beside it.

    That is ``none``, ``not checked`` or ``verified``.
    """

    plan: Plan
    files: tuple[ArtifactFile, ...]
    signature: str = "none"


def manifest_document(
    plan: Plan, record: "ArtifactRecord", files: Sequence[ArtifactFile], kernels: Sequence[Mapping[str, object]]
) -> dict[str, object]:
    """Return the content of a manifest; ``kernels`` are those that the artifact calls, as its backend describes them.

    The plan holds the workload, the device, the toolchain, the configuration and the evidence.
    """
    return {
        "schema": SCHEMA, "autotune": __version__, "plan": plan.as_dict(), "files": [file.as_dict() for file in files],
        "inputs": list(map(asdict, record.inputs)), "outputs": list(map(asdict, record.outputs)),
        "signature": record.signature, "kernels": list(kernels), "licences": _licences(plan),
    }  # fmt: skip


def read_manifest(folder: Path, keys: "PublicKeys | None" = None) -> Manifest:
    """Read the manifest of a bundle, whose files must be those that it lists, and those of its plan's artifact.

    With ``keys`` its signature is verified before anything else is parsed: SignatureError if it is missing or not
    theirs. The content of the other files is not read. Raises RequestError if there is no bundle, ArtifactError if it
    is damaged or of another version.
    """
    text = _text(folder)
    signature = _signature(folder, text, keys)
    try:
        data = json.loads(text)
        if type(data["schema"]) is not int or data["schema"] != SCHEMA:
            raise _of_another_version(folder, data["schema"])
        files = tuple(ArtifactFile(**entry) for entry in data["files"])
        manifest = Manifest(plan=Plan.from_dict(data["plan"]), files=files, signature=signature)
        digest = digest_of(files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(folder, f"{MANIFEST}: {type(error).__name__}: {error}") from error
    if digest != manifest.plan.artifact:
        raise damaged(folder, f"{MANIFEST} lists other files than those of its plan's artifact")
    _require_files(folder, {file.name for file in files})
    return manifest


def damaged(folder: Path, found: str) -> ArtifactError:
    """Return the error for a bundle that is not as it was written."""
    return ArtifactError(f"the bundle {folder} is damaged", found=found, run=AGAIN)


def _text(folder: Path) -> bytes:
    try:
        with open_plain(folder / MANIFEST) as stream:
            size = os.fstat(stream.fileno()).st_size
            text = stream.read(MOST_BYTES)
    except OSError as error:
        raise RequestError(
            f"no bundle at {folder}", found=f"no {MANIFEST}: {error.strerror or error}",
            expected="a folder that autotune export wrote", run=AGAIN,
        ) from error  # fmt: skip
    if size > len(text):
        raise damaged(folder, f"{MANIFEST} of {size} bytes, more than the {MOST_BYTES} that are read")
    return text


def _signature(folder: Path, text: bytes, keys: "PublicKeys | None") -> str:
    """Return what is known of the signature; raises SignatureError if keys are given and none of them made it."""
    from autotune.deploy.signing import SIGNATURE_BYTES

    path, expected = folder / SIGNATURE, "a signature by one of the keys of require_signature"
    if keys is None:
        return "not checked" if os.path.lexists(path) else "none"
    try:
        with open_plain(path) as stream:
            signature = stream.read(SIGNATURE_BYTES + 1)
    except OSError as error:
        raise SignatureError(
            f"the bundle {folder} is not signed", found=f"no {SIGNATURE}: {error.strerror or error}",
            expected=expected, run="autotune export MODEL --out DIR --sign KEY_FILE",
        ) from error  # fmt: skip
    if len(signature) != SIGNATURE_BYTES or not keys.accept(text, signature):
        raise SignatureError(
            f"the signature of the bundle {folder} is not valid",
            found=f"a {SIGNATURE} that none of these keys made for this {MANIFEST}",
            expected=expected, run="the bundle again, from where it was signed",
        )  # fmt: skip
    return "verified"


def _require_files(folder: Path, listed: set[str]) -> None:
    """Raise ArtifactError unless a bundle holds exactly the files that its manifest lists, none of them a link."""
    try:
        beside = {entry.name for entry in os.scandir(folder)} - {MANIFEST, SIGNATURE, ARTIFACT}
        there = set(names_below(folder / ARTIFACT, refusal=f"the bundle {folder} is damaged"))
    except OSError as error:
        raise damaged(folder, f"{ARTIFACT}: {error.strerror or error}") from error
    if there != listed or beside:
        names = ", ".join([*sorted(beside), *sorted(there ^ listed)][:4])
        raise damaged(folder, f"files that are missing, or that {MANIFEST} does not list: {names}")


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


def _of_another_version(folder: Path, schema: object) -> ArtifactError:
    return ArtifactError(
        f"the bundle {folder} was written by another version of autotune", found=f"schema {schema}",
        expected=f"schema {SCHEMA}", run="pip install the version that wrote it (`autotune` in its manifest.json)",
    )  # fmt: skip
