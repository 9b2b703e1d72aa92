"""When a step may be forked, and when it must be started afresh."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.execute.server import WorkerServer

ROOT = Path(__file__).parents[2]
DRIVER = "int cuDeviceGetCount(int *count) {{ *count = 1; return {code}; }}"
NOT_INITIALIZED, SUCCESS = 3, 0


def driver(folder: Path, code: int) -> Path:
    """A library under the name of CUDA's driver that answers with ``code``."""
    (folder / "driver.c").write_text(DRIVER.format(code=code))
    library = folder / "libcuda.so.1"
    name = f"-Wl,-soname,{library.name}"
    subprocess.run(["cc", "-shared", "-fPIC", name, "-o", str(library), str(folder / "driver.c")], check=True)
    return library


@pytest.mark.parametrize(("code", "begun"), [(None, False), (NOT_INITIALIZED, False), (SUCCESS, True)])
def test_cuda_has_begun_where_its_loaded_driver_says_so(tmp_path, code, begun):
    load = f"ctypes.CDLL({str(driver(tmp_path, code))!r}); " if code is not None else ""
    script = f"import ctypes; from autotune.execute import worker; {load}print(worker._cuda_has_begun())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(begun)


@pytest.mark.parametrize(("code", "forked"), [(NOT_INITIALIZED, True), (SUCCESS, False)])
def test_after_an_import_that_begins_with_cuda_steps_start_afresh(tmp_path, monkeypatch, caplog, code, forked):
    (tmp_path / "begins.py").write_text(f"import ctypes; ctypes.CDLL({str(driver(tmp_path, code))!r})\n")
    (tmp_path / "shows.py").write_text(
        "import sys\n\ndef make():\n    raise RuntimeError('forked' if 'begins' in sys.modules else 'afresh')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with WorkerServer(tmp_path) as server:
        server.preload(["json", "begins"])
        request = {
            "folder": str(tmp_path / "model"), "name": "shows", "batch": 1, "factory": "shows:make", "inputs": [],
            "seed": 0,
        }  # fmt: skip
        result = server.run("prepare", request, timeout_s=120)
    assert result.failure is not None
    assert ("forked" if forked else "afresh") in result.failure.detail
    assert ("importing begins begins with CUDA" in caplog.text) is not forked


@pytest.mark.gpu
def test_counting_gpus_is_not_beginning_with_cuda():
    script = (
        "import torch; from autotune.execute import worker\n"
        "assert torch.cuda.is_available()\nprint(worker._cuda_has_begun())\n"
        "torch.cuda.init()\nprint(worker._cuda_has_begun())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
    )  # fmt: skip
    assert done.stdout.split() == ["False", "True"]
