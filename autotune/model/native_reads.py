"""Files that native code opens by itself, without an event of Python's."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator

READERS = (
    ("safetensors", "safe_open"),
    ("torch._C", "PyTorchFileReader"),
    ("torch.jit", "load"),
    ("torch", "from_file"),
)
"""Classes and functions that open the file which is their first argument."""


@contextlib.contextmanager
def noting(note: Callable[[object], None]) -> Iterator[None]:
    """Call ``note`` with each path that one of :data:`READERS` opens within the block.

    They are replaced in every module that has them by name, as ``from safetensors import safe_open`` does. torch's are
    replaced only if torch is loaded before.
    """
    import safetensors  # noqa: F401  so that a later import within the block finds the replaced functions

    replaced: dict[int, tuple[object, object]] = {}
    for module, name in READERS:
        original = getattr(sys.modules.get(module), name, None)
        if original is not None:
            replaced[id(original)] = (original, _noting(original, note))
    _exchange(replaced)
    try:
        yield
    finally:
        _exchange({id(substitute): (substitute, original) for original, substitute in replaced.values()})


def _exchange(replaced: dict[int, tuple[object, object]]) -> None:
    """Replace objects in every loaded module; a scan of all their names, 10 ms with transformers loaded."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", None)
        if not isinstance(names, dict):
            continue
        for name, value in list(names.items()):
            if id(value) in replaced:
                names[name] = replaced[id(value)][1]


def _noting(original: Callable[..., object], note: Callable[[object], None]) -> object:
    """Wrap a function or class so that it notes its first argument if that is a path."""

    def noted(arguments: tuple[object, ...], options: dict[str, object]) -> object:
        for value in (*arguments[:1], *(options[name] for name in ("filename", "f") if name in options)):
            if isinstance(value, str | bytes | os.PathLike):
                note(value)
        return original(*arguments, **options)

    if not isinstance(original, type):

        @functools.wraps(original)
        def function(*arguments: object, **options: object) -> object:
            return noted(arguments, options)

        return function
    kind: type = original

    class Kind(type):
        def __call__(cls, *arguments: object, **options: object) -> object:
            return noted(arguments, options)

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, kind)

        def __getattr__(cls, name: str) -> object:
            attribute: object = getattr(original, name)
            return attribute

    return Kind(original.__name__, (), {"__doc__": original.__doc__, "__module__": original.__module__})
