"""Callables that a study file names, and the module that a factory makes."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.errors import ModelError

if TYPE_CHECKING:
    import torch


def resolve(spec: str, base: Path | None = None) -> Callable[..., Any]:
    """Find ``path.py:callable`` (relative to ``base``) or ``package.module:callable``.

    Raises ModelError where the file, the module or the name is missing, or importing it fails.
    """
    place, separator, name = spec.rpartition(":")
    if not separator or not place or not name:
        raise ModelError(
            f"cannot read the callable {spec!r}", expected="path.py:callable or package.module:callable", found=spec
        )
    module = _from_file(place, base) if place.endswith(".py") else _from_package(place)
    found = getattr(module, name, None)
    if not callable(found):
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
    return found  # type: ignore[no-any-return]


def absolute(spec: str, base: Path) -> str:
    """The same callable with a path that does not depend on the current folder."""
    place, separator, name = spec.rpartition(":")
    if separator and place.endswith(".py"):
        return f"{(base / place).resolve()}:{name}"
    return spec


_stored_weights: ContextVar[bool] = ContextVar("stored_weights", default=False)


def weights_follow() -> bool:
    """Whether the module that is being made gets stored weights right afterwards.

    A factory may ask, to spare itself whatever it does to its weights; names and shapes must not depend on it.
    """
    return _stored_weights.get()


def make_module(spec: str, seed: int, base: Path | None = None, *, stored_weights: bool = False) -> "torch.nn.Module":
    """Call a factory under the seed and return its module, ready for inference.

    With ``stored_weights`` the caller overwrites every weight; see :func:`weights_follow`. Raises ModelError where the
    factory raises or returns something else.
    """
    import torch

    factory = resolve(spec, base)
    torch.manual_seed(seed)
    token = _stored_weights.set(stored_weights)
    try:
        module = factory()
    except Exception as error:
        raise ModelError(
            f"the model factory {spec} raised",
            found=f"{type(error).__name__}: {error}",
            expected="a torch.nn.Module",
            run="call the factory in Python to see where it fails",
        ) from error
    finally:
        _stored_weights.reset(token)
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"the model factory {spec} returned no module", found=type(module).__name__, expected="a torch.nn.Module"
        )
    return module.eval()


def _from_file(place: str, base: Path | None) -> Any:
    path = ((base or Path.cwd()) / place).resolve()
    if not path.is_file():
        raise ModelError(f"the model file {place} is not there", found=str(path), expected="a Python file")
    name = f"autotune_factory_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"the model file {place} cannot be imported", found=str(path), expected="a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ModelError(
            f"importing the model file {place} failed", found=f"{type(error).__name__}: {error}", expected="an import"
        ) from error
    return module


def _from_package(place: str) -> Any:
    try:
        return importlib.import_module(place)
    except Exception as error:
        raise ModelError(
            f"importing {place} failed",
            found=f"{type(error).__name__}: {error}",
            expected="an importable module",
            run=f"python -c 'import {place}'",
        ) from error
