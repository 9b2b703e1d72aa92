"""Plans as files that a server loads by itself: write_served."""

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from autotune import registry
from autotune.database.files import sync_folder
from autotune.errors import ArtifactError, RequestError, WorkError
from autotune.records.plan import Plan

if TYPE_CHECKING:
    from autotune.database.store import Store

ABOUT = "plan.json"
"""The file beside the model: the plan, and the model's inputs and outputs in their order."""


def write_served(plan: Plan, store: "Store", serving_format: str, out: Path) -> Path:
    """Write a plan as a new folder of files in a format, which appears as a whole or not at all.

    The model takes the plan's flat inputs and returns its flat outputs, in the order of ``plan.json``, which lies
    beside it; the plan's uid is in the model file too. Raises RequestError if ``out`` exists or a server of this format
    would not run the plan as it was measured, ArtifactError if the artifact is missing or damaged, WorkError if the
    folder cannot be written.
    """
    from autotune.runtime.artifact import read_record

    if not registry.is_served(plan.configuration, serving_format, plan.device):
        raise RequestError(
            f"the plan of {plan.name} as {serving_format}",
            found=f"{plan.configuration}, which a server of {serving_format} files does not run as it was measured",
            expected=f"a plan that was searched for with serve_as: {serving_format}",
            run=f"autotune tune --serve-as {serving_format} with its study file or model file",
        )
    if os.path.lexists(out):
        raise RequestError("an export is a new folder", found=f"{out} exists", expected="a name that is free")
    if plan.artifact is None:
        raise ArtifactError(f"the plan of {plan.name} has no artifact", run="autotune tune, to build it again")
    with store.artifacts.verified(plan.artifact) as folder:
        try:
            unfinished = Path(tempfile.mkdtemp(dir=out.resolve().parent, prefix=f".{out.name}-"))
            try:
                registry.write_served(plan.configuration, folder, unfinished, {"plan": plan.uid, "name": plan.name})
                record = read_record(folder)
                about = {
                    "format": serving_format, "plan": plan.as_dict(), "inputs": list(map(asdict, record.inputs)),
                    "outputs": list(map(asdict, record.outputs)),
                }  # fmt: skip
                (unfinished / ABOUT).write_text(json.dumps(about, indent=1, sort_keys=True))
                unfinished.chmod(0o755)
                for path in unfinished.iterdir():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                sync_folder(unfinished)
                os.rename(unfinished, out)
                sync_folder(out.resolve().parent)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        except OSError as error:
            raise WorkError(
                f"the export {out} cannot be written", found=error.strerror or str(error),
                expected="a folder that can be written, with room for the model",
                run="the same command with another --out",
            ) from error  # fmt: skip
    return out
