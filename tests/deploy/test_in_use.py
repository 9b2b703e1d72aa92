"""A loaded plan in use, for each backend of a CPU: many threads at once, memory after close, and a call after close."""

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from autotune.errors import ArtifactError
from tests.deploy.built import CPU_BACKENDS, built, opened

THREADS, CALLS = 32, 10_000
LAYERS, WIDTH = 6, 2048
WEIGHTS_MB = LAYERS * WIDTH * WIDTH * 4 / 1e6

KEPT_MB = 0.2 * WEIGHTS_MB
"""The most that a process may keep of a model whose weights take 100 MB: what its second load and close add to it."""


class Shifted(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(16, 8)

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.layer(x)
        return {"hidden": torch.tanh(hidden), "moved": hidden + shift}


@pytest.fixture(scope="module", params=CPU_BACKENDS)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    torch.manual_seed(0)
    module = Shifted().eval()
    inputs = {"x": torch.randn(2, 16), "shift": torch.randn(2, 1)}
    return module, built(request.param, module, inputs, tmp_path_factory.mktemp(request.param))


def test_32_threads_get_their_own_answers_in_10000_calls(small: tuple[torch.nn.Module, Path]) -> None:
    module, artifact = small
    fast = opened(artifact)

    def ask(thread: int) -> int:
        generator = torch.Generator().manual_seed(thread)
        x, shift = (torch.randn(CALLS // THREADS + 1, 2, n, generator=generator) for n in (16, 1))
        with torch.no_grad():
            expected = module(x, shift)
        right = 0
        for at in range(len(x)):
            answer = fast(x[at], shift=shift[at]) if at % 2 else fast(shift=shift[at], x=x[at])
            right += all(torch.allclose(answer[name], expected[name][at], atol=1e-5) for name in expected)
        return right

    with ThreadPoolExecutor(THREADS) as pool:
        right = list(pool.map(ask, range(THREADS)))
    fast.close()
    assert right == [CALLS // THREADS + 1] * THREADS and sum(right) >= CALLS


def test_a_call_after_close_is_one_clear_error(small: tuple[torch.nn.Module, Path]) -> None:
    _, artifact = small
    fast, inputs = opened(artifact), {"x": torch.randn(2, 16), "shift": torch.randn(2, 1)}
    answer = fast(**inputs)
    kept = answer["moved"].clone()
    fast.close()
    fast.close()
    for call in (lambda: fast(**inputs), lambda: fast.flat(inputs)):
        with pytest.raises(ArtifactError, match=r"a closed model was called[\s\S]*autotune\.load"):
            call()
    assert torch.equal(answer["moved"], kept), "answers outlive the model"


def test_a_model_that_is_closed_during_calls_ends_them_by_an_answer_or_that_error(
    small: tuple[torch.nn.Module, Path],
) -> None:
    module, artifact = small
    fast, inputs = opened(artifact), {"x": torch.randn(2, 16), "shift": torch.randn(2, 1)}
    with torch.no_grad():
        expected = module(**inputs)["moved"]

    def ask(_: int) -> bool:
        for _ in range(100_000):
            try:
                assert torch.allclose(fast(**inputs)["moved"], expected, atol=1e-5)
            except ArtifactError:
                return True
        return False

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, thread) for thread in range(4)]
        for _ in range(20):
            fast(**inputs)
        fast.close()
        assert all(future.result(60) for future in asked)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_close_gives_the_memory_back(backend: str, tmp_path: Path) -> None:
    """Resident memory after a second load and close is that after the first one, which loads libraries."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]).eval()
    artifact = built(backend, module, {"input": torch.randn(2, WIDTH)}, tmp_path)
    program = f"""
        import psutil, torch
        from pathlib import Path
        from tests.deploy.built import opened

        def resident_mb():
            return psutil.Process().memory_info().rss / 1e6

        def used():
            fast = opened(Path({str(artifact)!r}))
            fast(torch.ones(2, {WIDTH}))
            loaded_mb = resident_mb()
            fast.close()
            return loaded_mb

        before_mb = resident_mb()
        used()
        first_mb = resident_mb()
        loaded_mb = used()
        print(before_mb, first_mb, loaded_mb, resident_mb())
    """
    _, first_mb, loaded_mb, after_mb = map(float, run(program).split())
    assert loaded_mb - after_mb > WEIGHTS_MB - KEPT_MB, "the weights did not leave"
    assert after_mb - first_mb < KEPT_MB, "a second load keeps more"


def test_a_model_that_another_thread_closes_leaves_the_first_thread_its_signals(
    small: tuple[torch.nn.Module, Path],
) -> None:
    """OpenVINO took away the stack on which the first thread handles its signals."""
    program = f"""
        import signal, threading, time, torch
        from pathlib import Path
        from tests.deploy.built import opened

        fast = opened(Path({str(small[1])!r}))
        fast(x=torch.ones(2, 16), shift=torch.ones(2, 1))
        closing = threading.Thread(target=fast.close)
        closing.start()
        closing.join()
        signal.signal(signal.SIGALRM, lambda *_: print("rang"))
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        time.sleep(0.2)
    """
    assert run(program) == "rang\n"


def run(program: str) -> str:
    """Run a program in a process of its own, where it may end the process, and return what it prints."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False, cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    return done.stdout
