"""Backends by name and by what they are able to do: the built-in ones, and those that installed packages offer.

A package offers a backend by an entry point in the group ``autotune.backends``. The name of the entry point is the
backend's; its value is ``package.module`` (which has an attribute ``BACKEND``) or ``package.module:attribute``.
A built-in backend is imported when its name is requested, plug-ins are imported when names are listed; so a plug-in
imports its library only in its methods.
"""

import functools
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from autotune.backend import (
    AdaptsAtLoad,
    Backend,
    BuildsFromFiles,
    BuildsInTurn,
    ExplainsArtifacts,
    FindsGraphFeatures,
    KernelKind,
    LoadsInTurn,
    OffersBaseline,
    PreparesBuilds,
    ReportsCoverage,
    ServesFormats,
    TimesKernelsAtBuild,
    TimesKernelsInTurn,
    TunesKernels,
)
from autotune.errors import RequestError
from autotune.kernel import KernelProvider
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.renamed import under_new_names

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
"""Module of each built-in backend; its attribute ``BACKEND`` is the instance. No other part of the core names them."""

MEMBERS = ("name", "toolchain", "build_uses_device", "probe", "space", "build", "times_kernels_at_load", "load")
"""The members that every backend has; the optional ones are those of :data:`autotune.backend.ABILITIES`."""


def names() -> tuple[str, ...]:
    """List the backends that can be requested: built-in ones first, then plug-ins that load, by name."""
    return (*BUILT_IN, *sorted(_plugins()[0]))


def backend(name: str) -> Backend:
    """Import and return the backend of this name.

    Raises :class:`~autotune.errors.RequestError` if there is none, or its plug-in is broken.
    """
    if name in BUILT_IN:
        return _built_in(name)
    plugins, reasons = _plugins()
    if name in plugins:
        return plugins[name]
    if name in reasons:
        raise RequestError(f"backend {name!r} is broken", found=reasons[name], expected=f"one of {', '.join(names())}")
    raise RequestError(f"backend {name!r} is not known", expected=f"one of {', '.join(names())}")


def broken() -> dict[str, str]:
    """List the plug-ins that cannot be used, each with the reason and the distribution that offers it."""
    return dict(_plugins()[1])


def refresh() -> None:
    """Look for plug-ins again, which is needed after one was installed under a running process."""
    importlib.invalidate_caches()
    _plugins.cache_clear()
    kernel_kinds.cache_clear()


def baselines() -> tuple[str, ...]:
    """List the backends that run the model as its user does today."""
    return tuple(name for name in names() if isinstance(backend(name), OffersBaseline))


def is_baseline(configuration: Configuration, *, has_factory: bool) -> bool:
    """Return true if a configuration is today's way to run the model."""
    owner = backend(configuration.backend)
    return isinstance(owner, OffersBaseline) and owner.is_baseline(configuration, has_factory=has_factory)


def building_from(model_format: str) -> tuple[str, ...]:
    """List the backends that build from files of a format other than torch's."""
    return tuple(
        name for name in names()
        if isinstance(owner := backend(name), BuildsFromFiles) and model_format in owner.model_formats
    )  # fmt: skip


def is_own_way(configuration: Configuration, device: Device, model_format: str) -> bool:
    """Return true if a configuration is how a model of a format other than torch's is run today."""
    owner = backend(configuration.backend)
    return (
        isinstance(owner, BuildsFromFiles) and model_format in owner.model_formats
        and owner.is_own_way(configuration, device, model_format)
    )  # fmt: skip


def serving_formats() -> dict[str, tuple[str, ...]]:
    """Return the formats that model servers load, each with the backends whose artifacts have it."""
    formats: dict[str, tuple[str, ...]] = {}
    for name in names():
        owner = backend(name)
        for serving_format in owner.serving_formats if isinstance(owner, ServesFormats) else ():
            formats[serving_format] = (*formats.get(serving_format, ()), name)
    return formats


def is_served(configuration: Configuration, serving_format: str, device: Device) -> bool:
    """Return true if a server that loads a file of the format runs what a trial of the configuration times."""
    owner = backend(configuration.backend)
    if not isinstance(owner, ServesFormats) or serving_format not in owner.serving_formats:
        return False
    return owner.is_served(configuration, device)


def is_plain_export(configuration: Configuration, serving_format: str, device: Device) -> bool:
    """Return true if a configuration is the plainest file of the format."""
    owner = backend(configuration.backend)
    if not isinstance(owner, ServesFormats) or serving_format not in owner.serving_formats:
        return False
    return owner.is_plain_export(configuration, device)


def write_served(configuration: Configuration, artifact: Path, target: Path, mark: Mapping[str, str]) -> None:
    """Write the files that a server loads from an artifact of a configuration into a folder, with a mark in them."""
    owner = backend(configuration.backend)
    if not isinstance(owner, ServesFormats):
        raise ValueError(f"{configuration} is in no format that servers load")
    owner.write_served(artifact, target, mark)


def builds_alone(configuration: Configuration) -> bool:
    """Return true if a build times kernels on its device, or if its backend does not say so."""
    owner = backend(configuration.backend)
    return not isinstance(owner, TimesKernelsAtBuild) or owner.times_kernels_at_build(configuration)


def builds_in_turn(name: str) -> bool:
    """Return true if builds of the backend take their turns on the device themselves, for the parts that compute."""
    owner = backend(name)
    return isinstance(owner, BuildsInTurn) and owner.builds_in_turn


def loads_in_turn(name: str) -> bool:
    """Return true if loads of the backend take their turns on the device themselves, for the parts that compute."""
    owner = backend(name)
    return isinstance(owner, LoadsInTurn) and owner.loads_in_turn


def build_modules(among: Iterable[str]) -> list[str]:
    """List the modules to import ahead of builds of the named backends, each module once."""
    owners = (backend(name) for name in among)
    return list(dict.fromkeys(m for owner in owners if isinstance(owner, PreparesBuilds) for m in owner.build_modules))


def builds_slowly(name: str) -> bool:
    """Return true if a build of the backend takes several times as long as those of others."""
    owner = backend(name)
    return isinstance(owner, PreparesBuilds) and owner.builds_slowly


def finding_features(among: Iterable[str]) -> dict[str, FindsGraphFeatures]:
    """Return the backends, among the named ones, that look at the captured graph before a search."""
    owners = {name: backend(name) for name in among}
    return {name: owner for name, owner in owners.items() if isinstance(owner, FindsGraphFeatures)}


def loads_alone(configuration: Configuration) -> bool:
    """Return true if an artifact of a configuration has to be alone on the device during its whole load."""
    owner = backend(configuration.backend)
    in_turn = isinstance(owner, TimesKernelsInTurn) and owner.times_kernels_in_turn
    return not in_turn and owner.times_kernels_at_load(configuration)


def adapts_at_load(name: str, kind: str) -> bool:
    """Return true if artifacts of the backend for a kind of device choose their instructions as they are loaded."""
    owner = backend(name)
    return isinstance(owner, AdaptsAtLoad) and kind in owner.adapts_at_load


def explaining(name: str) -> ExplainsArtifacts | None:
    """Return the backend if it can explain its artifacts, else ``None``."""
    owner = backend(name)
    return owner if isinstance(owner, ExplainsArtifacts) else None


def reporting_coverage(name: str) -> ReportsCoverage | None:
    """Return the backend if it can report what its own kernels compute, else ``None``."""
    owner = backend(name)
    return owner if isinstance(owner, ReportsCoverage) else None


def tuning_kernels() -> tuple[str, ...]:
    """List the backends that have kernels to tune."""
    return tuple(name for name in names() if isinstance(backend(name), TunesKernels))


def kernel_tuner(name: str) -> TunesKernels:
    """Return the backend of this name; RequestError if it has no kernels to tune."""
    owner = backend(name)
    if not isinstance(owner, TunesKernels) or not isinstance(owner.kernels, KernelProvider):
        accepted = f"one of {', '.join(tuning_kernels())}"
        raise RequestError(f"the kernels of backend {name!r} cannot be tuned", expected=accepted)
    return owner


def kernels(name: str) -> KernelProvider:
    """Return the provider of a backend's kernels; RequestError if it has no kernels to tune."""
    return kernel_tuner(name).kernels


@functools.cache
def kernel_kinds() -> Mapping[str, KernelKind]:
    """Return the kinds of kernels of every backend, by name; of two kinds with one name the first backend's counts."""
    kinds: dict[str, KernelKind] = {}
    for name in tuning_kernels():
        kinds = {kind.name: kind for kind in kernel_tuner(name).kernel_kinds} | kinds
    return MappingProxyType(kinds)


def library_kinds() -> tuple[str, ...]:
    """List the kinds of kernels that are a library's own calls, by name."""
    return tuple(sorted(kind.name for kind in kernel_kinds().values() if kind.calls_library))


@functools.cache
def _built_in(name: str) -> Backend:
    return cast(Backend, importlib.import_module(BUILT_IN[name]).BACKEND)


@functools.cache
def _plugins() -> tuple[dict[str, Backend], dict[str, str]]:
    """Return the plug-ins that load, and the reasons why the others do not."""
    from importlib import metadata  # here because it takes longer to import than every record together

    offers: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for point in metadata.entry_points(group=GROUP):
        offers.setdefault(point.name, {})[_distribution(point), point.value] = point
    plugins: dict[str, Backend] = {}
    reasons: dict[str, str] = {}
    for name, points in sorted(offers.items()):
        sources = sorted({distribution for distribution, _ in points})
        if name in BUILT_IN:
            reasons[f"{name} of {', '.join(sources)}"] = "a plug-in cannot take the name of a built-in backend"
        elif len(points) > 1:
            reasons[name] = f"offered {len(points)} times, by {', '.join(sources)}: uninstall all but one"
        else:
            try:
                plugins[name] = _load(next(iter(points.values())))
            except _BrokenPluginError as error:
                reasons[name] = f"{error} (distribution {sources[0]})"
    return plugins, reasons


class _BrokenPluginError(Exception):
    """An entry point does not give a backend; the text says why."""


def _load(point: "EntryPoint") -> Backend:
    """Return the backend that an entry point names."""
    try:
        loaded = point.load()
    except Exception as error:  # a plug-in may raise anything: it is recorded, and the other backends still work
        raise _BrokenPluginError(f"importing {point.value} raised {type(error).__name__}: {error}") from error
    instance = loaded if point.attr else getattr(loaded, "BACKEND", None)
    if instance is None:
        raise _BrokenPluginError(f"module {point.value} has no attribute BACKEND")
    if missing := [member for member in MEMBERS if not hasattr(instance, member)]:
        raise _BrokenPluginError(f"{point.value} is no backend: it lacks {', '.join(missing)}")
    if isinstance(instance, type):
        raise _BrokenPluginError(f"{point.value} is a class, expected an instance")
    if instance.name != point.name:
        raise _BrokenPluginError(f"{point.value} calls itself {instance.name!r}, but is offered as {point.name!r}")
    return cast(Backend, under_new_names(instance))


def _distribution(point: "EntryPoint") -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
