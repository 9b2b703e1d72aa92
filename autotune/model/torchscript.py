"""TorchScript modules: read from a file, copied, and described by what their own types say."""

import inspect
import io
import keyword
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from autotune.errors import ModelError

if TYPE_CHECKING:
    import torch

_MISSING_OPERATOR = re.compile(r"Unknown builtin op: ([\w:]+)|Unknown type name '(__torch__\.torch\.classes[\w.]*)'")
_OF_LANGUAGE = re.compile(r"__\w+__")


def is_scripted(module: object) -> bool:
    """Return whether a module is compiled TorchScript."""
    import torch

    return isinstance(module, torch.jit.ScriptModule)


def load(source: Path | bytes, device: str = "cpu", what: str = "the TorchScript model") -> "torch.nn.Module":
    """Read a module that ``torch.jit.save`` wrote, from a file or its content, with its tensors on ``device``.

    It is in eval mode. Raises ModelError if torch cannot read it, such as for want of an operator.
    """
    import torch

    stream = source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
    with stream:
        try:
            module: torch.nn.Module = torch.jit.load(stream, map_location=device)  # type: ignore[no-untyped-call]
        except Exception as error:  # torch reads by C++, which raises errors of several kinds
            raise _unreadable(what, str(error)) from error
    return evaluated(module)


def content(module: "torch.nn.Module") -> bytes:
    """Return the content of the file that ``torch.jit.save`` would write; raises ModelError if it cannot be saved."""
    import torch

    written = io.BytesIO()
    try:
        torch.jit.save(module, written)
    except Exception as error:  # modules that torch has optimised or lowered cannot be saved
        raise ModelError(
            "the TorchScript module cannot be saved, so no worker can get it",
            found=f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}",
            expected="a module that torch.jit.save writes",
            run="the module before torch.jit.optimize_for_inference",
        ) from error
    return written.getvalue()


def copied(module: "torch.nn.Module") -> "torch.nn.Module":
    """Return a copy on the CPU that shares nothing with the module, not even its graphs, in eval mode.

    ``copy.deepcopy`` would share the graphs, which torch's converter rewrites in place.
    """
    return load(content(module))


def evaluated(module: "torch.nn.Module") -> "torch.nn.Module":
    """Put a module into eval mode; a frozen one has no mode."""
    if getattr(module, "training", False):
        module.eval()
    return module


def notes(module: "torch.nn.Module") -> list[str]:
    """Return what the user of a plan of this module should know: the methods that a plan does not have."""
    names = cast("Any", module)._c._method_names()
    others = sorted(name for name in names if name != "forward" and not _OF_LANGUAGE.fullmatch(name))
    return [f"a plan answers forward alone; the model also has {', '.join(others)}"] if others else []


def signature(forward: object) -> inspect.Signature | None:
    """Return the signature of a compiled method, by its schema; ``None`` if it is not one."""
    import torch

    if not isinstance(forward, torch.ScriptMethod):
        return None
    parameters = [_parameter(argument) for argument in cast("Any", forward).schema.arguments[1:]]
    return inspect.Signature(parameters)


def attributes(part: "torch.nn.Module") -> Iterator[tuple[str, object]]:
    """Yield the attributes of a compiled part, without its parameters, buffers and submodules.

    They are not in its ``__dict__``; a forward may count in them.
    """
    inner = cast("Any", part)
    tensors = {name for name, _ in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))}
    for name in inner._concrete_type.get_attributes():
        if name not in tensors and name != "training" and inner._c.hasattr(name):
            yield name, inner._c.getattr(name)


def _parameter(argument: Any) -> inspect.Parameter:
    """Describe one argument; a name that no Python code can write is made one that is given by position alone."""
    name = str(argument.name)
    default = argument.default_value if argument.has_default_value() else inspect.Parameter.empty
    if argument.kwarg_only:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
    if name.isidentifier() and not keyword.iskeyword(name):
        return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
    name = "argument_" + re.sub(r"\W", "_", name)
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY, default=default)


def _unreadable(what: str, text: str) -> ModelError:
    if missing := _MISSING_OPERATOR.search(text):
        return ModelError(
            f"{what} needs an operator or a class that is not registered here",
            found=missing[1] or missing[2],
            expected="operators of torch itself",
            run="autotune with a factory (path.py:callable) that imports their library and returns the eager module",
        )
    reason = next((line for line in text.splitlines() if line.strip()), "no reason given")
    return ModelError(f"{what} cannot be read", found=reason[:300], expected="a file that torch.jit.save wrote")
