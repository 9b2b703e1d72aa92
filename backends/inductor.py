"""AOTInductor: the captured graph compiled into a package that loads without a compiler."""

import contextlib
import json
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from autotune import environment
from autotune.backend import Availability, Runner, SourceModel
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.search_space import SearchSpace
from autotune.records.workload import Workload
from autotune.runtime.elf import needed_libraries
from autotune.runtime.installed import install_command, torch_availability
from autotune.runtime.settings import Settings
from autotune.scratch import ScratchFolder
from autotune.search_spaces import inductor as spaces

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

PACKAGE = "model.pt2"
STANDARD_LIBRARY = "libstdc++.so.6"
"""torch's own C++ library; a package with a second one fails at load, with std::bad_cast or a segmentation fault."""


class InductorBackend:
    """Compiles with ``torch._inductor.aoti_compile_and_package``.

    A build on a GPU tries launch sizes of Triton kernels there, within a turn; only copies and the folding of constants
    may run beside a timing (see :mod:`autotune.backends.inductor_turns`). With max-autotune it has the device alone.
    Needs a C++ compiler; on a GPU, Triton too.
    """

    name = "inductor"
    toolchain: tuple[str, ...] = ("torch", "triton", "cuda", "cudnn", "compiler")
    build_uses_device = True
    builds_in_turn = True
    times_kernels_in_turn = True
    loads_in_turn = True
    serving_formats = ("aoti",)
    build_modules = ("torch._inductor.compile_fx",)
    builds_slowly = True

    def probe(self, device: Device) -> Availability:
        """Report if torch, a C++ compiler and, on a GPU, Triton are installed."""
        torch_here = torch_availability(device)
        if not torch_here.works:
            return torch_here
        if environment.compiler() is None:
            named = environment.cxx_compiler()
            reason = f"the C++ compiler that CXX names is not there: {named}" if named else "there is no C++ compiler"
            return Availability(works=False, reason=reason, remedy="apt-get install g++ (or name a compiler in CXX)")
        if device.kind == "cuda" and not _has_triton():
            return Availability(works=False, reason="triton is not installed", remedy=install_command("gpu"))
        return torch_here

    def space(self, device: Device, workload: Workload | None, *, has_factory: bool) -> SearchSpace:
        """Vary precision, freezing, fusions, layout, max-autotune; CUDA graph on a GPU, threads on a CPU."""
        return spaces.inductor_space(device, workload)

    def is_served(self, configuration: Configuration, device: Device) -> bool:
        """Return true for packages that torch's loader runs with torch's default flags."""
        return spaces.is_served(configuration, device)

    def is_plain_export(self, configuration: Configuration, device: Device) -> bool:
        """Return true for a package in fp32 with inductor's own defaults."""
        return spaces.is_plain_export(configuration, device)

    def write_served(self, artifact: Path, target: Path, mark: Mapping[str, str]) -> None:
        """Copy the package; the mark is in its metadata, which ``torch._inductor`` reads without loading it."""
        marks = {f"autotune.{name}": value for name, value in mark.items()}
        with zipfile.ZipFile(artifact / PACKAGE) as package, zipfile.ZipFile(target / PACKAGE, "w") as copy:
            for entry in package.infolist():
                content = package.read(entry)
                if entry.filename.endswith("_metadata.json"):
                    content = json.dumps({**json.loads(content), **marks}).encode()
                copy.writestr(entry.filename, content)

    def build(self, model: SourceModel, configuration: Configuration, device: Device, folder: Path) -> None:
        """Compile the captured graph; raises RuntimeError if the compiler links a library that cannot be loaded."""
        import torch
        import torch._inductor
        import torch._inductor.config

        from autotune.backends.inductor_turns import in_turns

        settings = Settings.of(configuration, model.workload)
        program = model.program(settings.precision, device)
        package = folder / PACKAGE
        on_device = torch.cuda.device(device.index) if device.kind == "cuda" else contextlib.nullcontext()
        switches = settings.switches.overlay()  # inductor reads TF32 and threads from them while it compiles
        with (
            switches, torch.no_grad(), on_device, _own_cache(), _trusted_instructions(), _unloadable(), in_turns(),
        ):  # fmt: skip
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(package), inductor_configs=options(configuration)
            )
        refuse_second_standard_library(package)
        settings.write(folder)

    def times_kernels_at_build(self, configuration: Configuration) -> bool:
        """Return true with max-autotune, which times templates and library calls of GEMMs and convolutions for minutes.

        Coordinate descent and the other kinds of max-autotune are off (see :func:`options`).
        """
        # Without it a build for a GPU still tries a few launch sizes of some Triton kernels there (reductions, and
        # kernels over two dimensions: torch/_inductor/runtime/triton_heuristics.py): 0.8 s of 16 s for ResNet-50 on an
        # H200. That part has a turn beside other builds, but never beside a timing.
        return bool(configuration["max_autotune"])

    def times_kernels_at_load(self, configuration: Configuration) -> bool:
        """Return true with cuDNN's benchmark, which times kernels at the first calls."""
        return bool(configuration.get("cudnn_benchmark", False))

    def load(self, folder: Path, device: Device) -> Runner:
        """Load the package onto the device, by torch's own loader alone."""
        import torch

        from autotune.runtime.artifact import read_example
        from autotune.runtime.torch_runner import torch_runner

        settings = Settings.read(folder)
        single_threaded = settings.cuda_graph  # its own synchronisation cannot be captured
        index = device.index if device.kind == "cuda" else -1
        # aoti_load_package, which wraps this loader, compiles a test program for every vector instruction set of the
        # processor, only to warn if they differ from those of the build: about 45 s on an H200's host, and it needs a
        # compiler (https://github.com/pytorch/pytorch/issues/191715). A plan's key has the device class, so here they
        # are the same.
        loader = torch._C._aoti.AOTIModelPackageLoader(str(folder / PACKAGE), "model", single_threaded, 1, index)
        thread = _Thread()

        def call(*inputs: "torch.Tensor") -> "Sequence[torch.Tensor]":
            if not thread.has_context:
                thread.enter_context(device)
            return cast("Sequence[torch.Tensor]", loader.run([_dense_and_aligned(tensor) for tensor in inputs]))

        return torch_runner(call, settings, device, read_example(folder))


class _Thread(threading.local):
    """The state of a thread that calls the package: the GPU's context, without which the driver refuses a launch.

    torch makes the context current at the first call of its own that needs it. A thread that only calls the package
    makes no such call, and CUDA's driver answers "invalid device context".
    """

    has_context = False

    def enter_context(self, device: Device) -> None:
        """Make the device's context current in this thread."""
        if device.kind == "cuda":
            import torch

            torch.cuda.mem_get_info(device.index)
        self.has_context = True


def options(configuration: Configuration) -> dict[str, object]:
    """Return the options of inductor that decide the compiled code, so that no environment variable of torch does.

    ``CXX`` names the compiler. Options that this version of torch does not have are left out.
    """
    import torch._inductor.config as config

    wanted: dict[str, object] = {
        "freezing": configuration["freezing"],
        "layout_optimization": configuration.get("layout_optimization", True),
        "force_layout_optimization": False,
        "epilogue_fusion": configuration["epilogue_fusion"],
        "prologue_fusion": True,
        "pattern_matcher": configuration["pattern_matcher"],
        "max_autotune": configuration["max_autotune"],
        "max_autotune_gemm": False,
        "max_autotune_pointwise": False,
        "max_autotune_gemm_backends": "ATEN,TRITON,CPP",
        "max_autotune_conv_backends": "ATEN,TRITON",
        "coordinate_descent_tuning": False,
        "conv_1x1_as_mm": False,
        "triton.cudagraphs": False,
        "cpp.threads": int(configuration.get("threads", 0)) or -1,
        "cpp.dynamic_threads": False,
        "cpp.weight_prepack": True,
        "cpp.cxx": (None, environment.cxx_compiler() or "g++"),
        # torch hashes the headers by openssl, and fails if that is missing.
        "aot_inductor.precompile_headers": shutil.which("openssl") is not None,
    }
    available = config.get_config_copy()
    return {name: value for name, value in wanted.items() if name in available}


def refuse_second_standard_library(package: Path) -> None:
    """Raise RuntimeError if the package's library has a C++ standard library of its own."""
    with zipfile.ZipFile(package) as archive:
        for name in archive.namelist():
            if not name.endswith(".so"):
                continue
            with archive.open(name) as library:
                needed = needed_libraries(library)  # type: ignore[arg-type]
            if STANDARD_LIBRARY not in needed:
                raise RuntimeError(
                    f"AOTInductor's library would not load: {_compiler()} linked it without {STANDARD_LIBRARY}\n"
                    f"  found: {', '.join(needed) or 'no shared library'}\n"
                    f"  expected: {STANDARD_LIBRARY}, which torch uses, linked as a shared library\n"
                    "  run next: export CXX=g++ (or another compiler that links it shared), then autotune doctor"
                )


@contextlib.contextmanager
def _own_cache() -> Iterator[None]:
    """Use a cache of the build's own, and remove it afterwards.

    In a shared cache, two builds whose options lead to the same code would write the same library, one of them while
    the other packs it. A library of another compiler would be used for this one's, and weights would accumulate.
    Precompiled headers stay shared (torch keys them by compiler), and so do Triton's kernels (it keys them by content).
    """
    from torch._inductor.utils import fresh_cache

    shared = {"TRITON_CACHE_DIR": str(environment.cache_folder() / "triton")}
    with (
        ScratchFolder("inductor") as scratch,
        fresh_cache(dir=str(scratch)),
        environment.variables(shared),
    ):
        yield


@contextlib.contextmanager
def _trusted_instructions() -> Iterator[None]:
    """Trust the processor's list of vector instruction sets, and check only that the compiler supports each.

    Otherwise torch compiles, links and loads a test program for each instruction set in each fresh cache. On an H200's
    host, whose processor has AMX, that took 16 of the 42 s of a small build. ``cpp.vec_isa_ok`` omits the programs for
    the sets themselves, but not those for their extensions (bf16, VNNI, AMX).
    """
    import torch._inductor.config
    from torch._inductor.cpu_vec_isa import VecISA

    original = VecISA.check_build
    VecISA.check_build = _compiler_supports  # type: ignore[assignment, method-assign, unused-ignore]
    try:
        with torch._inductor.config.patch({"cpp.vec_isa_ok": True}):
            yield
    finally:
        VecISA.check_build = original  # type: ignore[method-assign]


STAYS_WITHOUT_THREAD = """
extern "C" __attribute__((visibility("hidden"))) int __cxa_thread_atexit(void (*)(void*), void*, void*) noexcept {
  return 0;
}
"""
"""C++ for a package: the text of a thread's last error, torch's only variable of a thread there, is not destroyed."""


@contextlib.contextmanager
def _unloadable() -> Iterator[None]:
    """Compile a library, which holds the weights, such that it leaves memory with its last user.

    The dynamic loader never unloads a library with a unique symbol (STB_GNU_UNIQUE), of which GCC makes some from the
    standard headers, nor one with a variable of a thread that is to be destroyed, before that thread ends. For both
    reasons each load of a package kept its weights until the process ended.
    """
    from torch._inductor import cpp_builder
    from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu

    own_flags, own_header = cpp_builder._get_os_related_cpp_cflags, CppWrapperCpu._write_aoti_interface_header

    def flags(cpp_compiler: str) -> list[str]:
        more = ["fno-gnu-unique"] if cpp_builder._is_gcc(cpp_compiler) else []
        return [*own_flags(cpp_compiler), *more]

    def header(wrapper: CppWrapperCpu) -> None:
        own_header(wrapper)  # type: ignore[no-untyped-call, unused-ignore]
        wrapper.header.splice(STAYS_WITHOUT_THREAD)

    cpp_builder._get_os_related_cpp_cflags = flags
    CppWrapperCpu._write_aoti_interface_header = header  # type: ignore[method-assign]
    try:
        yield
    finally:
        cpp_builder._get_os_related_cpp_cflags = own_flags
        CppWrapperCpu._write_aoti_interface_header = own_header  # type: ignore[method-assign]


class _InstructionSet(Protocol):
    """The part of torch's VecISA that is used here."""

    def build_arch_flags(self) -> str: ...


def _compiler_supports(instructions: _InstructionSet, code: str) -> bool:
    """Return true if the compiler accepts code of an instruction set with its flags."""
    compiler = environment.compiler()
    flags = str(instructions.build_arch_flags()).split()
    if compiler is None:
        return False
    command = [compiler, *flags, "-x", "c++", "-std=c++17", "-fsyntax-only", "-"]
    return subprocess.run(command, input=code, text=True, capture_output=True, check=False).returncode == 0


def _dense_and_aligned(tensor: "torch.Tensor") -> "torch.Tensor":
    """Return the tensor as the compiled kernels expect it: contiguous, and aligned to 16 bytes."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _compiler() -> str:
    return environment.compiler() or "the C++ compiler"


def _has_triton() -> bool:
    from importlib.util import find_spec

    return find_spec("triton") is not None


BACKEND = InductorBackend()
