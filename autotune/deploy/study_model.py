"""The model of a study file in memory, with the weights that its study uses: from_study."""

from pathlib import Path
from typing import TYPE_CHECKING

from autotune.errors import RequestError

if TYPE_CHECKING:
    import torch


def from_study(path: Path | str, batch: int | None = None) -> "tuple[torch.nn.Module, dict[str, torch.Tensor]]":
    """Return the module that a study file's factory makes under the study's seed, and one set of its example inputs.

    Both are on the CPU; the inputs are by name. ``batch`` defaults to the study's first. :func:`autotune.load` finds
    the plan of ``autotune tune`` for the file by them. Raises StudyFileError if the file is wrong, RequestError if the
    study has no such batch, ModelError if the factory returns no module.
    """
    from autotune.model import factory
    from autotune.model.inputs import generate
    from autotune.study.file import read_study

    study = read_study(path)
    if batch is not None and batch not in study.batch:
        raise RequestError(
            f"study {study.name} at batch {batch}", found=f"batch {', '.join(map(str, study.batch))}",
            expected="one of these",
        )  # fmt: skip
    size = study.batch[0] if batch is None else batch
    module = factory.make_module(study.factory, study.search.seed)
    return module, generate(study.input_specs(), size, study.search.seed, 1, "example")[0]
