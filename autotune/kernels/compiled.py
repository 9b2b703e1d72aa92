"""The compiled kernels that a study finds on its machine."""

import tempfile
from pathlib import Path

from autotune import environment, registry
from autotune.errors import WorkError
from autotune.kernel import PacksKernels
from autotune.kernels.pack import imported_packs
from autotune.records.device import Device


def kernels_folder() -> Path:
    """Return the cache of compiled kernels, which every process of this user shares."""
    return environment.cache_folder() / "kernels"


def writable_kernels_folder() -> Path:
    """Return :func:`kernels_folder`, created if needed; raises WorkError if it cannot be written."""
    folder = kernels_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise WorkError(
            f"compiled kernels are kept in {folder}",
            found=str(error),
            expected="a folder that this user can write",
            run="the same command with XDG_CACHE_HOME set to such a folder",
        ) from error
    return folder


def compiled_for(device: Device) -> tuple[int, tuple[str, ...]]:
    """Return the number of compiled kernels for a device, and the digests of the imported packs that have some."""
    if device.kind != "cuda" or device.capability is None:
        return 0, ()
    folder, count = kernels_folder(), 0
    architectures: set[str] = set()
    for backend in registry.tuning_kernels():
        provider = registry.kernels(backend)
        if isinstance(provider, PacksKernels):
            fitting = [kernel for kernel in provider.stored(folder) if runs_on(kernel.architecture, device)]
            count += sum(kernel.abi == provider.abi for kernel in fitting)
            architectures |= {kernel.architecture for kernel in fitting}
    packs = {digest for architecture in architectures for digest in imported_packs(folder, architecture)}
    return count, tuple(sorted(packs))


def runs_on(architecture: str, device: Device) -> bool:
    """Return true if kernels for an architecture such as ``sm_90a`` are for the capability of a device."""
    return device.capability is not None and architecture.rstrip("af") == "sm_{}{}".format(*device.capability)
