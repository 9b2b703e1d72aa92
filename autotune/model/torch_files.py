"""The kinds of archives that torch writes: TorchScript and exported programs, told by their content.

They are described without torch and without unpickling anything.
"""

import ast
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from autotune.errors import ArtifactError, ModelError
from autotune.model.file_kind import EXPECTED, FACTORY, TORCH, DeclaredInput, FileKind

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

LARGEST_TEXT_BYTES = 1 << 28
_OF_TENSORS = re.compile(
    r"(collections|torch|torch\._utils|torch\._tensor|torch\.nn\.parameter|_codecs)\b(?!\.nn\.modules)"
)


def module_of_program(program: "ExportedProgram") -> "torch.nn.Module":
    """Return the module that a user of an exported program calls; it checks what the export has assumed."""
    module = program.module()
    for part in module.modules():
        part.training = False  # the mode is in the graph, and the module refuses eval()
    return module


class TorchArchive(FileKind, Protocol):
    """One kind of archive, recognised by its content."""

    def is_of(self, archive: zipfile.ZipFile) -> bool:
        """Return whether an archive is of this kind."""
        ...

    def inputs(self, archive: zipfile.ZipFile) -> tuple[DeclaredInput, ...]:
        """Return the inputs that the file declares, in the order of a call."""
        ...


class TorchScript:
    """A file of ``torch.jit.save``. It names the parameters of its forward, and not their shapes."""

    name, model_format = "TorchScript", TORCH

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

    name, model_format = "exported program", TORCH

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


KINDS: tuple[TorchArchive, ...] = (TorchScript(), ExportedFile())

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


def other_archive(archive: zipfile.ZipFile) -> tuple[str, str]:
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
