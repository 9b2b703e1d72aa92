"""Kernels that are loaded by a library of plain C in the driver's place, and those that are refused."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.backends.native.cuda_driver import CudaDriver
from autotune.backends.native.cuda_kernels.cubin_cache import CompiledKernel, CubinCache
from autotune.backends.native.cuda_kernels.loaded_gemm import LoadedHopperGemm
from autotune.errors import DriverError, WorkError
from autotune.records.configuration import Configuration
from tests.backends.native.cuda_kernels.test_cubin_cache import HOPPER, PROBLEM, FakeCompiler, sources
from tests.backends.native.triton_kernels import test_launch

CC = shutil.which("gcc")
pytestmark = pytest.mark.skipif(CC is None, reason="needs gcc")
DEVICE = replace(HOPPER, index=1)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> CudaDriver:
    path = tmp_path_factory.mktemp("driver") / "fake_cuda.so"
    source = Path(test_launch.__file__).with_name("fake_cuda.c")
    subprocess.run([str(CC), "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    return CudaDriver(str(path))


def load(folder: Path, cuda: tuple[int, int], driver: CudaDriver) -> LoadedHopperGemm:
    compiler = FakeCompiler()
    compiler.cuda = cuda
    (source,) = sources(1)
    (kernel,) = CubinCache(folder).compile(compiler, [source])
    assert isinstance(kernel, CompiledKernel)
    candidate = Configuration.of(source.build.kind, {**dict(source.build.tile.values), "splits": 1})
    return LoadedHopperGemm(kernel, PROBLEM, candidate, DEVICE, programmatic_launch=False, on=driver)


def test_a_kernel_of_a_later_cuda_than_the_drivers_is_refused_by_name(tmp_path: Path, driver: CudaDriver) -> None:
    with pytest.raises(WorkError, match=r"(?s)a kernel of CUDA 14\.0, and a driver of CUDA 13\.0.*nvidia-smi"):
        load(tmp_path, (14, 0), driver)


@pytest.mark.parametrize("cuda", [(13, 5), (12, 9)])
def test_a_kernel_of_the_same_or_an_earlier_cuda_reaches_the_driver(
    cuda: tuple[int, int], tmp_path: Path, driver: CudaDriver
) -> None:
    with pytest.raises(DriverError, match="cuModuleGetFunction"):  # this driver knows another kernel
        load(tmp_path, cuda, driver)


def test_a_driver_without_descriptions_of_operands_says_so(driver: CudaDriver) -> None:
    with pytest.raises(DriverError, match=r"a driver of CUDA 13\.0, which has no cuTensorMapEncodeTiled"):
        driver.call("a kernel", "cuTensorMapEncodeTiled")
