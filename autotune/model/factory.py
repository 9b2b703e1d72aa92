"""Callables that a study file names, and the module that a factory makes or a model file holds."""

import contextlib
import importlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from autotune.errors import AutotuneError, ModelError
from autotune.model import model_file, torch_files
from autotune.model.own_files import described, is_installed, is_of_python
from autotune.model.own_folder import OwnPlace, load, own_folder, plain_module
from autotune.model.process_settings import settings_kept

if TYPE_CHECKING:
    import torch

RELATIVE_IMPORTS = (
    "attempted relative import with no known parent package",
    "attempted relative import beyond top-level package",
)
"""The messages of Python's import for a file that is in no package, or not in one deep enough."""

NO_COMMAND_LINE = "the parsing of a command line under if __name__ == '__main__'"


def resolve(spec: str, base: Path | None = None) -> Callable[..., Any]:
    """Find ``path.py:callable`` (relative to ``base``) or ``package.module:callable``.

    A file may import modules beside it, whatever the current folder is (see :mod:`autotune.model.own_folder`).
    Raises ModelError if the file, the module or the name is missing, or importing it fails.
    """
    place, name = _parts(spec)
    with folder_of(spec, base) as file, settings_kept(), _arguments(str(file.path) if file is not None else place):
        module = _imported(place, file)
    target = getattr(module, name, None)
    if not callable(target):
        candidates = sorted(
            key
            for key, value in vars(module).items()
            if callable(value) and not key.startswith("_") and getattr(value, "__module__", "") == module.__name__
        )
        raise ModelError(
            f"{place} has no callable {name!r}",
            found=", ".join(candidates) or "no callable of its own",
            expected="the name of a function or class in that module",
        )
    return target  # type: ignore[no-any-return]


def absolute(spec: str, base: Path) -> str:
    """Return the same callable with a path that does not depend on the current folder."""
    place, separator, name = spec.rpartition(":")
    if separator and place.endswith(".py"):
        return f"{(base / place).resolve()}:{name}"
    return spec


@contextlib.contextmanager
def folder_of(spec: str, base: Path | None = None) -> Iterator[OwnPlace | None]:
    """Let the file of a callable import modules beside it while the callable, or its module, is called.

    A callable of a package does not need this, nor does a model file. Raises ModelError if the file is missing.
    """
    place = "" if model_file.is_file(spec) else _parts(spec)[0]
    if not place.endswith(".py"):
        yield None
        return
    path = ((base or Path.cwd()) / place).resolve()
    if not path.is_file():
        raise ModelError(f"the model file {place} is not there", found=str(path), expected="a Python file")
    with own_folder(path) as own:
        yield own


_stored_weights: ContextVar[bool] = ContextVar("stored_weights", default=False)


def weights_follow() -> bool:
    """Return whether the module that is being made gets stored weights right afterwards.

    A factory may call this to skip the initialisation of its weights; names and shapes must not depend on it.
    """
    return _stored_weights.get()


def make_module(spec: str, seed: int, base: Path | None = None, *, stored_weights: bool = False) -> "torch.nn.Module":
    """Call a factory under the seed and return its module, ready for inference; a model file's module is read.

    The generators of torch, NumPy and Python are seeded and stay as the factory leaves them; its other changes of the
    process are undone (:func:`autotune.model.process_settings.settings_kept`). A module in train mode is put into eval
    mode; if its root is in eval mode already, parts in train mode stay so. With ``stored_weights`` the caller
    overwrites every weight; see :func:`weights_follow`. Raises ModelError if the factory raises, ends the program or
    returns something else.
    """
    import numpy
    import torch

    if model_file.is_file(spec):
        return model_file.module_of(model_file.path_of(spec))
    place, _ = _parts(spec)
    with folder_of(spec, base) as file, settings_kept(), _arguments(str(file.path) if file is not None else place):
        factory = resolve(spec, base)
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        token = _stored_weights.set(stored_weights)
        try:
            answer = factory()
        except (KeyboardInterrupt, AutotuneError):
            raise
        except BaseException as error:  # a user's code may raise anything, SystemExit included
            raise _failed(f"the model factory {spec}", "raised", error, file, "a torch.nn.Module") from error
        finally:
            _stored_weights.reset(token)
        module = usable(answer, f"the model factory {spec} returned")
        if getattr(module, "training", False):  # a frozen TorchScript module has no mode
            # The module of an exported program refuses: it was captured in the mode that it has.
            with contextlib.suppress(NotImplementedError):
                module.eval()
    return module


def usable(module: object, what: str) -> "torch.nn.Module":
    """Return the module that a user has passed, without the wrappers of compilation and data parallelism.

    A compiled TorchScript module is taken as it is, and of an exported program its module. ``what`` begins the message,
    such as "optimize was given". Raises ModelError if it is no module, or one with compiled parts.
    """
    import torch

    while (inner := _wrapped(module)) is not None:
        module = inner
    kind = type(module).__name__
    if isinstance(module, torch.export.ExportedProgram):
        return torch_files.module_of_program(module)
    if isinstance(module, torch.jit.ScriptFunction):
        raise ModelError(
            f"{what} a compiled TorchScript function", found=kind, expected="a module that was scripted or traced"
        )
    if isinstance(module, torch.jit.ScriptModule):
        return module
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"{what} no module", found=kind, expected="a torch.nn.Module")
    scripted = [name for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)]
    if scripted:
        raise ModelError(
            f"{what} a module with a compiled TorchScript part",
            found=f"{scripted[0]}: {type(module.get_submodule(scripted[0])).__name__}",
            expected="a module that is eager or compiled as a whole",
        )
    return module


def _wrapped(module: object) -> object:
    """Return the module inside a wrapper of ``torch.compile`` or of data parallelism, or ``None``."""
    import torch

    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # loaded by torch.compile; its import takes a second
    if dynamo is not None and isinstance(module, dynamo.OptimizedModule):
        return module._orig_mod
    if isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        return module.module
    return None


def _parts(spec: str) -> tuple[str, str]:
    place, separator, name = spec.rpartition(":")
    if not separator or not place or not name:
        raise ModelError(
            f"cannot read the callable {spec!r}", expected="path.py:callable or package.module:callable", found=spec
        )
    return place, name


def _imported(place: str, file: OwnPlace | None) -> ModuleType:
    try:
        return importlib.import_module(place) if file is None else load(file)
    except (KeyboardInterrupt, AutotuneError):
        raise
    except BaseException as error:  # a user's code may raise anything, SystemExit included
        what = f"importing {place}" if file is None else f"importing the model file {place}"
        raise _failed(what, "failed", error, file, "an import without an error") from error


def _failed(what: str, verb: str, error: BaseException, file: OwnPlace | None, expected: str) -> ModelError:
    """Make the error for a failed import or call, with the reason and a remedy."""
    reason = described(error)
    if isinstance(error, SystemExit):
        place = what if file is None or str(file.path) in what else f"{what} ({file.path})"
        return ModelError(f"{place} ended the program", found=reason, expected=NO_COMMAND_LINE)
    if isinstance(error, ModuleNotFoundError) and error.name:
        own = [str(file.path.parent), str(file.root)] if file is not None else []
        name = plain_module(error.name)
        return ModelError(
            f"{what} {verb}",
            found=reason.replace(error.name, name),
            expected=f"{name} as an installed package, or in one of {', '.join(dict.fromkeys([*own, *_path()]))}",
            run="the same command with PYTHONPATH=FOLDER, the folder that the module is in",
        )
    if isinstance(error, ImportError) and str(error) in RELATIVE_IMPORTS:
        expected = "an __init__.py in each folder up to the one that the import starts from"
    return ModelError(f"{what} {verb}", found=reason, expected=expected)


def _path() -> list[str]:
    """Return the entries of Python's path that a user may have added."""
    entries = [os.path.abspath(entry) for entry in sys.path]
    return [entry for entry in entries if os.path.isdir(entry) and not _is_library(entry + os.sep)]


def _is_library(folder: str) -> bool:
    return is_installed(folder) or is_of_python(folder)


@contextlib.contextmanager
def _arguments(program: str) -> Iterator[None]:
    """Let a file that reads a command line see an empty one."""
    before = list(sys.argv)
    sys.argv[:] = [program]
    try:
        yield
    finally:
        sys.argv[:] = before
