"""Where libraries of kernels are found again; no compiler is needed."""

from importlib import metadata
from pathlib import Path

import pytest

from autotune.backends.native.cutlass import cutlass_kind as module
from autotune.backends.native.cutlass.cutlass_kind import CUTLASS
from autotune.backends.native.cutlass.nvcc_compiler import key_of
from autotune.backends.native.cutlass.source import source_of
from autotune.errors import WorkError
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces.cutlass_gemm import CutlassCandidate, build_of

HOPPER = Device(kind="cuda", name="Test GPU", uuid="gpu", capability=(9, 0))
PROBLEM = GemmProblem(m=64, n=64, k=64, bias=True, activation="gelu")
BUILD = CUTLASS.builds(HOPPER, PROBLEM)[0]
CANDIDATE = CUTLASS.launches(HOPPER, PROBLEM, BUILD)[-1]
KEY = key_of(source_of(build_of(HOPPER, PROBLEM, BUILD)), "90a")


def library(folder: Path, release: str, content: str = "library") -> Path:
    (folder / release).mkdir(parents=True)
    (folder / release / f"{KEY}.so").write_text(content)
    return folder / release / f"{KEY}.so"


def installed(monkeypatch: pytest.MonkeyPatch, release: str | None) -> None:
    def version(name: str) -> str:
        if release is None:
            raise metadata.PackageNotFoundError(name)
        return release

    monkeypatch.setattr(module.metadata, "version", version)


def test_every_candidate_tells_its_build_and_its_launch() -> None:
    for candidate in CUTLASS.launches(HOPPER, PROBLEM, BUILD):
        taken = CutlassCandidate.of(HOPPER, PROBLEM, candidate)
        assert taken.configuration == candidate and taken.build.tile == BUILD


def test_what_the_installed_release_compiled_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for release in ("4.1", "4.2", "4.3"):
        library(tmp_path, release, release)
    for release, expected in (("4.2", "4.2"), ("4.3", "4.3"), ("5.0", "4.1"), (None, "4.1")):
        installed(monkeypatch, release)
        found = module._find(build_of(HOPPER, PROBLEM, BUILD), tmp_path)
        assert found.library.read_text() == expected


def test_what_is_packed_is_found_without_cutlass_and_by_other_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library(tmp_path / "cache", "4.2", "the kernel")
    packed = CUTLASS.pack(HOPPER, PROBLEM, CANDIDATE, tmp_path / "cache", tmp_path / "artifact")
    assert list(packed.values()) == [KEY]
    assert sorted(path.name for path in (tmp_path / "artifact").iterdir()) == list(packed)
    installed(monkeypatch, None)
    monkeypatch.setattr(module, "key_of", lambda *_: "another key, as of other headers")
    found = module._find(build_of(HOPPER, PROBLEM, BUILD), tmp_path / "artifact")
    assert (found.library.read_text(), found.key) == ("the kernel", KEY)


def test_what_is_not_compiled_is_refused_with_what_to_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(WorkError, match=r"not compiled(.|\n)*autotune kernels tune"):
            CUTLASS.load(HOPPER, PROBLEM, CANDIDATE, folder)
    library(tmp_path, "4.2")
    other = GemmProblem(m=64, n=64, k=64, bias=True, activation="relu")
    with pytest.raises(WorkError, match="not compiled"):
        CUTLASS.pack(HOPPER, other, CANDIDATE, tmp_path, tmp_path / "artifact")


@pytest.mark.parametrize(
    ("capability", "problem"),
    [
        ((9, 0), GemmProblem(m=64, n=63, k=64)),
        ((9, 0), GemmProblem(m=64, n=64, k=64, dtype="fp32")),
        ((12, 0), GemmProblem(m=64, n=64, k=64)),
        ((7, 5), GemmProblem(m=64, n=64, k=64, dtype="bf16")),
    ],
)
def test_what_cutlass_does_not_serve_has_no_builds(capability: tuple[int, int], problem: GemmProblem) -> None:
    device = Device(kind="cuda", name="Test GPU", uuid="gpu", capability=capability)
    assert CUTLASS.builds(device, problem) == ()


def test_compiling_without_nvcc_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVCC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WorkError, match="no nvcc on PATH"):
        CUTLASS.compile(HOPPER, PROBLEM, [BUILD], tmp_path)


def test_a_candidate_of_another_kind_lacks_what_a_launch_needs() -> None:
    with pytest.raises(KeyError):
        CutlassCandidate.of(HOPPER, PROBLEM, Configuration.of("cutlass", {"tile_m": 128}))
