"""Backends by name: the built-in ones, and those that installed packages offer.

A package offers a backend by an entry point in the group ``autotune.backends``, its name being the backend's, its value
``package.module`` (which has an attribute ``BACKEND``) or ``package.module:attribute``. Built-in backends are imported
when they are asked for by name; plug-ins when names are listed, so a plug-in imports its library only in its methods.
"""

import functools
import importlib
from typing import TYPE_CHECKING, Any, cast

from autotune.backend import Backend
from autotune.errors import RequestError
from autotune.kernel import KernelProvider

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "autotune.backends"

BUILT_IN = {
    "eager": "autotune.backends.eager",
    "torchscript": "autotune.backends.torchscript",
    "inductor": "autotune.backends.inductor",
    "onnxruntime": "autotune.backends.onnxruntime",
    "openvino": "autotune.backends.openvino",
    "native": "autotune.backends.native.backend",
}
"""Module of each built-in backend; its attribute ``BACKEND`` is the instance."""

MEMBERS = ("name", "toolchain", "build_uses_device", "probe", "space", "build", "times_kernels_at_load", "load")
""":meth:`~autotune.backend.Backend.times_kernels_at_build` may be absent: then each build has the device alone."""


def names() -> tuple[str, ...]:
    """List the backends that can be asked for: built-in ones first, then plug-ins that load, by name."""
    return (*BUILT_IN, *sorted(_plugins()[0]))


def backend(name: str) -> Backend:
    """Import and return the backend of this name.

    Raises :class:`~autotune.errors.RequestError` where there is none, or its plug-in is broken.
    """
    if name in BUILT_IN:
        return _built_in(name)
    found, reasons = _plugins()
    if name in found:
        return found[name]
    if name in reasons:
        raise RequestError(f"backend {name!r} is broken", found=reasons[name], expected=f"one of {', '.join(names())}")
    raise RequestError(f"backend {name!r} is not known", expected=f"one of {', '.join(names())}")


def kernels(name: str) -> KernelProvider:
    """Return what makes the tuned kernels of a backend; RequestError where its kernels cannot be tuned."""
    maker = getattr(backend(name), "kernels", None)
    if not isinstance(maker, KernelProvider):
        having = [other for other in names() if hasattr(backend(other), "kernels")]
        raise RequestError(f"the kernels of backend {name!r} cannot be tuned", expected=f"one of {', '.join(having)}")
    return maker


def broken() -> dict[str, str]:
    """List the plug-ins that cannot be used, each with the reason and the distribution it comes from."""
    return dict(_plugins()[1])


def refresh() -> None:
    """Look for plug-ins anew, as is needed after one was installed under a running process."""
    importlib.invalidate_caches()
    _plugins.cache_clear()


@functools.cache
def _built_in(name: str) -> Backend:
    return cast(Backend, importlib.import_module(BUILT_IN[name]).BACKEND)


@functools.cache
def _plugins() -> tuple[dict[str, Backend], dict[str, str]]:
    """Return the plug-ins that load, and why the others do not."""
    from importlib import metadata  # here because it takes longer to import than every record together

    offers: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for point in metadata.entry_points(group=GROUP):
        offers.setdefault(point.name, {})[_distribution(point), point.value] = point
    found: dict[str, Backend] = {}
    reasons: dict[str, str] = {}
    for name, points in sorted(offers.items()):
        sources = sorted({distribution for distribution, _ in points})
        if name in BUILT_IN:
            reasons[f"{name} of {', '.join(sources)}"] = "a plug-in cannot take the name of a built-in backend"
        elif len(points) > 1:
            reasons[name] = f"offered {len(points)} times, by {', '.join(sources)}: uninstall all but one"
        else:
            loaded = _load(next(iter(points.values())))
            if isinstance(loaded, str):
                reasons[name] = f"{loaded} (distribution {sources[0]})"
            else:
                found[name] = cast(Backend, loaded)
    return found, reasons


def _load(point: "EntryPoint") -> Any:
    """Return the backend that an entry point names, or a sentence that says why it is none."""
    try:
        loaded = point.load()
    except Exception as error:  # other people's code may raise anything; it is recorded, and the other backends go on
        return f"importing {point.value} raised {type(error).__name__}: {error}"
    instance = loaded if point.attr else getattr(loaded, "BACKEND", None)
    if instance is None:
        return f"module {point.value} has no attribute BACKEND"
    if missing := [member for member in MEMBERS if not hasattr(instance, member)]:
        return f"{point.value} is no backend: it lacks {', '.join(missing)}"
    if isinstance(instance, type):
        return f"{point.value} is a class, expected an instance"
    if instance.name != point.name:
        return f"{point.value} calls itself {instance.name!r}, but is offered as {point.name!r}"
    return instance


def _distribution(point: "EntryPoint") -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
