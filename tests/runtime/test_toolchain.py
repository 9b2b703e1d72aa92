import importlib.metadata
import platform
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.records.device import Device
from autotune.runtime import toolchain

CPU = Device(kind="cpu", name="AMD EPYC", uuid="cpu-1", cores=2)
GPU = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", capability=(9, 0))


class Site:
    """A folder of installed distributions that stands alone on the path."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.setattr(sys, "path", [str(folder)])

    def install(self, **versions: str) -> None:
        for name, version in versions.items():
            info = self.folder / f"{name}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
            )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def test_the_toolchain_of_this_environment() -> None:
    versions = toolchain.current(CPU).as_dict()
    assert versions["torch"] == importlib.metadata.version("torch")
    assert versions["python"] == ".".join(platform.python_version_tuple()[:2])
    assert not {"cuda", "cudnn", "driver", "triton", "transformers"} & set(versions)


def test_it_is_read_without_importing_what_it_names() -> None:
    script = (
        "import sys; from autotune.runtime import toolchain, discovery; toolchain.current(discovery.find('auto'));"
        "print(*({'torch', 'onnxruntime', 'openvino', 'triton', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


def test_what_is_not_installed_has_no_entry(site: Site) -> None:
    assert set(toolchain.current(CPU).as_dict()) <= {"python", "compiler"}
    site.install(torch="2.13.0+cpu", openvino="2026.4.1")
    assert {"torch": "2.13.0+cpu", "openvino": "2026.4.1"}.items() <= toolchain.current(CPU).as_dict().items()


def test_a_gpu_has_the_cuda_libraries_that_match_torch(site: Site) -> None:
    site.install(torch="2.13.0+cu130", triton="3.7.0", nvidia_cutlass="4.4.0", tensorrt_cu13="10.16.0")
    site.install(nvidia_cudnn_cu12="9.1.0", nvidia_cudnn_cu13="9.20.0", nvidia_cuda_runtime="13.0.96")
    site.install(nvidia_cublas="13.1.0.3", nvidia_cublas_cu12="12.9.1.4")
    versions = toolchain.current(GPU).as_dict()
    assert versions["cudnn"] == "9.20.0"
    assert (versions["cuda"], versions["cublaslt"]) == ("13.0.96", "13.1.0.3")
    assert (versions["triton"], versions["cutlass"], versions["tensorrt"]) == ("3.7.0", "4.4.0", "10.16.0")
    assert not {"cuda", "cublaslt", "cudnn", "triton", "cutlass", "tensorrt"} & set(toolchain.current(CPU).as_dict())


@pytest.mark.parametrize(
    ("torch", "cuda"), [("2.11.0+cu130", "13.0"), ("2.8.0+cu128", "12.8"), ("2.13.0+cpu", None), ("2.13.0", None)]
)
def test_torch_tells_cuda_where_no_wheel_does(site: Site, torch: str, cuda: str | None) -> None:
    site.install(torch=torch)
    assert toolchain.current(GPU).as_dict().get("cuda") == cuda


def test_cublaslt_is_the_one_of_torchs_cuda(site: Site) -> None:
    site.install(torch="2.8.0+cu128", nvidia_cublas_cu12="12.8.4.1")
    assert toolchain.current(GPU).as_dict()["cublaslt"] == "12.8.4.1"


def test_onnxruntime_is_one_entry_whatever_provides_it(site: Site) -> None:
    site.install(onnxruntime_gpu="1.27.0")
    assert toolchain.current(CPU).as_dict()["onnxruntime"] == "1.27.0"


def test_the_compiler_is_the_one_that_cxx_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "my-c++"
    compiler.write_text('#!/bin/sh\necho "toy compiler 9.9 $1"\necho second line\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", f"{compiler} -O2")
    assert toolchain.current(CPU).as_dict()["compiler"] == "toy compiler 9.9 -O2"
    monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    assert "compiler" not in toolchain.current(CPU).as_dict()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
def test_without_cxx_it_is_the_one_that_inductor_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    said = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
    assert toolchain.current(CPU).as_dict()["compiler"] == said.splitlines()[0]


def test_only_the_entries_that_are_asked_for_are_read(cpu, monkeypatch):
    whole = toolchain.current(cpu)
    monkeypatch.setattr(toolchain, "_first_line", lambda asked: pytest.fail("the compiler was asked"))
    assert toolchain.current(cpu, ("torch", "onnxruntime")) == whole.only(("torch", "onnxruntime"))
    assert toolchain.current(cpu, ("no such entry",)).versions == ()
