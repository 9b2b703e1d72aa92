import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from autotune.errors import ModelError
from autotune.records.device import Device
from autotune.records.workload import TensorSpec
from autotune.runtime.settings import Settings
from autotune.runtime.torch_runner import SETTLING_CALLS, torch_runner
from autotune.runtime.turn import computes_by, takes_turn_by

CPU = Device(kind="cpu", name="Test CPU", uuid="cpu-test", cores=1)
GPU = Device(kind="cuda", name="GPU", uuid="gpu", capability=(9, 0))
X = TensorSpec(name="x", shape=(3,), dtype="float32")
IMAGE = TensorSpec(name="image", shape=(1, 3, 4, 4), dtype="float32")


def settings(*specs: TensorSpec, **more: bool) -> Settings:
    return Settings(precision="fp32", inputs=specs, threads=1, **more)


def test_a_callable_is_settled_on_the_given_example_and_on_nothing_else() -> None:
    seen: list[torch.Tensor] = []

    def call(x: torch.Tensor) -> tuple[torch.Tensor]:
        seen.append(x.clone())
        return (x * 2,)

    example = torch.tensor([1.0, 12.0, 7.0])
    torch_runner(call, settings(X), CPU, (example,))
    assert len(seen) == SETTLING_CALLS and all(torch.equal(tensor, example) for tensor in seen)


@pytest.mark.parametrize("searches", [False, True])
def test_a_callable_settles_in_one_turn_which_is_alone_if_it_times_kernels(searches: bool) -> None:
    """And once it is loaded it needs no turn."""
    inside: list[str] = []
    calls: list[list[str]] = []

    @contextlib.contextmanager
    def turn(name: str) -> Iterator[None]:
        inside.append(name)
        yield
        inside.remove(name)

    def call(x: torch.Tensor) -> tuple[torch.Tensor]:
        calls.append(list(inside))
        return (x * 2,)

    with takes_turn_by(lambda: turn("alone")), computes_by(lambda: turn("beside others")):
        runner = torch_runner(call, settings(X, cudnn_benchmark=searches), CPU, (torch.ones(3),))
        runner(torch.ones(3))
    assert calls == [["alone" if searches else "beside others"]] * SETTLING_CALLS + [[]]


def test_a_callable_that_writes_into_its_inputs_finds_the_same_example_again() -> None:
    example, seen = torch.ones(3), []

    def call(x: torch.Tensor) -> tuple[torch.Tensor]:
        seen.append(float(x.sum()))
        return (x.add_(1).clone(),)

    torch_runner(call, settings(X), CPU, (example,))
    assert set(seen) == {3.0} and torch.equal(example, torch.ones(3))


def test_an_image_is_settled_in_the_layout_of_the_configuration() -> None:
    seen: list[bool] = []

    def call(image: torch.Tensor) -> tuple[torch.Tensor]:
        seen.append(image.is_contiguous(memory_format=torch.channels_last))
        return (image + 1,)

    runner = torch_runner(call, settings(IMAGE, channels_last=True), CPU, (torch.randn(IMAGE.shape),))
    runner(torch.randn(IMAGE.shape))
    assert seen == [True] * (SETTLING_CALLS + 1)


def test_an_example_of_another_signature_is_refused() -> None:
    with pytest.raises(ModelError, match="input x does not fit"):
        torch_runner(lambda x: (x,), settings(X), CPU, (torch.ones(4),))


def borrowing(constant: torch.Tensor) -> Callable[..., Any]:
    return lambda x: (x, constant, x + constant)


def test_an_output_that_is_an_input_or_a_constant_comes_back_as_a_copy() -> None:
    constant, given = torch.ones(3), torch.zeros(3)
    runner = torch_runner(borrowing(constant), settings(X), CPU, (torch.full((3,), 2.0),))
    for answer in runner(given):
        answer.fill_(9.0)
    assert torch.equal(given, torch.zeros(3)) and torch.equal(constant, torch.ones(3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_on_a_gpu_the_example_is_copied_there_first(cuda_graph: bool) -> None:
    table, x = torch.arange(24.0).view(12, 2).cuda(), TensorSpec(name="month", shape=(3,), dtype="int64")
    seen: list[str] = []

    def call(month: torch.Tensor) -> tuple[torch.Tensor]:
        seen.append(str(month.device))
        return (table[month - 1],)

    example = torch.tensor([1, 12, 7])
    runner = torch_runner(call, settings(x, cuda_graph=cuda_graph), GPU, (example,))
    assert set(seen) == {"cuda:0"}
    for month in (torch.tensor([2, 3, 4]), torch.tensor([12, 1, 1]).cuda()):
        assert torch.equal(runner(month)[0].cpu(), table.cpu()[month.cpu() - 1])
    runner.close()
