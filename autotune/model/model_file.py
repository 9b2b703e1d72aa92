"""Models from files: the kinds of files that autotune takes, told by their content, and what each says of its inputs.

A file is described without torch and without unpickling anything, so that a wrong one is refused before any work. A
further kind of file is one more class in :data:`KINDS`.
"""

import ast
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from autotune.errors import ArtifactError, ModelError

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

PREFIX = "file:"
"""The beginning of a model's source that names a file; any other source names a callable."""

EXPECTED = "a file of torch.jit.save (TorchScript) or torch.export.save (.pt2)"
FACTORY = "a factory, model: {factory: path.py:callable}, that makes the module and loads its weights"
NOT_YET = {".onnx": "an ONNX model", ".pdmodel": "a Paddle model", ".tflite": "a TensorFlow Lite model"}
"""Model files of kinds that cannot be tuned, by the ends of their names."""

SUFFIXES = (".pt", ".pth", ".pt2", ".ts", *NOT_YET)
"""The ends of the names of model files, by which a command tells them from study files."""
LARGEST_TEXT_BYTES = 1 << 28
_OF_TENSORS = re.compile(
    r"(collections|torch|torch\._utils|torch\._tensor|torch\.nn\.parameter|_codecs)\b(?!\.nn\.modules)"
)
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, zipfile.BadZipFile)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredInput:
    """One input as a file describes it; shape and dtype are ``None`` if the file does not say them."""

    name: str
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    required: bool = True


class FileKind(Protocol):
    """One kind of file: recognised by its content, it describes its inputs and gives the module of its user."""

    name: str

    def is_of(self, archive: zipfile.ZipFile) -> bool:
        """Return whether an archive is of this kind."""
        ...

    def inputs(self, archive: zipfile.ZipFile) -> tuple[DeclaredInput, ...]:
        """Return the inputs that the file declares, in the order of a call."""
        ...

    def module(self, path: Path, device: str) -> "torch.nn.Module":
        """Return the module that the file's user calls, ready for inference on a device; raises ModelError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A model file: its kind and its inputs."""

    path: Path
    kind: FileKind
    inputs: tuple[DeclaredInput, ...]


def is_file(source: str) -> bool:
    """Return whether the source of a model is a file."""
    return source.startswith(PREFIX)


def path_of(source: str) -> Path:
    """Return the path in the source of a model that is a file."""
    return Path(source.removeprefix(PREFIX))


def source_of(path: Path) -> str:
    """Return the source of a model that is in a file."""
    return f"{PREFIX}{path.resolve()}"


def read(path: Path) -> ModelFile:
    """Describe a model file; raises ModelError, which says what the file is instead, if it is no such file."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no file"
        raise ModelError(f"the model file {path}", found=found, expected=EXPECTED)
    try:
        if not zipfile.is_zipfile(path):
            raise ModelError(
                f"the model file {path} cannot be taken", found=_no_archive(path), expected=EXPECTED, run=FACTORY
            )
        with zipfile.ZipFile(path) as archive:
            for kind in KINDS:
                if kind.is_of(archive):
                    return ModelFile(path=path, kind=kind, inputs=kind.inputs(archive))
            found, run = _other(archive)
    except _DAMAGED as error:
        found = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ModelError(f"the model file {path} cannot be read", found=found, expected=EXPECTED) from error
    raise ModelError(f"the model file {path} cannot be taken", found=found, expected=EXPECTED, run=run)


def module_of(path: Path, device: str = "cpu") -> "torch.nn.Module":
    """Return the module of a model file, as its user runs it, on a device; raises ModelError."""
    return read(path).kind.module(path, device)


def module_of_program(program: "ExportedProgram") -> "torch.nn.Module":
    """Return the module that a user of an exported program calls; it checks what the export has assumed."""
    module = program.module()
    for part in module.modules():
        part.training = False  # the mode is in the graph, and the module refuses eval()
    return module


class TorchScript:
    """A file of ``torch.jit.save``. It names the parameters of its forward, and not their shapes."""

    name = "TorchScript"

    def is_of(self, archive: zipfile.ZipFile) -> bool:
        """Return whether there is code of TorchScript, and its constants."""
        names = list(_entries(archive))
        return "constants.pkl" in names and any(re.fullmatch(r"code/.*\.py", name) for name in names)

    def inputs(self, archive: zipfile.ZipFile) -> tuple[DeclaredInput, ...]:
        """Read the header of the forward of the outermost class, which the file's first object belongs to."""
        globals_ = (text for text in _globals(_content(archive, "data.pkl")) if text.startswith("__torch__"))
        module, _, own = next(globals_, "").rpartition(".")
        code = _content(archive, f"code/{module.replace('.', '/')}.py").decode()
        body = re.split(rf"^class {re.escape(own)}\b", code, maxsplit=1, flags=re.MULTILINE)[-1]
        body = re.split(r"^(?:class|def) ", body, maxsplit=1, flags=re.MULTILINE)[0]
        header = re.search(r"^  def forward\((.*?)\) -> ", body, flags=re.MULTILINE | re.DOTALL)
        if header is None:
            raise ModelError(
                "the TorchScript file has no forward that can be tuned",
                found=", ".join(re.findall(r"^  def (\w+)\(", body, flags=re.MULTILINE)) or "no method",
                expected="a module with a method forward",
            )
        return tuple(_declared(header[1]))

    def module(self, path: Path, device: str) -> "torch.nn.Module":
        """Return the scripted module in eval mode."""
        from autotune.model import torchscript

        return torchscript.load(path, device, f"the TorchScript file {path.name}")


class ExportedFile:
    """A file of ``torch.export.save``, which names its inputs with their shapes and dtypes."""

    name = "exported program"

    def is_of(self, archive: zipfile.ZipFile) -> bool:
        """Return whether there is exactly one model in an archive of the format pt2."""
        names = list(_entries(archive))
        return "archive_format" in names and sum(map(_is_graph, names)) == 1

    def inputs(self, archive: zipfile.ZipFile) -> tuple[DeclaredInput, ...]:
        """Read the inputs from the description of the graph; a size that may vary is that of the example."""
        (name,) = filter(_is_graph, _entries(archive))
        graph = json.loads(_content(archive, name))["graph_module"]
        return tuple(self._inputs(graph["signature"]["input_specs"], graph["graph"]["tensor_values"]))

    def module(self, path: Path, device: str) -> "torch.nn.Module":
        """Return the program's module, which checks what its export has assumed."""
        from autotune.model.precision import on_device
        from autotune.model.program import load_program

        try:
            return module_of_program(on_device(load_program(path), device))
        except ArtifactError as error:
            raise ModelError(error.asked, found=error.found, expected=error.expected) from error
        except Exception as error:  # torch reads by several libraries, which raise errors of their own
            found = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            raise ModelError(
                f"the exported program {path.name} cannot be read", found=found, expected=EXPECTED
            ) from error

    def _inputs(self, specs: Sequence[Any], values: Any) -> Iterator[DeclaredInput]:
        for spec in specs:
            if not spec.keys() & {"user_input", "constant_input"}:
                continue
            argument = spec.get("user_input", {}).get("arg", {})
            if "as_tensor" not in argument:
                raise ModelError(
                    "the exported program takes an argument that is no tensor",
                    found=json.dumps(spec.get("constant_input", argument))[:80],
                    expected="a program that was exported without that argument, which then has its default",
                )
            name = argument["as_tensor"]["name"]
            sizes = [size.get("as_int", _hint(size)) for size in values[name]["sizes"]]
            shape = None if None in sizes else tuple(sizes)
            yield DeclaredInput(name=name, shape=shape, dtype=_DTYPES.get(values[name]["dtype"]))


KINDS: tuple[FileKind, ...] = (TorchScript(), ExportedFile())

_DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64", 12: "bool",
    13: "bfloat16",
}  # fmt: skip
"""The numbers of dtypes in a file (torch 2.13, ``torch/_export/serde/schema.py``)."""


def _declared(header: str) -> Iterator[DeclaredInput]:
    """Read the parameters of a forward from its header, without the module itself."""
    function = ast.parse(f"def forward({header}): pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    positional = [*function.args.posonlyargs, *function.args.args]
    defaults = [None] * (len(positional) - len(function.args.defaults)) + list(function.args.defaults)
    for argument, default in list(zip(positional, defaults, strict=True))[1:]:
        yield DeclaredInput(name=argument.arg, required=default is None)
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        yield DeclaredInput(name=argument.arg, required=default is None)


def _hint(size: Any) -> int | None:
    """Return the size of the example that a program was exported with."""
    hint = size.get("as_expr", {}).get("hint") or {}
    return hint.get("as_int") if isinstance(hint, dict) else None


def _is_graph(name: str) -> bool:
    return re.fullmatch(r"models/[^/]+\.json", name) is not None


def _entries(archive: zipfile.ZipFile) -> Iterator[str]:
    """Yield the names of an archive's entries below its only folder."""
    return (name.partition("/")[2] for name in archive.namelist())


def _content(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return an entry's content by its name below the archive's folder."""
    entry = next(info for info in archive.infolist() if info.filename.partition("/")[2] == name)
    if entry.file_size > LARGEST_TEXT_BYTES:
        raise ValueError(f"{name} has {entry.file_size} bytes")
    return archive.read(entry)


def _globals(pickle: bytes) -> Iterator[str]:
    """Yield the names of the classes and functions that a pickle refers to, without running it."""
    texts: list[str] = []
    for code, argument, _ in pickletools.genops(pickle):
        if code.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
        elif code.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif isinstance(argument, str):
            texts.append(argument)


def _other(archive: zipfile.ZipFile) -> tuple[str, str]:
    """Return what an archive is that is of no kind, and what to do instead."""
    names = list(_entries(archive))
    if any(name.startswith("data/aotinductor/") or name.endswith((".wrapper.so", ".wrapper.cpp")) for name in names):
        return "a package of AOTInductor, which is compiled already", "the program it was compiled from, as a .pt2 file"
    if "serialized_exported_program.json" in archive.namelist():
        return "an exported program of torch before 2.8", "torch.export.save again, by torch 2.8 or newer"
    if "archive_format" in names:
        return f"an archive with {sum(map(_is_graph, names))} programs", "torch.export.save of a single program"
    if "data.pkl" in names:
        return _pickled(_content(archive, "data.pkl")), FACTORY
    return f"an archive with {', '.join(archive.namelist()[:3]) or 'nothing'}", ""


def _pickled(pickle: bytes) -> str:
    """Return what a file of ``torch.save`` holds."""
    code = [name for name in _globals(pickle) if not _OF_TENSORS.match(name)]
    if code:
        return f"a pickled object, whose code ({code[0]}) autotune does not run"
    return "tensors without a computation, such as a state_dict"


def _no_archive(path: Path) -> str:
    if kind := NOT_YET.get(path.suffix.lower()):
        return f"{kind}, which autotune does not take yet"
    with path.open("rb") as file:
        begin = file.read(2)
    if begin[:1] == b"\x80":
        return "a pickle, which autotune does not run"
    return "an empty file" if not begin else "a file that is no archive"
