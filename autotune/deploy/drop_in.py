"""TorchScript files that take the place of their original: compose, Original, origin_of.

The new file *is* the original, with the same parameters, buffers and methods, whose ``forward`` first asks whether a
call is one that the plan was made for: the shapes, dtypes and device of the plan, the weights as they were saved, no
gradients. If it is, the tuned graph answers, and otherwise the original's own code. So other batch sizes, ``to``,
``state_dict``, new weights and training behave as before; such calls are no faster.

Weights that are changed through ``.data``, or attributes that are set to another tensor, are not noticed.

The weights of the tuned graph are a list of the module that is no part of its ``state_dict``, and follows the first
call to its device. A child module of the tuned file, such as one that packs weights as it is loaded, becomes a child of
the new file's. A file is as large as the original and these weights together.
"""

import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from autotune.deploy.drop_in_guard import FITS, ForwardSignature, guard, refuse_unlike, refused
from autotune.errors import ModelError, RequestError
from autotune.model import model_file, torch_files, torchscript

if TYPE_CHECKING:
    import torch

OWN, WEIGHTS, CHILD = "_autotune_original", "_autotune_weights", "_autotune_child_"
"""The names that the new file adds, beside the question: the original's forward, and the weights of the tuned graph;
and the beginning of the names of the tuned file's children."""

MARK, DIGEST = "autotune.json", "original_sha256"
"""The extra file in which a written file says what it is, its plan among others, and the digest of its original."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """A TorchScript file: its bytes, and its module on the CPU, in eval mode."""

    path: Path
    content: bytes
    module: "torch.nn.Module"

    @classmethod
    def read(cls, path: Path) -> "Original":
        """Read a file whose place another file can take.

        Raises RequestError if it cannot be read or is one that took another's place, ModelError for all others.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RequestError(
                f"no model file {path}", found=error.strerror or str(error), expected="a file of torch.jit.save"
            ) from error
        if origin_of(content) is not None:
            raise RequestError(
                f"{path} is optimised already", found=f"a file that took its original's place ({MARK} in it)",
                expected="a file of torch.jit.save", run=f"autotune restore {path}, which brings the original back",
            )  # fmt: skip
        kind = model_file.read(path).kind
        if not isinstance(kind, torch_files.TorchScript):
            raise refused(path, f"a file of kind {kind.name}", "a file of torch.jit.save")
        with quiet():
            module = torchscript.load(content, what=f"the model file {path}")
        original = cls(path=path, content=content, module=module)
        refuse_unlike(module, path)
        return original


@contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's warning that TorchScript is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def origin_of(content: bytes) -> Mapping[str, Any] | None:
    """Return what a file that took its original's place says of itself; ``None`` for any other file."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            name = next((name for name in archive.namelist() if name.endswith(f"/extra/{MARK}")), None)
            said = {} if name is None else dict(json.loads(archive.read(name)))
    except (zipfile.BadZipFile, ValueError, TypeError):
        return None
    return said if DIGEST in said else None  # an exported file has a mark too


def compose(
    original: Original, tuned: Path, example: "Mapping[str, torch.Tensor]", mark: Mapping[str, object],
    device_kind: str,
) -> bytes:  # fmt: skip
    """Return the new file: the original, whose calls like the ``example`` are answered by the ``tuned`` file's graph.

    ``example`` has the tensors of one call by the names of forward's arguments, ``tuned`` takes them in this order and
    returns a tuple of flat tensors. ``mark`` is what :func:`origin_of` returns. Raises ModelError if the original's
    forward takes or returns what a TorchScript file cannot dispatch on.
    """
    import torch
    from torch.jit._recursive import wrap_cpp_module

    signature = ForwardSignature.of(original.module, original.path, example)
    with quiet(), torch.no_grad():
        answer = original.module(**{name: tensor.clone() for name, tensor in example.items()})
        graph = _TunedGraph.lifted(tuned)
        module = torch.jit.load(io.BytesIO(_renamed(original)), map_location="cpu")  # type: ignore[no-untyped-call]
        inner = module._c
        inner._register_attribute(WEIGHTS, torch._C.ListType.ofTensors(), graph.weights)
        for name, child in graph.children.items():
            inner._register_attribute(CHILD + name, child._c._type(), child._c)
        module = wrap_cpp_module(inner)  # type: ignore[no-untyped-call]
        question = guard(original.module, original.path, signature, example, device_kind)
        forward = _forward(signature, list(example), answer, graph)
        module.define(question)
        _define(module, forward, {"tuned": graph.function})
        written = io.BytesIO()
        torch.jit.save(module, written, _extra_files={MARK: json.dumps(mark)})
    return written.getvalue()


def _renamed(original: Original) -> bytes:
    """Return the original's file with its forward under another name.

    A class of TorchScript cannot lose a method once it is loaded, but its code is text in the archive.
    """
    qualified: str = cast("Any", original.module)._c.qualified_name
    place, _, name = qualified.rpartition(".")
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(original.content)) as archive, zipfile.ZipFile(written, "w") as copy:
        root = archive.namelist()[0].split("/")[0]
        source = f"{root}/code/{place.replace('.', '/')}.py"
        for entry in archive.infolist():
            if entry.filename.endswith(".debug_pkl"):  # places of the original's source, which would be wrong now
                continue
            content = archive.read(entry)
            if entry.filename == source:
                content = _without_forward(content.decode(), name, original.path).encode()
            copy.writestr(entry.filename, content)
    return written.getvalue()


def _without_forward(code: str, name: str, path: Path) -> str:
    """Return the code of a module's classes in which forward of one class has another name."""
    parts = re.split(r"(?m)^(?=class )", code)
    for index, part in enumerate(parts):
        if re.match(rf"class {re.escape(name)}\(", part):
            parts[index], count = re.subn(r"(?m)^  def forward\(", f"  def {OWN}(", part)
            if count == 1:
                return "".join(parts)
    raise refused(path, f"no forward in the code of {name}", "a module with a method forward")


@dataclass(frozen=True, slots=True, kw_only=True)
class _TunedGraph:
    """The graph of a frozen file as a function: it takes its weights behind its inputs, then what it reads of children.

    ``reads`` are the attributes of children that it reads, as child and attribute.
    """

    function: Callable[..., Any]
    weights: "list[torch.Tensor]"
    children: "Mapping[str, torch.jit.ScriptModule]"
    reads: tuple[tuple[str, str], ...]

    @classmethod
    def lifted(cls, tuned: Path) -> "_TunedGraph":
        import torch

        module = torch.jit.load(str(tuned), map_location="cpu")  # type: ignore[no-untyped-call]
        graph = module._c._get_method("forward").graph.copy()
        torch._C._jit_pass_inline(graph)
        weights: list[torch.Tensor] = []
        for node in _nodes(graph):
            is_tensor = node.kind() == "prim::Constant" and node.output().type().kind() == "TensorType"
            if is_tensor and node.hasAttribute("value"):
                weights.append(node.t("value"))
                # The type of a constant has its sizes, strides and device.
                node.output().setType(torch._C.TensorType.get())
                _become_input(graph, node, f"weight{len(weights)}")
        reads: list[tuple[str, str]] = []
        own = next(iter(graph.inputs()))
        for child in [use.user for use in own.uses()]:
            for read in [use.user for use in child.output().uses()]:
                reads.append((child.s("name"), read.s("name")))
                _become_input(graph, read, f"read{len(reads)}")
            child.destroy()
        graph.eraseInput(0)  # the module itself
        return cls(
            # A name without "__torch__" would not be saved with the module that calls it.
            function=torch._C._create_function_from_graph("__torch__.autotune.tuned", graph),
            weights=weights, children={name: getattr(module, name) for name, _ in reads}, reads=tuple(reads),
        )  # fmt: skip


def _become_input(graph: Any, node: Any, name: str) -> None:
    """Let a graph take the output of a node as an input behind the others."""
    given = graph.addInput(name)
    given.setType(node.output().type())
    node.output().replaceAllUsesWith(given)
    node.destroy()


def _nodes(block: Any) -> Iterator[Any]:
    for node in list(block.nodes()):
        for inner in node.blocks():
            yield from _nodes(inner)
        yield node


def _forward(signature: ForwardSignature, inputs: Sequence[str], answer: object, graph: _TunedGraph) -> str:
    names = ", ".join(signature.arguments)
    taken = [f"torch.jit._unwrap_optional({name})" if name in signature.optional else name for name in inputs]
    weights = [f"weights[{number}]" for number in range(len(graph.weights))]
    given = ", ".join([*taken, *weights, *(f"self.{CHILD}{child}.{name}" for child, name in graph.reads)])
    literal, _ = _literal(answer, 0)
    return "\n".join([
        f"def forward(self, {', '.join(signature.arguments.values())}) -> {signature.returns}:",
        f"    if self.{FITS}({names}):",
        f"        weights = self.{WEIGHTS}",
        f"        if len(weights) > 0 and weights[0].device != {taken[0]}.device:",
        f"            weights = [weight.to({taken[0]}.device) for weight in weights]",
        f"            self.{WEIGHTS} = weights",
        f"        answer = tuned({given})",
        f"        return {literal}",
        f"    return self.{OWN}({names})",
        "",
    ])  # fmt: skip


def _literal(answer: object, count: int) -> tuple[str, int]:
    """Return the source of an answer of the original's form, made of the flat tensors, and the number of these."""
    import torch

    if isinstance(answer, torch.Tensor):
        return f"answer[{count}]", count + 1
    if isinstance(answer, Mapping):
        parts = []
        for key, value in answer.items():
            literal, count = _literal(value, count)
            parts.append(f"{json.dumps(key)}: {literal}")
        return f"{{{', '.join(parts)}}}", count
    if isinstance(answer, tuple | list) and type(answer) in (tuple, list):
        items = []
        for value in answer:
            literal, count = _literal(value, count)
            items.append(literal)
        if isinstance(answer, list):
            return f"[{', '.join(items)}]", count
        return f"({', '.join(items)},)", count
    raise ModelError(
        "no file can take the place of this model", found=f"an answer with {type(answer).__name__}",
        expected="tensors in tuples, lists and dicts",
        run="autotune export, which writes the plan as a file of its own",
    )  # fmt: skip


def _define(module: "torch.jit.ScriptModule", source: str, functions: Mapping[str, Callable[..., Any]]) -> None:
    """Add a method to a module whose source calls functions by these names."""
    import torch

    module._c._define(module._concrete_type, source, {"torch": torch, **functions}.get)
