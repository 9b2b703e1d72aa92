"""The study of a model file on the command line, without a study file: its inputs are given, or read from the file."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from autotune.errors import ModelError, RequestError
from autotune.model import model_file
from autotune.model.file_kind import DeclaredInput, ModelFile
from autotune.model.inputs import DISTRIBUTIONS, DTYPES
from autotune.study.file import InputEntry, ModelEntry, StudyFile, complete, completed
from autotune.study.values import PARAMETER
from autotune.study.yaml_document import YamlDocument

FORM = "NAME=SHAPE:DTYPE:VALUES, of which only the shape is required, such as 1x3x224x224 or ids=1x128:int64:0..30522"
LARGEST_SIZE = 2**31
_SHAPE = re.compile(r"[0-9]{1,10}(x[0-9]{1,10})*")
_RANGE = re.compile(r"(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})")


def is_model_file(path: Path) -> bool:
    """Return whether a path given instead of a study file names a model: by its suffix, or as a SavedModel's folder."""
    return path.suffix.lower() in model_file.SUFFIXES or model_file.is_saved_model(path)


def read_model_study(path: Path, inputs: Sequence[str] = ()) -> StudyFile:
    """Return the study of a model file: named as the file, at the first size of its first input.

    ``inputs`` are texts that :func:`parse_input` reads, in the order of a call unless they have names. Raises
    RequestError or ModelError if the file is no model, or inputs are wrong or missing.
    """
    file = model_file.read(path)
    entries = _placed([parse_input(text) for text in inputs], file)
    whole = completed(entries, file.inputs)
    _refuse_missing(whole, file)
    batch = next((size for entry in whole for size in (entry.shape or ())[:1] if isinstance(size, int)), 1)
    study = StudyFile(
        name=_name(path), model=ModelEntry(file=path.name), inputs=tuple(_batched(entry, batch) for entry in whole),
        batch=(batch,),
    )  # fmt: skip
    complete(study, path, YamlDocument(data={}, lines={}), f"model file {path}")
    return study


def parse_input(text: str) -> InputEntry:
    """Read ``NAME=SHAPE:DTYPE:VALUES``, of which only the shape is required; raises RequestError.

    The shape is sizes with ``x`` between. The values are a distribution of study files, or ``LOW..HIGH`` for integers
    from LOW up to HIGH, which is excluded. An integer input whose name contains ``mask`` is a mask by default.
    """
    name, named, rest = text.rpartition("=")
    shape, *further = rest.split(":")
    if named and not PARAMETER.fullmatch(name):
        raise _refused(text, f"the name {name!r}")
    if not _SHAPE.fullmatch(shape) or not all(0 < int(size) < LARGEST_SIZE for size in shape.split("x")):
        raise _refused(text, f"the shape {shape!r}")
    if len(further) > 2:
        raise _refused(text, f"{len(further) + 1} parts")
    dtype, values = (*further, "", "")[:2]
    if further and dtype not in DTYPES:
        raise _refused(text, f"the dtype {dtype!r}", f"one of {', '.join(DTYPES)}")
    low = high = distribution = None
    if between := _RANGE.fullmatch(values):
        low, high = float(between[1]), float(between[2])
    elif values in DISTRIBUTIONS:
        distribution = values
    elif len(further) == 2:
        raise _refused(text, f"the values {values!r}", f"LOW..HIGH, or one of {', '.join(DISTRIBUTIONS)}")
    return InputEntry(
        name=name or None, shape=tuple(int(size) for size in shape.split("x")), dtype=dtype or None,
        distribution=distribution, low=low, high=high,
    )  # fmt: skip


def _placed(entries: "Sequence[InputEntry]", file: ModelFile) -> "tuple[InputEntry, ...] | None":
    """Name the entries without a name by their position, and add what the file says of inputs that are not given."""
    declared = [own.name for own in file.inputs]
    if len(entries) > len(declared):
        raise _unfitting(file, f"{len(entries)} inputs")
    named = [entry.model_copy(update={"name": entry.name or declared[at]}) for at, entry in enumerate(entries)]
    names = [entry.name for entry in named]
    if wrong := [str(name) for name in names if name not in declared or names.count(name) > 1]:
        raise _unfitting(file, f"{wrong[0]}{' twice' if wrong[0] in declared else ''}")
    given = dict(zip(names, named, strict=True))
    order = [own.name for own in file.inputs if own.name in given or own.required]
    return tuple(_masked(given.get(name) or InputEntry(name=name), file.inputs) for name in order)


def _masked(entry: InputEntry, declared: Sequence[DeclaredInput]) -> InputEntry:
    """Let integers without a range be a mask if that is what their name says."""
    dtype = entry.dtype or next((own.dtype for own in declared if own.name == entry.name), None) or ""
    open_ = "int" in dtype and entry.distribution is None and entry.high is None
    return entry.model_copy(update={"distribution": "mask"}) if open_ and "mask" in str(entry.name) else entry


def _batched(entry: InputEntry, batch: int) -> InputEntry:
    """Write ``batch`` for the first size if it is the batch; a mask keeps its last size."""
    shape = entry.shape or ()
    first = shape[:1] == (batch,) and not (entry.distribution == "mask" and len(shape) == 1)
    return entry.model_copy(update={"shape": ("batch", *shape[1:])}) if first else entry


def _refuse_missing(entries: "Sequence[InputEntry]", file: ModelFile) -> None:
    """Raise RequestError if a shape or the range of integers is not known, with the command that gives it."""
    lacking = [entry for entry in entries if entry.shape is None or _lacks_range(entry)]
    if lacking:
        what = [f"no {'shape' if entry.shape is None else 'range'} of {entry.name}" for entry in lacking]
        options = " ".join(f"--inputs {_proposed(entry)}" for entry in lacking)
        raise RequestError(
            f"the inputs of {file.path} are not known",
            found=", ".join(what),
            expected=f"--inputs {FORM}",
            run=f"autotune tune {shlex.quote(str(file.path))} {options}",
        )


def _lacks_range(entry: InputEntry) -> bool:
    return "int" in (entry.dtype or "") and entry.distribution in (None, "integers") and entry.high is None


def _proposed(entry: InputEntry) -> str:
    shape = "SHAPE" if entry.shape is None else "x".join(map(str, entry.shape))
    return f"{entry.name}={shape}" + (f":{entry.dtype}:LOW..HIGH" if _lacks_range(entry) else "")


def _unfitting(file: ModelFile, found: str) -> RequestError:
    takes = ", ".join(f"{own.name}{'' if own.required else ' (optional)'}" for own in file.inputs)
    return RequestError(
        f"--inputs does not fit {file.path}", found=found, expected=f"the inputs of its forward: {takes}"
    )


def _refused(text: str, found: str, expected: str = FORM) -> RequestError:
    return RequestError(f"cannot read --inputs {text!r}", found=found, expected=expected)


def _name(path: Path) -> str:
    """Return the name of the study of a file: its own, in the letters that names have."""
    name = re.sub(r"[._-]*[^a-z0-9._-]+[._-]*|[._-]{2,}", "-", path.stem.lower()).strip("._-")[:100].rstrip("._-")
    if not name:
        raise ModelError(
            f"the model file {path} gives a study no name", found=path.name, expected="a name with letters or digits"
        )
    return name
