"""The seam of backends: what each of them has, and what it may be able to do besides. A plug-in imports from here.

Every backend is a :class:`Backend`. Each optional ability is a protocol of its own: a backend has the ability if it has
all members of the protocol. :mod:`autotune.registry` asks for abilities; nothing else looks at a backend's attributes.
Tunable kernels have a seam of their own, :mod:`autotune.kernel`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from autotune.errors import (
    ArtifactError,
    AutotuneError,
    DeviceError,
    ModelError,
    RequestError,
    SpaceError,
    WorkError,
)
from autotune.kernel import KernelProvider, KnownKernels
from autotune.records.configuration import Configuration, Scalar
from autotune.records.device import Device
from autotune.records.graph_coverage import GraphCoverage
from autotune.records.kernel_problem import GemmProblem
from autotune.records.search_space import Constraint, Parameter, SearchSpace
from autotune.records.workload import TensorSpec, Workload

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

__all__ = [
    "ABILITIES",
    "AdaptsAtLoad",
    "ArtifactError",
    "AutotuneError",
    "Availability",
    "Backend",
    "BuildsFromFiles",
    "BuildsInTurn",
    "Configuration",
    "Constraint",
    "Device",
    "DeviceError",
    "ExplainsArtifacts",
    "FindsGraphFeatures",
    "GemmProblem",
    "GraphCoverage",
    "KernelKind",
    "KernelProvider",
    "KnownKernels",
    "LoadsInTurn",
    "ModelError",
    "OffersBaseline",
    "Parameter",
    "PreparesBuilds",
    "ReportsCoverage",
    "RequestError",
    "Runner",
    "Scalar",
    "SearchSpace",
    "ServesFormats",
    "SourceModel",
    "SpaceError",
    "TensorSpec",
    "TimesKernelsAtBuild",
    "TimesKernelsInTurn",
    "TunesKernels",
    "WorkError",
    "Workload",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """Says that a backend works on a device, or why it does not and which command helps."""

    works: bool
    reason: str = ""
    remedy: str = ""


class SourceModel(Protocol):
    """The captured model that a build gets: tensors in, tensors out.

    ``program`` takes the flat input tensors and returns a tuple of flat output tensors, in the dtypes of the original.
    """

    workload: Workload
    factory: str | None

    @property
    def file(self) -> Path | None:
        """The file of a model that came in a format other than torch's, with fixed sizes; ``None`` for all others."""
        ...

    @property
    def known_kernels(self) -> KnownKernels | None:
        """The measured kernels that a build may choose from; ``None`` if it got none."""
        ...

    def program(self, precision: str, device: Device) -> "ExportedProgram":
        """Return the captured graph, which computes in ``precision`` (fp32, tf32, bf16, fp16), on the device."""
        ...

    def example_inputs(self, device: Device) -> "tuple[torch.Tensor, ...]":
        """Return one set of flat inputs on the device."""
        ...

    def shared(self, name: str, write: Callable[[Path], None]) -> Path:
        """Return the folder of an intermediate result that builds of this model share, such as an exported graph.

        If there is none of this ``name`` yet, ``write`` fills an empty folder, on the file system of the builds' own;
        of two that fill it at once the faster one's stays. Its files are only read, and deleted with the study's.
        """
        ...

    @property
    def shared_bytes(self) -> int:
        """The size of all shared results so far."""
        ...

    def save_module(self, folder: Path) -> None:
        """Write the factory and the weights that rebuild the user's own module; only if ``factory`` is not ``None``."""
        ...


@runtime_checkable
class Runner(Protocol):
    """A loaded artifact: the very same code for the trial and for deployment.

    Flat tensors in, flat tensors out, in the dtypes of the original model and on its device. Inputs are copied to the
    device if needed, and :class:`autotune.runtime.signature.Signature` refuses those that do not fit. Outputs are fresh
    tensors. Several threads may call it at the same time.
    """

    def __call__(self, *inputs: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
        """Answer one call; a trial times exactly this."""
        ...

    def close(self) -> None:
        """Release memory and handles; a second call does nothing."""
        ...


class Backend(Protocol):
    """One way to run a model. It has no state, and imports its library only inside the methods that need it.

    ``toolchain`` names the entries of a toolchain that its artifacts depend on (see
    :mod:`autotune.runtime.toolchain`). ``build_uses_device`` says that a build runs something on the device: then
    it never runs beside a timing, except for the parts between the turns of a backend that :class:`BuildsInTurn`.
    """

    name: str
    toolchain: tuple[str, ...]
    build_uses_device: bool

    def probe(self, device: Device) -> Availability:
        """Report if it works here, without building anything; must import neither torch nor its own library."""
        ...

    def space(self, device: Device, workload: Workload | None, *, has_factory: bool) -> SearchSpace:
        """Return the search space on the device for a workload; for any workload if that is ``None``."""
        ...

    def build(self, model: SourceModel, configuration: Configuration, device: Device, folder: Path) -> None:
        """Write an artifact into an empty folder; runs in a build worker, and every exception is a failed trial."""
        ...

    def times_kernels_at_load(self, configuration: Configuration) -> bool:
        """Return true if loading chooses among kernels by timing them; then it loads alone on the device.

        Of a backend that :class:`TimesKernelsInTurn`, only that part of a load is alone.
        """
        ...

    def load(self, folder: Path, device: Device) -> Runner:
        """Turn an artifact into a runner; needs no compiler, no model code and no third-party pytree.

        Beside the files of the build, the folder has the artifact's own description, and the study's example inputs on
        which the runner warms up (``read_record`` and ``read_example`` of :mod:`autotune.runtime.artifact`).
        The folder is deleted after this call: read all that the runner needs.
        """
        ...


@runtime_checkable
class TimesKernelsInTurn(Protocol):
    """A backend whose loads time kernels only within :func:`autotune.runtime.turn.alone`, if the attribute is true.

    The rest of such a load runs beside other work. Every load by :func:`autotune.runtime.torch_runner.torch_runner`
    does so.
    """

    times_kernels_in_turn: bool


@runtime_checkable
class BuildsInTurn(Protocol):
    """A backend whose builds compute on a GPU only within :func:`autotune.runtime.turn.computing`, if it says so.

    The rest of such a build runs beside timings: it may copy to and from the device and fold constants there, but call
    no model and time nothing. Without this ability a build with ``build_uses_device`` never runs beside a timing. A
    build that has the device alone, as one that times kernels, keeps it from its beginning to its end, and so does
    every build on a CPU.
    """

    builds_in_turn: bool


@runtime_checkable
class LoadsInTurn(Protocol):
    """A backend whose loads compute on a GPU only within :func:`autotune.runtime.turn.computing`, if it says so.

    The rest of such a load runs beside timings: it may read files, copy to the device and fold constants there, but
    call no model. Every load by :func:`autotune.runtime.torch_runner.torch_runner` computes in turn. Without this
    ability no part of a load runs beside a timing, and on a CPU none does. A load that has the device alone keeps it.
    """

    loads_in_turn: bool


@runtime_checkable
class OffersBaseline(Protocol):
    """A backend that runs the model as its user does today; a study measures every speedup against it."""

    def is_baseline(self, configuration: Configuration, *, has_factory: bool) -> bool:
        """Return true if a configuration is today's way to run the model (on a CPU: at some number of threads)."""
        ...


@runtime_checkable
class BuildsFromFiles(Protocol):
    """A backend that builds models which came as files of other formats than torch's, such as ``onnx``.

    Of such a model a build gets :attr:`SourceModel.file`, and there is no program.
    """

    model_formats: tuple[str, ...]

    def is_own_way(self, configuration: Configuration, device: Device, model_format: str) -> bool:
        """Return true if that is how a model of the format is run today: a study measures its speedups against it."""
        ...


@runtime_checkable
class ServesFormats(Protocol):
    """A backend whose artifacts are files in formats that model servers load, such as ``onnx``.

    A study with ``serve_as`` admits only the backends that name the format here, and of their configurations only those
    that are in the file as a whole: a server sets no flag of the process, captures no CUDA graph and converts nothing.
    """

    serving_formats: tuple[str, ...]

    def is_served(self, configuration: Configuration, device: Device) -> bool:
        """Return true if a server that loads the file with its library's defaults runs what a trial times."""
        ...

    def is_plain_export(self, configuration: Configuration, device: Device) -> bool:
        """Return true for the plainest file of the format, the baseline within it; it is served."""
        ...

    def write_served(self, artifact: Path, target: Path, mark: Mapping[str, str]) -> None:
        """Write the files that a server loads from an artifact into a folder, in the usual names of the format.

        ``mark`` stands in the file, where its library shows it: the plan that it is of.
        """
        ...


@runtime_checkable
class TimesKernelsAtBuild(Protocol):
    """A backend that says which of its builds time kernels; without this ability each build has the device alone."""

    def times_kernels_at_build(self, configuration: Configuration) -> bool:
        """Return true if the build chooses among kernels by timing them; then it builds alone on the device."""
        ...


@runtime_checkable
class PreparesBuilds(Protocol):
    """A backend that says what makes its builds start sooner.

    ``build_modules`` are heavy modules that a build imports; the server of the workers imports them once, ahead of the
    builds. Modules that are not installed are left out. ``builds_slowly`` says that a build takes several times as long
    as those of other backends; ``autotune doctor`` begins with it.
    """

    build_modules: tuple[str, ...]
    builds_slowly: bool


@runtime_checkable
class FindsGraphFeatures(Protocol):
    """A backend that looks at the captured graph before the search; its space may depend on the features it finds."""

    def graph_features(self, model: SourceModel, device: Device) -> Mapping[str, int]:
        """Return how often each feature is in the graph; the workload then has them as ``NAME.feature:count``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelKind:
    """A kind of tunable kernels; the configurations of its kernels have its ``name`` as their backend.

    ``calls_library`` says that its kernels are a library's own calls, against which the others are compared.
    ``compile_s`` is about how long a compiler takes for one of its kernels, 0 if that does not matter: a kind whose
    kernels take too long for a budget is left out, except for kernels that are compiled already. With a
    ``fixed_epilogue`` a kernel is compiled for one bias, residual and activation; otherwise it serves all of them, and
    the problems of a model share it. The rest is for the cost model (:mod:`autotune.kernels.cost`), which knows tiles:
    ``tensor_rate_share`` is the share of the tensor cores' rate that the kernels reach if they do not use the newest
    instructions, and ``one_tile_per_block`` says that each thread block computes one tile and ends.
    """

    name: str
    calls_library: bool = False
    compile_s: float = 0.0
    fixed_epilogue: bool = True
    tensor_rate_share: float | None = None
    one_tile_per_block: bool = False


@runtime_checkable
class TunesKernels(Protocol):
    """A backend with kernels that a study tunes one problem at a time.

    Its configurations have a parameter ``kernels``; with any value but ``torch``, the build gets the best kernels that
    the database knows, as :attr:`SourceModel.known_kernels`. ``graph_invariants`` are the parameters that do not change
    the kernel problems of a graph: the graph is looked at once for all their values.
    """

    kernel_kinds: tuple[KernelKind, ...]
    graph_invariants: tuple[str, ...]

    @property
    def kernels(self) -> KernelProvider:
        """The provider of its kernels."""
        ...

    def kernel_problems(
        self, model: SourceModel, configuration: Configuration, device: Device
    ) -> Mapping[GemmProblem, int]:
        """Return the kernel problems of the graph that a configuration builds, each with its number in one call."""
        ...


@runtime_checkable
class AdaptsAtLoad(Protocol):
    """A backend whose artifacts choose their instructions as they are loaded, for these kinds of devices.

    Such an artifact runs on any processor or GPU of the kind. Without this ability it runs only if the processor has
    every instruction set of the one that it was built for, or the GPU the same compute capability.
    """

    adapts_at_load: tuple[str, ...]


@runtime_checkable
class ExplainsArtifacts(Protocol):
    """A backend that can say how an artifact of its own computes the model, for ``autotune explain``."""

    def explain_artifact(self, folder: Path) -> Mapping[str, object]:
        """Return ``nodes_before``, ``nodes_after``, ``fusions`` (counts by name) and ``sites`` of a verified artifact.

        ``places`` (places by fusion) is optional. Each site is a mapping with ``name``, ``operator`` and, if they are
        known, ``problem``, ``place``, ``kernel`` and ``library`` (each with ``configuration``, ``words`` and
        ``median_us``), ``plans`` (of generated kernels) and ``why`` (the reason why torch computes it).
        """
        ...


@runtime_checkable
class ReportsCoverage(Protocol):
    """A backend that reports which operators of a model its own kernels compute, for the program ``coverage``."""

    def coverage(self, model: SourceModel, configuration: Configuration, device: Device) -> GraphCoverage:
        """Return the launches of the graph that a configuration builds; runs nothing on the device."""
        ...


ABILITIES: tuple[type, ...] = (
    OffersBaseline,
    BuildsFromFiles,
    ServesFormats,
    TimesKernelsAtBuild,
    TimesKernelsInTurn,
    BuildsInTurn,
    LoadsInTurn,
    PreparesBuilds,
    FindsGraphFeatures,
    TunesKernels,
    AdaptsAtLoad,
    ExplainsArtifacts,
    ReportsCoverage,
)
"""Every optional ability."""
