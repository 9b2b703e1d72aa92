from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from autotune.errors import ArtifactError, ModelError
from autotune.records.workload import TensorSpec
from autotune.runtime.cuda_graph import CudaGraphRunner
from autotune.runtime.signature import Signature

SPECS = (TensorSpec(name="x", shape=(4, 8), dtype="float32"), TensorSpec(name="index", shape=(4,), dtype="int64"))
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def model(x: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.relu(x * 2 - 1), index + 1


def inputs(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 8, generator=generator), torch.randint(0, 9, (4,), generator=generator)


def runner_of(call: Callable[..., Any], **options: bool) -> CudaGraphRunner:
    signature = Signature(SPECS, "cuda:0")
    return CudaGraphRunner(call, signature.place(inputs(9)), signature=signature, **options)


@pytest.fixture
def runner() -> Iterator[CudaGraphRunner]:
    runner = runner_of(model)
    yield runner
    runner.close()


def test_a_graph_needs_a_gpu() -> None:
    signature = Signature(SPECS, "cpu")
    with pytest.raises(ValueError, match="GPU, found cpu"):
        CudaGraphRunner(model, inputs(9), signature=signature)


@on_gpu
@pytest.mark.gpu
class TestOnGpu:
    @pytest.mark.parametrize("place", ["cpu", "cuda:0"])
    def test_answers_as_the_call(self, runner: CudaGraphRunner, place: str) -> None:
        for seed in range(3):
            given = inputs(seed)
            answers = runner(*(tensor.to(place) for tensor in given))
            assert all(str(answer.device) == "cuda:0" for answer in answers)
            torch.testing.assert_close(tuple(answer.cpu() for answer in answers), model(*given))

    def test_tensors_of_one_type_are_copied_together(self) -> None:
        specs = tuple(
            TensorSpec(name=name, shape=shape, dtype="float32") for name, shape in (("x", (4, 8)), ("y", (3,)))
        )
        signature = Signature(specs, "cuda:0")
        example = signature.place((torch.randn(4, 8), torch.randn(3)))
        runner = CudaGraphRunner(lambda x, y: (x.t() * 2, y - 1), example, signature=signature)
        for place in ("cuda:0", "cpu"):
            x, y = torch.randn(8, 4, device=place).t(), torch.randn(3, device=place)
            double, less = runner(x, y)
            assert double.stride() == (1, 8)
            torch.testing.assert_close((double.cpu(), less.cpu()), (x.t().cpu() * 2, y.cpu() - 1))
        runner.close()

    def test_outputs_are_fresh_unless_static_is_asked_for(self, runner: CudaGraphRunner) -> None:
        first, second = runner(*inputs(0)), runner(*inputs(1))
        torch.testing.assert_close(first[0].cpu(), model(*inputs(0))[0])
        assert first[0].data_ptr() != second[0].data_ptr()
        static = runner_of(model, static_outputs=True)
        assert static(*inputs(0))[0].data_ptr() == static(*inputs(1))[0].data_ptr()
        static.close()

    def test_is_safe_from_threads_on_streams_of_their_own(self, runner: CudaGraphRunner) -> None:
        def ask(seed: int) -> bool:
            stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream):
                given = [tensor.cuda() for tensor in inputs(seed)]
                answers = [runner(*given) for _ in range(50)]
                stream.synchronize()
            reference = model(*inputs(seed))
            return all(torch.equal(got.cpu(), want) for a in answers for got, want in zip(a, reference, strict=True))

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(ask, range(8)))

    def test_inputs_of_another_shape_are_refused(self, runner: CudaGraphRunner) -> None:
        x, index = inputs(0)
        for wrong in ((x[:1], index), (x, index.to("meta")), (x.tolist(), index), (x,)):
            with pytest.raises(ModelError, match=r"input (x|index)"):
                runner(*wrong)

    def test_a_negated_view_is_read_as_what_it_is(self, runner: CudaGraphRunner) -> None:
        x, index = inputs(0)
        view = torch.complex(torch.zeros_like(x), -x).cuda().conj().imag
        assert view.is_neg()
        torch.testing.assert_close(runner(view, index)[0].cpu(), model(x, index)[0])

    def test_a_call_that_synchronises_cannot_be_captured(self) -> None:
        def synchronises(x: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor]:
            return (x * float(x.sum()),)

        with pytest.raises(ArtifactError, match="cannot be captured"):
            runner_of(synchronises)

    def test_keeps_the_weights_that_the_graph_reads(self) -> None:
        layer = torch.nn.Linear(8, 8).cuda().requires_grad_(False)
        x, index = inputs(0)
        reference = layer(x.cuda()).cpu()
        runner = runner_of(lambda x, index, layer=layer: (layer(x), index))
        del layer
        filler = [torch.full((8, 8), 7.0, device="cuda") for _ in range(64)]
        torch.testing.assert_close(runner(x, index)[0].cpu(), reference)
        assert filler
        runner.close()

    def test_a_closed_runner_says_so(self) -> None:
        runner = runner_of(model)
        runner.close()
        runner.close()
        with pytest.raises(ArtifactError, match="closed"):
            runner(*inputs(0))
