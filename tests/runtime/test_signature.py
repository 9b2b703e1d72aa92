from typing import Any

import pytest
import torch

from autotune.errors import ModelError
from autotune.records.workload import TensorSpec
from autotune.runtime.signature import Signature

X = TensorSpec(name="x", shape=(3, 16), dtype="float32")
IDS = TensorSpec(name="ids", shape=(3,), dtype="int64")
SPECTRUM = TensorSpec(name="spectrum", shape=(2,), dtype="complex64")


COPIED = ", or on a device to copy it from"


def right() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 16), torch.arange(3)


@pytest.fixture
def signature() -> Signature:
    return Signature((X, IDS), "cpu")


def refusal(signature: Signature, *inputs: Any) -> tuple[str, str, str]:
    with pytest.raises(ModelError) as caught:
        signature.check(inputs)
    return caught.value.asked, caught.value.found, caught.value.expected


def test_what_fits_is_given_back_as_it_is(signature: Signature) -> None:
    given = right()
    assert signature.check(given) is given
    assert all(a is b for a, b in zip(signature.place(given), given, strict=True))
    empty = Signature((TensorSpec(name="none", shape=(0, 4), dtype="bool"),), "cpu")
    assert empty.check([torch.zeros(0, 4, dtype=torch.bool)])
    signature.check((torch.nn.Parameter(torch.randn(3, 16)), torch.arange(6)[::2]))


def test_a_wrong_number_names_what_is_missing_or_too_much(signature: Signature) -> None:
    x, ids = right()
    expected = "2 inputs: x float32[3, 16], ids int64[3]"
    assert refusal(signature, x) == ("the call lacks input ids", "1 input: float32[3, 16]", expected)
    assert refusal(signature) == ("the call lacks inputs x, ids", "0 inputs", expected)
    found = "3 inputs: float32[3, 16], int64[3], a value of type NoneType"
    assert refusal(signature, x, ids, None) == ("the plan takes no input after ids", found, expected)


@pytest.mark.parametrize(
    ("x", "found", "expected"),
    [
        (torch.randn(3, 5), "float32[3, 5]", "float32[3, 16]"),
        (torch.randn(1, 16), "float32[1, 16]", "float32[3, 16]"),
        (torch.randn(3, 16).half(), "float16[3, 16]", "float32[3, 16]"),
        (torch.tensor(1.0), "float32[]", "float32[3, 16]"),
        (torch.randn(3, 16, device="meta"), "float32[3, 16] on meta", f"float32[3, 16] on cpu{COPIED}"),
        (torch.randn(3, 16).tolist(), "a value of type list", "a tensor float32[3, 16]"),
        (torch.randn(3, 16).numpy(), "a value of type ndarray", "a tensor float32[3, 16]"),
        (None, "a value of type NoneType", "a tensor float32[3, 16]"),
        (torch.randn(3, 16).to_sparse(), "float32[3, 16] of layout torch.sparse_coo", "float32[3, 16]"),
        (torch.randn(3, 16).to_mkldnn(), "float32[3, 16] of layout torch._mkldnn", "float32[3, 16]"),
    ],
    ids=["shape", "broadcast", "dtype", "scalar", "meta", "list", "array", "none", "sparse", "mkldnn"],
)
def test_an_input_that_does_not_fit_is_named_with_both_values(
    signature: Signature, x: Any, found: str, expected: str
) -> None:
    assert refusal(signature, x, right()[1]) == ("input x does not fit the plan", found, expected)


def test_the_second_input_is_named_if_it_is_the_wrong_one(signature: Signature) -> None:
    x, ids = right()
    assert refusal(signature, ids, x)[0] == "input x does not fit the plan"
    assert refusal(signature, x, ids.int()) == ("input ids does not fit the plan", "int32[3]", "int64[3]")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nested_and_quantised_tensors_are_refused(signature: Signature) -> None:
    ids = right()[1]
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor([torch.randn(2, 16), torch.randn(1, 16)], layout=layout)
        assert refusal(signature, nested, ids)[1] == "a nested tensor of float32"
    quantised = torch.quantize_per_tensor(torch.randn(3, 16), 0.1, 0, torch.quint8)
    assert refusal(signature, quantised, ids)[1] == "quint8[3, 16]"


def test_conjugated_and_negated_views_are_written_out() -> None:
    signature = Signature((SPECTRUM, TensorSpec(name="x", shape=(2,), dtype="float32")), "cpu")
    spectrum = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
    written = signature.check((spectrum.conj(), spectrum.conj().imag))
    assert not any(tensor.is_conj() or tensor.is_neg() for tensor in written)
    assert written[0].numpy().tolist() == [1 - 2j, 3 + 4j]
    assert written[1].numpy().tolist() == [-2.0, 4.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_inputs_are_copied_from_the_cpu_to_a_gpu_and_back(signature: Signature) -> None:
    x, ids = right()
    on_gpu = Signature((X, IDS), "cuda:0")
    placed = on_gpu.place((x, ids.cuda()))
    assert [str(tensor.device) for tensor in placed] == ["cuda:0", "cuda:0"] and torch.equal(placed[0].cpu(), x)
    back = signature.place((x.cuda(), ids))
    assert [str(tensor.device) for tensor in back] == ["cpu", "cpu"] and torch.equal(back[0], x) and back[1] is ids
    assert refusal(on_gpu, x.to("meta"), ids)[1:] == ("float32[3, 16] on meta", f"float32[3, 16] on cuda:0{COPIED}")


class Elsewhere(torch.Tensor):
    """A tensor that says it lies on another device, from which ``to`` copies it."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 3)

    def to(self, device: torch.device) -> torch.Tensor:  # type: ignore[override]
        assert device == torch.device("cpu")
        return self.as_subclass(torch.Tensor).clone()


def test_an_input_on_another_device_is_copied_and_its_form_is_still_checked(signature: Signature) -> None:
    x, ids = right()
    placed = signature.place((x.as_subclass(Elsewhere), ids))
    assert type(placed[0]) is torch.Tensor and torch.equal(placed[0], x) and placed[1] is ids
    assert refusal(signature, x.half().as_subclass(Elsewhere), ids)[0] == "input x does not fit the plan"
