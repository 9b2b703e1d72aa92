"""The kernel problems of models, captured on a CPU for an H200, and their file: ModelProblems."""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.errors import RequestError
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.study.file import StudyFile
from autotune.study.model_problems import problems_of

BACKEND = "native"
H200 = Device(kind="cuda", name="NVIDIA H200", uuid="none", capability=(9, 0), cores=16, memory_bytes=141 << 30)
PRECISIONS = ("fp16", "bf16")

PROBLEMS = Path("studies/kernels/model-problems.json.gz")
"""The committed problems of five models, in a checkout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProblems:
    """The kernel problems of a model at one batch in both half precisions, each with its number in a call."""

    name: str
    batch: int
    weights: Mapping[GemmProblem, float]

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        problems = [{**problem.as_dict(), "weight": weight} for problem, weight in self.weights.items()]
        return {"name": self.name, "batch": self.batch, "problems": problems}


def capture_problems(study: StudyFile, batch: int) -> ModelProblems:
    """Capture a study's model at one batch, and find the kernel problems of its graph with every fusion."""
    counts = problems_of(study, batch, BACKEND, H200, PRECISIONS)
    return ModelProblems(name=study.name, batch=batch, weights={problem: float(n) for problem, n in counts.items()})


def write_problems(path: Path, models: Iterable[ModelProblems]) -> None:
    """Write the problems of models to a file of compressed JSON, always the same bytes for the same problems."""
    text = json.dumps([model.as_dict() for model in models], separators=(",", ":"))
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def read_problems(path: Path) -> Sequence[ModelProblems]:
    """Read the output of :func:`write_problems`; raises RequestError for any other file."""
    try:
        entries = json.loads(gzip.decompress(path.read_bytes()))
        return [_model(entry["name"], entry["batch"], entry["problems"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"kernel problems in {path}", found=str(error), expected="a file that --write wrote",
            run="the same command in the root of a checkout, or with --problems FILE",
        ) from error  # fmt: skip


def _model(name: str, batch: int, problems: Iterable[Mapping[str, object]]) -> ModelProblems:
    weights = {}
    for entry in problems:
        problem = GemmProblem.from_dict({key: value for key, value in entry.items() if key != "weight"})
        weights[problem] = float(str(entry["weight"]))
    return ModelProblems(name=name, batch=batch, weights=weights)
