"""A finished study of the toy model, for tests that only need that there is one: the fixture ``finished_study``."""

from pathlib import Path

from autotune.database.store import Store
from autotune.model.inputs import InputSpec
from autotune.runtime import discovery
from autotune.study.request import StudyRequest
from autotune.study.study import run_study

REQUEST = StudyRequest(
    name="toy", batch=2, device=discovery.cpu(), factory=f"{Path(__file__).parent}/toy.py:make",
    inputs=(InputSpec(name="input", shape=("batch", 16)),), backends=("eager", "torchscript"), trials=4, budget_s=60.0,
)  # fmt: skip
DATABASE = "autotune.db"


def finish(folder: Path) -> None:
    """Run the study in a folder that gets its database and its artifacts."""
    folder.mkdir()
    with Store.open(str(folder / DATABASE), create=True) as store:
        assert run_study(REQUEST, store).plan is not None
