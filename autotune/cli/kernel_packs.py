"""The commands ``autotune kernels build``, ``export`` and ``import``: compiled kernels for this and other machines."""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.output import Json, errors, nothing_on_stdout, print_json, show
from autotune.errors import RequestError

if TYPE_CHECKING:
    from autotune.kernel import CompileResult, PacksKernels
    from autotune.records.kernel_problem import GemmProblem

TYPES = ("fp16", "bf16")

Arch = Annotated[
    str | None,
    typer.Option("--arch", metavar="ARCH", help="The architecture, such as sm_90a; by default that of this GPU."),
]
PackFile = Annotated[Path, typer.Argument(metavar="FILE", help="The pack, such as kernels-sm_90a.tar.xz.")]


def build(
    arch: Arch = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--for", metavar="STUDY_FILE", help="Also the first builds for the products of this model."),
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option("--dtype", metavar="TYPE", help="fp16 or bf16; by default both.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", help="Kernels at once; by default one for each core.")
    ] = None,
    json: Json = False,
) -> None:
    """Compile the standard kernels of an architecture, which needs no GPU; later studies find them compiled."""
    dtypes = tuple(dict.fromkeys(dtype or TYPES))
    if unknown := [name for name in dtypes if name not in TYPES]:
        raise RequestError(f"--dtype {unknown[0]}", found="no such type", expected=f"one of {', '.join(TYPES)}")
    if jobs is not None and jobs < 1:
        raise RequestError(f"--jobs {jobs}", found="less than one kernel at once", expected="at least 1")
    backend, packs_kernels = provider()
    architecture = arch or _own_architecture(packs_kernels)
    if architecture not in packs_kernels.architectures:
        raise RequestError(
            f"kernels for {architecture}", found="no standard set for it",
            expected=f"one of {', '.join(packs_kernels.architectures)}",
        )  # fmt: skip
    if json:
        with nothing_on_stdout():
            results = _compile(backend, packs_kernels, architecture, dtypes, models or [], jobs)
    else:
        results = _compile(backend, packs_kernels, architecture, dtypes, models or [], jobs)
    refused = [result for result in results if result.refusal is not None]
    compiled = sum(result.compile_s > 0 and result.refusal is None for result in results)
    summary: dict[str, object] = {
        "architecture": architecture, "kernels": len(results) - len(refused), "compiled_now": compiled,
        "refused": len(refused),
    }  # fmt: skip
    _say(
        summary, f"{len(results) - len(refused)} kernels for {architecture}, {compiled} compiled now"
        + (f", {len(refused)} refused by the compiler" if refused else ""), json=json,
    )  # fmt: skip


def export(file: PackFile, arch: Arch = None, json: Json = False) -> None:
    """Write the compiled kernels of this user, all or those of one architecture, to a file for other machines."""
    from autotune.kernels.compiled import kernels_folder
    from autotune.kernels.pack import SHOWN, export_pack

    backend, packs_kernels = provider()
    manifest = export_pack(packs_kernels, backend, kernels_folder(), file, architectures=(arch,) if arch else ())
    size = file.stat().st_size
    document = {
        "file": str(file), "digest": manifest.digest, "kernels": len(manifest.kernels), "bytes": size,
        "architectures": list(manifest.architectures),
    }  # fmt: skip
    text = f"wrote {file}: {len(manifest.kernels)} kernels for {', '.join(manifest.architectures)}, {size / 1e6:.1f} MB"
    _say(document, f"{text}, pack {manifest.digest[:SHOWN]}", json=json)


def import_(file: PackFile, json: Json = False) -> None:
    """Add the kernels of a pack to those of this user; its content is checked before anything is added."""
    from autotune.kernels.compiled import writable_kernels_folder
    from autotune.kernels.pack import SHOWN, import_pack

    if not file.is_file():
        found = "a folder" if file.is_dir() else "no such file"
        raise RequestError(f"cannot import {file}", found=found, expected="a file of autotune kernels export")
    backend, packs_kernels = provider()
    result = import_pack(packs_kernels, backend, file, writable_kernels_folder())
    manifest = result.manifest
    document = {
        "file": str(file), "digest": manifest.digest, "added": result.added, "present": result.present,
        "architectures": list(manifest.architectures),
    }  # fmt: skip
    text = f"imported {file}: {result.added} kernels added, {result.present} were there"
    lines = [f"{text}, for {', '.join(manifest.architectures)}, pack {manifest.digest[:SHOWN]}"]
    note = _unusable_here(manifest.architectures)
    _say({**document, "note": note}, "\n".join([*lines, *([note] if note else [])]), json=json)


def provider() -> "tuple[str, PacksKernels]":
    """Return the backend whose kernels are packed, with their provider."""
    from autotune import registry
    from autotune.kernel import PacksKernels

    for backend in registry.tuning_kernels():
        provider = registry.kernels(backend)
        if isinstance(provider, PacksKernels):
            return backend, provider
    raise RequestError("packs of kernels", found="no backend whose kernels are packed", expected="the backend native")


def _own_architecture(provider: "PacksKernels") -> str:
    from autotune.kernels.compiled import runs_on
    from autotune.runtime import discovery

    for device in discovery.devices():
        fitting = [name for name in provider.architectures if runs_on(name, device)]
        if fitting:
            return fitting[0]
    raise RequestError(
        "kernels for the GPU of this machine", found="no GPU with a standard set",
        expected="the architecture by name, which needs no GPU",
        run=f"autotune kernels build --arch {provider.architectures[0]}",
    )  # fmt: skip


def _unusable_here(architectures: tuple[str, ...]) -> str | None:
    from autotune.kernels.compiled import runs_on
    from autotune.runtime import discovery

    gpus = [device for device in discovery.devices() if device.kind == "cuda"]
    if any(runs_on(architecture, device) for architecture in architectures for device in gpus):
        return None
    here = ", ".join(sorted({device.sku for device in gpus})) or "no GPU"
    return f"no study on this machine will use them: it has {here}, and they are for {', '.join(architectures)}"


def _compile(
    backend: str, provider: "PacksKernels", architecture: str, dtypes: tuple[str, ...], models: list[str],
    jobs: int | None,
) -> "list[CompileResult]":  # fmt: skip
    from autotune.kernels.compiled import writable_kernels_folder

    problems: list[GemmProblem] = []
    for model in models:
        problems += _problems(backend, architecture, model, dtypes)
    console = errors()
    step = 50

    def tell(done: int, total: int) -> None:
        if done % step == 0 or done == total:
            console.print(f"{done} of {total} kernels", markup=False)

    return provider.compile_set(
        architecture, dtypes, problems, writable_kernels_folder(), jobs=jobs or len(os.sched_getaffinity(0)), tell=tell
    )  # fmt: skip


def _problems(backend: str, architecture: str, model: str, dtypes: tuple[str, ...]) -> "list[GemmProblem]":
    from autotune.records.device import Device
    from autotune.study.file import read_study
    from autotune.study.model_problems import problems_of

    study = read_study(Path(model))
    digits = architecture.removeprefix("sm_").rstrip("af")
    device = Device(kind="cuda", name=architecture, uuid="none", capability=(int(digits[:-1]), int(digits[-1])))
    errors().print(f"{study.name}: finding its products", markup=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own code
        return [problem for batch in study.batch for problem in problems_of(study, batch, backend, device, dtypes)]


def _say(document: dict[str, object], text: str, *, json: bool) -> None:
    if json:
        print_json(document)
    else:
        from rich.text import Text

        show(Text(text))
