"""The maker of kernels: what it offers where, and every kind on a GPU against the definition."""

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autotune.backends.native import native_kernels as module
from autotune.backends.native.cuda_kernels.cubin_compiler import find_compiler
from autotune.backends.native.native_kernels import KERNELS, NativeKernels
from autotune.errors import DeviceError, SpaceError, WorkError
from autotune.kernel import CompileResult, KernelProvider, toolchain_of
from autotune.records.configuration import Configuration
from autotune.records.device import Device, Toolchain
from autotune.records.kernel_problem import GemmProblem
from autotune.runtime import discovery
from tests.backends.native.kernel_problems import check, compare, empty, epilogues, operands

CPU = Device(kind="cpu", name="Test CPU", uuid="cpu")
HOPPER = Device(kind="cuda", name="Test GPU", uuid="gpu", capability=(9, 0))
PROBLEM = GemmProblem(m=256, n=512, k=128, bias=True, activation="gelu_tanh")


def kinds(device: Device, problem: GemmProblem) -> Counter[str]:
    space = KERNELS.space(device, problem)
    return Counter(candidate.backend for candidate in (*space.builds, *space.ready))


def test_it_is_a_kernel_maker() -> None:
    assert isinstance(KERNELS, KernelProvider)


@pytest.mark.parametrize(
    ("device", "change", "expected"),
    [
        (CPU, {}, {"torch"}),
        (CPU, {"dtype": "fp32", "output": "fp32"}, {"torch"}),
        (HOPPER, {}, {"hopper_gemm", "cutlass", "cluster_gemm", "cublaslt", "torch"}),
        (HOPPER, {"m": 8}, {"hopper_gemm", "cutlass", "cluster_gemm", "triton_gemm", "cublaslt", "torch"}),
        (HOPPER, {"n": 33}, {"hopper_gemm", "cluster_gemm", "cublaslt", "torch"}),
        (HOPPER, {"n": 33, "k": 33}, {"cublaslt", "torch"}),
        (HOPPER, {"dtype": "fp32", "output": "fp32"}, {"cublaslt", "torch"}),
        (replace(HOPPER, capability=(12, 0)), {}, {"cublaslt", "torch"}),
        (HOPPER, {"m": 10_000}, {"hopper_gemm", "cutlass", "cublaslt", "torch"}),
    ],
)
def test_each_kind_is_offered_where_it_serves(device: Device, change: dict[str, object], expected: set[str]) -> None:
    assert set(kinds(device, replace(PROBLEM, **change))) == expected  # type: ignore[arg-type]


def test_builds_are_distinct_and_each_has_a_launch() -> None:
    problem = replace(PROBLEM, m=16)
    space = KERNELS.space(HOPPER, problem)
    assert len(set(space.builds)) == len(space.builds)
    for build in space.builds[::200]:
        launches = space.launches(build)
        assert len(set(launches)) == len(launches) > 0
        assert {launch.backend for launch in launches} == {build.backend}


def test_the_first_builds_are_of_each_kind_in_turn() -> None:
    space = NativeKernels(sm_count=132).space(HOPPER, replace(PROBLEM, m=16))
    first = space.first(8)
    assert [build.backend for build in first] == ["hopper_gemm", "cutlass", "cluster_gemm", "triton_gemm"] * 2
    assert len(set(first)) == 8 and set(first) <= set(space.builds)
    assert space.first(0) == ()
    assert NativeKernels().space(CPU, PROBLEM).first(4) == ()


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
def test_choosing_without_a_gpu_needs_the_number_of_its_sms() -> None:
    with pytest.raises(DeviceError, match="sm_count"):
        KERNELS.space(HOPPER, PROBLEM).first(4)


@pytest.mark.parametrize("side", ["a_major", "b_major"])
def test_operands_of_another_layout_are_refused(side: str) -> None:
    with pytest.raises(SpaceError, match="mn-major"):
        KERNELS.space(CPU, replace(PROBLEM, **{side: "mn"}))  # type: ignore[arg-type]


def test_another_kind_is_refused(tmp_path: Path) -> None:
    unknown = Configuration.of("magic", {"rank": 0})
    for call in (
        lambda: KERNELS.load(CPU, PROBLEM, unknown, tmp_path),
        lambda: KERNELS.compile(CPU, PROBLEM, [unknown], tmp_path),
        lambda: KERNELS.pack(CPU, PROBLEM, unknown, tmp_path, tmp_path),
        lambda: KERNELS.space(CPU, PROBLEM).launches(unknown),
    ):
        with pytest.raises(WorkError, match=r"kind 'magic'(.|\n)*hopper_gemm, cutlass, cluster_gemm, triton_gemm"):
            call()


class FakeKind:
    """A compiled kind that notes what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[object], str]] = []

    def compile(
        self, device: Device, problem: GemmProblem, builds: list[Configuration], folder: Path
    ) -> list[CompileResult]:
        self.calls.append(([build["x"] for build in builds], folder.name))
        return [CompileResult(refusal=f"{build.backend} {build['x']}") for build in builds]

    def pack(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, target: Path
    ) -> dict[str, str]:
        return {"file": f"{folder.name} {target.name}"}


def test_builds_of_several_kinds_come_back_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = FakeKind(), FakeKind()
    monkeypatch.setattr(module, "COMPILED", {"one": one, "two": two})
    builds = [Configuration.of(*pair) for pair in (("two", {"x": 1}), ("one", {"x": 2}), ("two", {"x": 3}))]
    made = KERNELS.compile(HOPPER, PROBLEM, [*builds, builds[0]], tmp_path)
    assert [answer.refusal for answer in made] == ["two 1", "one 2", "two 3", "two 1"]
    assert (one.calls, two.calls) == ([([2], "one")], [([1, 3], "two")])
    assert KERNELS.pack(HOPPER, PROBLEM, builds[0], tmp_path, tmp_path) == {"two/file": "two two"}


def test_another_source_is_another_toolchain(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = Toolchain.of({"torch": "2.13", "python": "3.11"})
    found = toolchain_of(KERNELS, installed)
    assert found.as_dict() == {"torch": "2.13", "sources": KERNELS.sources}
    monkeypatch.setattr(module, "SOURCES", ("cutlass/*.h",))
    assert toolchain_of(NativeKernels(), installed).digest != found.digest


def test_a_kernel_that_another_machine_compiled_is_compiled_to_be_packed(tmp_path: Path) -> None:
    if find_compiler() is None:
        pytest.skip("needs NVRTC or nvcc")
    problem = GemmProblem(m=16, n=64, k=256)
    candidate = next(c for c in KERNELS.space(HOPPER, problem).builds if c.backend == "cluster_gemm")
    candidate = KERNELS.space(HOPPER, problem).launches(candidate)[0]
    packed = KERNELS.pack(HOPPER, problem, candidate, tmp_path / "cache", tmp_path / "artifact")
    assert packed and all((tmp_path / "artifact" / name).is_file() for name in packed)


@pytest.mark.usefixtures("no_cuda_compiler")
def test_without_a_compiler_nothing_can_be_packed(tmp_path: Path) -> None:
    space = KERNELS.space(HOPPER, PROBLEM)
    candidate = space.launches(next(c for c in space.builds if c.backend == "cluster_gemm"))[0]
    with pytest.raises(WorkError, match="neither NVRTC nor nvcc"):
        KERNELS.pack(HOPPER, PROBLEM, candidate, tmp_path, tmp_path / "artifact")


def test_without_a_compiler_what_is_compiled_serves(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if find_compiler() is None:
        pytest.skip("needs NVRTC or nvcc")
    problem = GemmProblem(m=16, n=64, k=256)
    builds = [build for build in KERNELS.space(HOPPER, problem).builds if build.backend == "cluster_gemm"][:2]
    candidate = KERNELS.space(HOPPER, problem).launches(builds[0])[0]
    KERNELS.compile(HOPPER, problem, builds[:1], tmp_path / "cache")
    KERNELS.pack(HOPPER, problem, candidate, tmp_path / "cache", tmp_path / "packed")
    request.getfixturevalue("no_cuda_compiler")
    for folder in (tmp_path / "cache", tmp_path / "packed"):
        assert list(KERNELS.compiled(HOPPER, problem, builds, folder)) == builds[:1]
        assert KERNELS.compile(HOPPER, problem, builds[:1], folder) == [CompileResult()]
        with pytest.raises(WorkError, match="neither NVRTC nor nvcc"):
            KERNELS.compile(HOPPER, problem, builds, folder)


def test_a_librarys_call_needs_no_file(tmp_path: Path) -> None:
    (candidate,) = KERNELS.space(CPU, PROBLEM).ready
    assert KERNELS.pack(CPU, PROBLEM, candidate, tmp_path, tmp_path / "artifact") == {}


# From here on a GPU is needed.
SHAPES = [(129, 256, 512), (1, 64, 64), (197, 768, 3072), (16, 4096, 1024)]


@pytest.fixture(scope="module")
def device() -> Device:
    return discovery.find("cuda")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def sampled(device: Device, problem: GemmProblem, folder: Path) -> Iterator[Configuration]:
    """All that is ready; of what is compiled a few builds, each kind and scheduler, with their most unlike launches."""
    space = KERNELS.space(device, problem)
    yield from space.ready
    chosen: dict[object, Configuration] = {}
    for build in space.first(8):
        chosen.setdefault((build.backend, build.get("schedule", ""), build.get("scheduler", "")), build)
    for build in space.builds:
        chosen.setdefault((build.backend, build.get("schedule", ""), build.get("scheduler", "")), build)
    if shutil.which("nvcc") is None:
        chosen = {key: build for key, build in chosen.items() if build.backend != "cutlass"}
    builds = list(chosen.values())
    for build, made in zip(builds, KERNELS.compile(device, problem, builds, folder), strict=True):
        assert made.refusal is None, (build, made.refusal)
        unlike = {
            (launch.get("decomposition", ""), launch.get("reduction", ""), splits_in_a_cluster(launch)): launch
            for launch in space.launches(build)
        }
        yield from unlike.values()


def splits_in_a_cluster(launch: Configuration) -> object:
    return launch["splits"] if launch.backend == "cluster_gemm" else None


@pytest.mark.gpu
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("dtype", "output"), [("fp16", "fp16"), ("bf16", "bf16"), ("fp16", "fp32"), ("fp32", "fp32")])
def test_every_kind_computes_every_epilogue_also_in_a_cuda_graph(
    dtype: str, output: str, device: Device, cache: Path
) -> None:
    base = GemmProblem(m=129, n=256, k=512, dtype=dtype, output=output)  # type: ignore[arg-type]
    for problem in epilogues(base):
        for candidate in sampled(device, problem, cache):
            for m, n, k in SHAPES:
                shaped = replace(problem, m=m, n=n, k=k)
                try:
                    kernel = KERNELS.load(device, shaped, candidate, cache)
                except WorkError as error:
                    assert candidate.backend == "cublaslt" and "algorithms" in str(error), error
                    continue
                check(kernel, shaped, 5, device.torch_name)
            in_a_graph(shaped, candidate, device, cache)


@pytest.mark.gpu
@pytest.mark.timeout(1800)
def test_few_rows_by_every_kind(device: Device, cache: Path) -> None:
    for problem in epilogues(GemmProblem(m=3, n=512, k=1024)):
        for candidate in sampled(device, problem, cache):
            in_a_graph(problem, candidate, device, cache)


def in_a_graph(problem: GemmProblem, candidate: Configuration, device: Device, folder: Path) -> None:
    """Capture a kernel, replay it twice with other operands in the same memory, and check both answers."""
    try:
        kernel = KERNELS.load(device, problem, candidate, folder)
    except WorkError:
        return
    given, out = operands(problem, 1, device.torch_name), empty(problem, device.torch_name)
    kernel(*given, out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel(*given, out)
    for seed in (2, 3):
        for place, fresh in zip(given[:2] + given[3:], _changing(problem, seed, device), strict=True):
            if place is not None and fresh is not None:
                place.copy_(fresh)
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        compare(problem, given, out)


def _changing(problem: GemmProblem, seed: int, device: Device) -> tuple[torch.Tensor | None, ...]:
    """Operands that change between calls: all but the bias, which is a constant of a model."""
    a, b, _, residual = operands(problem, seed, device.torch_name)
    return a, b, residual


@pytest.mark.gpu
def test_a_null_bias_counts_as_zeros_in_every_kind(device: Device, cache: Path) -> None:
    problem = GemmProblem(m=16, n=256, k=512, bias=True, activation="relu")
    for candidate in sampled(device, problem, cache):
        try:
            kernel = KERNELS.load(device, problem, candidate, cache)
        except WorkError:
            assert candidate.backend == "cublaslt"
            continue
        a, b, _, residual = operands(problem, 4, device.torch_name)
        out = empty(problem, device.torch_name)
        kernel(a, b, None, residual, out)
        compare(problem, (a, b, None, residual), out)


@pytest.mark.gpu
def test_the_heuristic_gives_the_same_ranks_again(device: Device, cache: Path) -> None:
    problem = GemmProblem(m=128, n=768, k=3072, bias=True, activation="gelu_tanh")
    for candidate in KERNELS.space(device, problem).ready:
        if candidate.backend == "cublaslt":
            first, again = (KERNELS.load(device, problem, candidate, cache) for _ in range(2))
            assert bytes(first._algorithm.algo) == bytes(again._algorithm.algo)  # type: ignore[attr-defined]


@pytest.mark.gpu
def test_packed_kernels_load_from_their_new_place(device: Device, cache: Path, tmp_path: Path) -> None:
    problem = GemmProblem(m=16, n=256, k=512)
    for candidate in sampled(device, problem, cache):
        if candidate.backend in ("cutlass", "cluster_gemm", "triton_gemm"):
            packed = KERNELS.pack(device, problem, candidate, cache, tmp_path)
            assert packed and all((tmp_path / name).is_file() for name in packed)
            kernel = KERNELS.load(device, problem, candidate, tmp_path)
            assert kernel.resource_usage["registers"] > 0
            check(kernel, problem, 9, device.torch_name)
