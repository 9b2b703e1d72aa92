"""What several tests of the native backend need."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.backends.native.cuda_kernels.cubin_compiler import find_compiler


@pytest.fixture
def no_cuda_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide NVRTC and nvcc."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("NVCC", raising=False)
    monkeypatch.setenv("NVRTC", str(tmp_path / "none.so"))
    find_compiler.cache_clear()
    yield
    find_compiler.cache_clear()
