"""The settings of the process that a user's code may change, put back afterwards."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from types import ModuleType


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Put back the current folder and torch's global settings; random generators stay where they are.

    If torch is not loaded yet, its settings afterwards are those of a fresh process, except threads. Weights that were
    made in between stay as they are.
    """
    folder = _folder()
    before = {name: read() for name, (read, _) in _settings().items()}
    try:
        yield
    finally:
        if folder is not None and _folder() != folder:
            with contextlib.suppress(OSError):  # it may have been removed
                os.chdir(folder)
        for name, (read, write) in _settings().items():
            value = before.get(name, _FRESH.get(name))
            if value is not None and read() != value:
                write(value)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


_FRESH = {"dtype": "float32", "grad": True, "device": "", "deterministic": 0, "precision": "highest"}


def _settings() -> dict[str, tuple[Callable[[], object], Callable[[object], None]]]:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "set_default_device"):
        return {}
    return {
        "dtype": (
            lambda: str(torch.get_default_dtype()).removeprefix("torch."),
            lambda name: torch.set_default_dtype(getattr(torch, str(name))),
        ),
        "grad": (torch.is_grad_enabled, torch.set_grad_enabled),
        "threads": (torch.get_num_threads, torch.set_num_threads),
        "device": (lambda: _default_device(torch), lambda name: torch.set_default_device(name or None)),
        "deterministic": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        "precision": (lambda: _precision(torch), lambda value: _set_precision(torch, value)),
    }


def _default_device(torch: ModuleType) -> str:
    """Return the default device, or an empty text if none was set."""
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return "" if context is None else str(context.device)


def _precision(torch: ModuleType) -> object:
    """Return the precision of fp32 products; ``None`` if torch refuses, after its newer interface was used."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _set_precision(torch: ModuleType, value: object) -> None:
    with contextlib.suppress(RuntimeError):
        torch.set_float32_matmul_precision(value)
