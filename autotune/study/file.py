"""Study files, which a user writes to have a model tuned.

Only ``name``, ``model`` and ``inputs`` are required. An entry that cannot be understood is refused with the line, the
key, the value in the file and the values that are accepted. Reading a file never begins any work.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic_core import ErrorDetails

from autotune.errors import ModelError, RequestError, StudyFileError
from autotune.model import model_file
from autotune.model.factory import absolute
from autotune.model.file_kind import DeclaredInput
from autotune.model.inputs import DISTRIBUTIONS, DTYPES, InputSpec
from autotune.records.objective import OBJECTIVES, Metric, Objective
from autotune.study.request import DEFAULT_BUDGET_S, DEFAULT_TRIALS, PRECISIONS, accepted_formats
from autotune.study.values import (
    AUTO_BATCHES,
    DEVICE,
    NAME,
    PARAMETER,
    Callable,
    Finite,
    Positive,
    SignalLimit,
    Text,
    all_or_names,
    batches,
    budget_seconds,
    distinct,
    limits_by_output,
    matches,
    one_of,
    parse_duration,
    size_or_batch,
)
from autotune.study.yaml_document import Place, YamlDocument, read_yaml

__all__ = ["StudyFile", "parse_duration", "parse_study", "read_study"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelEntry(_Entry):
    """The origin of the model: a callable that makes it, or a file that holds it."""

    factory: Callable | None = None
    file: Text | None = None


class InputEntry(_Entry):
    """One input, by the name of the forward's parameter; see :class:`autotune.model.inputs.InputSpec`.

    A name, shape and dtype that are left out are those that the model file declares at this position, or by the name.
    """

    name: Annotated[str, matches(PARAMETER, "the name of a parameter of the model's forward")] | None = None
    shape: tuple[Annotated[int | Literal["batch"], BeforeValidator(size_or_batch)], ...] | None = None
    dtype: Annotated[str, one_of(DTYPES)] | None = None
    distribution: Annotated[str, one_of(DISTRIBUTIONS)] | None = None
    low: Finite | None = None
    high: Finite | None = None
    file: Text | None = None
    key: Text | None = None


class MetricEntry(_Entry):
    """A metric of the user's own with its bound."""

    function: Callable
    at_most: Finite | None = None
    at_least: Finite | None = None


class ConstraintsEntry(_Entry):
    """The limits of every candidate; ``signal_error`` by output name, with ``default`` for all others."""

    signal_error: Annotated[dict[Text, SignalLimit], BeforeValidator(limits_by_output)] = Field(default_factory=dict)
    integer_agreement: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.99
    metrics: tuple[MetricEntry, ...] = ()


class SpaceEntry(_Entry):
    """The backends and precisions that take part; ``None`` means all."""

    backends: Annotated[tuple[Text, ...] | None, BeforeValidator(all_or_names)] = None
    precision: Annotated[tuple[Annotated[str, one_of(PRECISIONS)], ...], AfterValidator(distinct)] | None = None


class SearchEntry(_Entry):
    """The limits of a search (distinct builds, seconds of active search), and the seed of everything random.

    Without ``tune_kernels``, builds get the tuned kernels that the database has already. Without ``warm_start``, the
    search gets no hints from other studies of the database.
    """

    trials: Positive = DEFAULT_TRIALS
    budget: Annotated[float, BeforeValidator(budget_seconds)] = DEFAULT_BUDGET_S
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    tune_kernels: bool = True
    warm_start: bool = True


class StudyFile(_Entry):
    """A whole study file; ``source`` is the file it was read from, and paths in it are relative to its folder."""

    name: Annotated[
        str, matches(NAME, "a name of lower-case letters and digits, with single . _ - between, such as bert-base")
    ]
    model: ModelEntry
    inputs: Annotated[tuple[InputEntry, ...], Field(min_length=1)] | None = None
    batch: Annotated[tuple[Positive, ...], BeforeValidator(batches), AfterValidator(distinct)] = (1,)
    device: Annotated[str, matches(DEVICE, "auto, cpu, cuda or cuda:N")] = "auto"
    objective: Annotated[str, one_of(OBJECTIVES)] = OBJECTIVES[0]
    constraints: ConstraintsEntry = ConstraintsEntry()
    serve_as: Annotated[str, one_of(accepted_formats)] = "any"
    space: SpaceEntry = SpaceEntry()
    search: SearchEntry = SearchEntry()
    _source: Path = PrivateAttr(default=Path("study.yaml"))
    _declared: tuple[DeclaredInput, ...] = PrivateAttr(default=())

    @property
    def source(self) -> Path:
        """The file this study was read from."""
        return self._source

    @property
    def sweeps(self) -> bool:
        """True if batches are doubled until throughput is saturated."""
        return self.batch == AUTO_BATCHES

    @property
    def folder(self) -> Path:
        """The folder that relative paths start from."""
        return self._source.parent

    @property
    def factory(self) -> str:
        """The source of the model with an absolute path: a factory, or ``file:`` with the path of a model file."""
        if self.model.file is not None:
            return model_file.source_of(self.folder / self.model.file)
        assert self.model.factory is not None  # a file without either is refused
        return absolute(self.model.factory, self.folder)

    @property
    def model_format(self) -> str:
        """The format of the model: of its file, or torch's."""
        return model_file.format_of(self.factory)

    def input_specs(self) -> tuple[InputSpec, ...]:
        """Return the inputs as records, with absolute paths of files, and with what the model file declares."""
        entries = completed(self.inputs, self._declared)
        return tuple(_input_spec(entry, self.folder) for entry in entries)

    def objective_record(self) -> Objective:
        """Return the objective with its constraints."""
        return _objective(self.objective, self.constraints, self.folder)


def read_study(path: Path | str) -> StudyFile:
    """Read a study file; StudyFileError names the line, the key, the value in the file and the accepted values."""
    path = Path(path)
    subject = f"study file {path}"
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise StudyFileError(subject, found=f"bytes that are not text: {error.reason}", expected="UTF-8") from error
    except OSError as error:
        raise StudyFileError(
            subject, found=error.strerror or str(error), expected="a study file, such as studies/resnet50/study.yaml"
        ) from error
    return parse_study(text, path)


def parse_study(text: str, source: Path) -> StudyFile:
    """Read the text of a study file that stands, or would stand, at ``source``."""
    subject = f"study file {source}"
    document = read_yaml(text, subject)
    try:
        study = StudyFile.model_validate(document.data)
    except ValidationError as error:
        raise _explained(error.errors(include_url=False), document, subject) from None
    complete(study, source, document, subject)
    return study


def complete(study: StudyFile, source: Path, document: YamlDocument, subject: str) -> None:
    """Give a study its place and what its model file declares; raises StudyFileError if its parts do not fit."""
    study._source = source
    place = f"{subject}, line {document.line_of(('model',))}: model"
    if (study.model.factory is None) == (study.model.file is None):
        found = "neither factory nor file" if study.model.file is None else "factory and file"
        raise StudyFileError(place, found=found, expected="factory: path.py:callable, or file: model.pt")
    if study.model.file is not None:
        try:
            study._declared = model_file.read(study.folder / study.model.file).inputs
        except ModelError as error:
            asked = f"{place}.file: {error.asked}"
            raise StudyFileError(asked, found=error.found, expected=error.expected, run=error.run) from error
    _check_records(study, document, subject)


def completed(entries: Sequence[InputEntry] | None, declared: Sequence[DeclaredInput]) -> tuple[InputEntry, ...]:
    """Return the inputs with the parts that a model file declares; without any, all that it requires.

    A first size that the file leaves open is the batch, unless inputs name different ones there; a shape with another
    open size has to be given.
    """
    if entries is None:
        entries = [InputEntry(name=own.name) for own in declared if own.required]
    by_name = {own.name: own for own in declared}
    open_first = {size for own in declared for size in (own.shape or ())[:1] if isinstance(size, str)}
    whole = []
    for position, entry in enumerate(entries):
        name = entry.name or (declared[position].name if position < len(declared) else None)
        own = by_name.get(name or "")
        shape = entry.shape if entry.shape is not None or own is None else _declared_shape(own, open_first)
        dtype = entry.dtype or (own.dtype if own is not None else None) or "float32"
        whole.append(entry.model_copy(update={"name": name, "shape": shape, "dtype": dtype}))
    return tuple(whole)


def _declared_shape(own: DeclaredInput, open_first: set[str]) -> tuple[int | Literal["batch"], ...] | None:
    """Return the shape that a file declares; ``open_first`` are the names of first sizes that its inputs leave open."""
    shape = own.shape
    if shape is None or any(isinstance(size, str) for size in shape[1:]):
        return None
    if isinstance(next(iter(shape), 0), str) and len(open_first) > 1:
        return None
    return tuple("batch" if isinstance(size, str) else size for size in shape)


def read_constraints(name: str, constraints: object, folder: Path) -> Objective:
    """Return the objective ``name`` with constraints in the form of a study file; paths in them are below ``folder``.

    Raises RequestError with the key, its value and the values that are accepted.
    """
    try:
        entry = ConstraintsEntry.model_validate(_tuples(constraints))
        return _objective(name, entry, folder)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        actual, expected = _actual_and_expected({**first, "loc": ("constraints", *first["loc"])})
        raise RequestError(f"constraints: {_key(first['loc'])}", found=actual, expected=expected) from None
    except ValueError as error:
        raise RequestError("constraints", found=str(error), expected="bounds that can be kept") from error


def _tuples(value: object) -> object:
    """Return plain data with tuples for lists, as :func:`read_yaml` returns it."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _objective(name: str, entry: ConstraintsEntry, folder: Path) -> Objective:
    limits = dict(entry.signal_error)
    return Objective(
        name=name,
        signal_error=limits.pop("default", Objective().signal_error),
        signal_error_by_output=tuple(sorted(limits.items())),
        integer_agreement=entry.integer_agreement,
        metrics=tuple(
            Metric(function=absolute(metric.function, folder), at_most=metric.at_most, at_least=metric.at_least)
            for metric in entry.metrics
        ),
    )


def _check_records(study: StudyFile, document: YamlDocument, subject: str) -> None:
    """Make every record once, so that keys that do not fit together are refused here, with their line."""
    declared = {own.name: own for own in study._declared}
    entries = completed(study.inputs, study._declared)
    if not entries:
        place = f"{subject}, line {document.line_of(('inputs',))}: inputs"
        raise StudyFileError(place, found="no key 'inputs'", expected=f"inputs: {_FORMS['inputs']}")
    names = [entry.name for entry in entries]
    for index, entry in enumerate(entries):
        place = f"{subject}, line {document.line_of(('inputs', index))}: inputs[{index}]"
        for key in ("name", "shape"):
            if getattr(entry, key) is None:
                named = f" of input {entry.name}" if key == "shape" else ""
                raise StudyFileError(place, found=f"no key {key!r}{named}", expected=f"{key}: {_INPUT_FORMS[key]}")
        if declared and entry.name not in declared:
            raise StudyFileError(place, found=f"the name {entry.name!r}", expected=f"one of {', '.join(declared)}")
        if entry.name in names[:index]:
            raise StudyFileError(place, found=f"the name {entry.name!r} a second time", expected="each input once")
        try:
            _input_spec(entry, study.folder)
        except ValueError as error:
            raise StudyFileError(place, found=str(error), expected=INPUT_FORM) from error
    missing = [own.name for own in study._declared if own.required and own.name not in names]
    if missing:
        place = f"{subject}, line {document.line_of(('inputs',))}: inputs"
        expected = f"all inputs that the model file requires: {', '.join(declared)}"
        raise StudyFileError(place, found=f"no input {', '.join(missing)}", expected=expected)
    if study.sweeps and study.objective != "throughput":
        place = f"{subject}, line {document.line_of(('batch',))}: batch"
        raise StudyFileError(place, found=f"auto for {study.objective}", expected="batches, or objective: throughput")
    try:
        study.objective_record()
    except ValueError as error:
        place = f"{subject}, line {document.line_of(('constraints',))}: constraints"
        raise StudyFileError(place, found=str(error), expected="a bound that can be kept") from error


def _input_spec(entry: InputEntry, folder: Path) -> InputSpec:
    file = None if entry.file is None else str((folder / entry.file).resolve())
    return InputSpec(**{**entry.model_dump(), "file": file})


def _explained(errors: list[ErrorDetails], document: YamlDocument, subject: str) -> StudyFileError:
    """Describe the first error in full, and name the lines of the others."""
    ordered = sorted(errors, key=lambda error: document.line_of(error["loc"]))
    first = ordered[0]
    actual, expected = _actual_and_expected(first)
    place = f"{subject}, line {document.line_of(first['loc'])}: {_key(first['loc'], document)}"
    others = sorted({document.line_of(error["loc"]) for error in ordered[1:]})
    more = f"; more is wrong on line{'s' * (len(others) > 1)} {', '.join(map(str, others))}" if others else ""
    return StudyFileError(place, found=actual, expected=expected + more)


def _key(place: Place, document: YamlDocument | None = None) -> str:
    """Return a place in the usual notation, such as ``inputs[0].shape``."""
    while document and place and place not in document.lines and place[:-1] in document.lines:
        place = place[:-1]
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.lstrip(".") or "the whole file"


def _actual_and_expected(error: ErrorDetails) -> tuple[str, str]:
    """Return in words the value in the file, and the values that are accepted there."""
    place = error["loc"]
    keys = _accepted_keys(place[:-1])
    if error["type"] == "missing":
        return f"no key {str(place[-1])!r}", f"{place[-1]}: {_FORMS.get(str(place[-1]), '...')}"
    if error["type"] == "extra_forbidden":
        return f"unknown key {str(place[-1])!r}", f"one of {', '.join(keys)}{_close(str(place[-1]), keys)}"
    value = error["input"]
    actual = "nothing" if value is None else repr(list(value) if isinstance(value, tuple) else value)
    actual = actual if len(actual) <= 80 else f"{actual[:77]}..."
    expected = error["msg"].removeprefix("Input should be ").replace("tuple", "list").replace("dictionary", "mapping")
    if error["type"] == "one_of":
        expected += _close(str(value), tuple(error["ctx"]["accepted"].split(", ")))
    if error["type"] == "model_type":
        expected = f"a mapping with the keys {', '.join(_accepted_keys(place))}"
    return actual, expected


def _accepted_keys(place: Place) -> tuple[str, ...]:
    entry = _ENTRIES.get(tuple(part for part in place if isinstance(part, str)))
    return tuple(entry.model_fields) if entry else ()


def _close(word: str, accepted: tuple[str, ...]) -> str:
    match = difflib.get_close_matches(word, accepted, n=1)
    return f"; did you mean {match[0]}?" if match else ""


_ENTRIES: dict[tuple[str, ...], type[_Entry]] = {
    (): StudyFile,
    ("model",): ModelEntry,
    ("inputs",): InputEntry,
    ("constraints",): ConstraintsEntry,
    ("constraints", "metrics"): MetricEntry,
    ("space",): SpaceEntry,
    ("search",): SearchEntry,
}
_FORMS = {
    "name": "resnet50",
    "model": "{factory: ../models.py:resnet50}, or {file: resnet50.pt}",
    "factory": "path.py:callable or package.module:callable",
    "inputs": "[{name: pixel_values, shape: [batch, 3, 224, 224], dtype: float32}]",
}
_INPUT_FORMS = {"name": "the parameter of the model's forward", "shape": "[batch, 3, 224, 224]"}
INPUT_FORM = "such as {name: ids, shape: [batch, 128], dtype: int64, low: 0, high: 30522}"
