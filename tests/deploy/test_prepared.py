"""A module in memory as a request: its sets of inputs, what is refused, and what is left alone."""

import random

import numpy
import pytest
import torch
from torch import nn

from autotune.deploy.prepared import in_memory, prepare
from autotune.errors import ModelError
from autotune.execute.input_sets import HELD_OUT_SETS, TIMING_SETS


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, pixels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.layer(pixels) * mask


def asked(inputs, module=None, seed=0):
    found, device = in_memory(module or Pair().eval(), "cpu")
    return prepare(found, inputs, device=device, name=None, seed=seed)


def sets(count):
    torch.manual_seed(count)
    return [{"pixels": torch.randn(2, 4), "mask": torch.ones(2, 1)} for _ in range(count)]


def test_one_set_is_varied_and_what_was_done_to_it_is_said():
    (given,) = sets(1)
    found = asked(given)
    assert len(found.timing) == TIMING_SETS and len(found.held_out) == HELD_OUT_SETS
    assert torch.equal(found.example["pixels"], given["pixels"])
    assert found.treatments["mask"] == "kept as it was given, for all its values are 1, a constant"
    assert found.treatments["pixels"].startswith("varied in order, contrast")
    assert not any(torch.equal(one["pixels"], given["pixels"]) for one in found.held_out)


@pytest.mark.parametrize("count", [2, 5, HELD_OUT_SETS, 15])
def test_several_sets_are_used_as_they_are(count):
    given = sets(count)
    found = asked(given)
    assert len(found.timing) == TIMING_SETS and len(found.held_out) == HELD_OUT_SETS
    own = [one["pixels"] for one in given]

    def is_given(one):
        return any(torch.equal(one["pixels"], each) for each in own)

    assert all(map(is_given, found.timing)) and torch.equal(found.example["pixels"], own[0])
    assert sum(map(is_given, found.held_out)) == min(count, HELD_OUT_SETS)
    assert bool(found.treatments) == (count < HELD_OUT_SETS)
    assert not torch.equal(found.held_out[0]["pixels"], found.example["pixels"])


def test_inputs_that_cannot_be_varied_are_refused_by_name_with_what_was_done():
    with pytest.raises(ModelError, match=r"input pixels is kept as it was given, for all its values are 0") as refused:
        asked({"pixels": torch.zeros(2, 4), "mask": torch.ones(2, 1)})
    assert "several sets" in str(refused.value) and "input mask" in str(refused.value)
    assert asked([{"pixels": torch.zeros(2, 4) + step, "mask": torch.ones(2, 1)} for step in range(9)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": torch.randn(3, 4)}, r"input pixels\n  found: float32\[2, 4\] in the first, float32\[3, 4\] in"),
        ({"mask": torch.ones(2, 1).long()}, r"input mask\n  found: float32\[2, 1\] in the first, int64\[2, 1\]"),
    ],
)
def test_sets_that_do_not_fit_one_another_are_refused(change, message):
    first, second = sets(2)
    with pytest.raises(ModelError, match=message):
        asked([first, {**second, **change}])


def test_a_list_of_the_arguments_of_one_call_is_explained():
    with pytest.raises(ModelError, match=r"a list holds several sets of inputs"):
        asked([torch.randn(2, 4), torch.ones(2, 1)])
    with pytest.raises(ModelError, match="empty list"):
        asked([])


def test_the_callers_tensors_and_random_state_stay(tmp_path):
    (given,), module = sets(1), Pair().eval()
    given["pixels"].requires_grad_(True)
    before = {name: tensor.detach().clone() for name, tensor in given.items()}
    torch.manual_seed(5), random.seed(5), numpy.random.seed(5)
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    found = asked(given, module)
    found.write(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert numpy.random.get_state()[1].tolist() == states[2]
    assert all(torch.equal(given[name], before[name]) for name in given) and given["pixels"].requires_grad


def test_nothing_is_written_until_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    asked(sets(1)[0])
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_module_is_refused_and_compiled_ones_are_taken():
    module = nn.Linear(4, 3).eval()
    for wrong in (lambda x: x, "model.pt"):
        with pytest.raises(ModelError):
            in_memory(wrong, "cpu")
    traced = torch.jit.trace(module, torch.ones(1, 4))  # type: ignore[no-untyped-call]
    exported = torch.export.export(module, (torch.ones(1, 4),))
    x = torch.randn(1, 4)
    for model in (traced, exported, exported.module()):
        prepared = asked(x, model)
        assert prepared.captured.workload.batch == 1 and prepared.own_file == (model is traced)
    assert asked(x, traced).name == "linear"


class Stubborn(nn.Linear):
    def __deepcopy__(self, memo):
        raise RuntimeError("Only Tensors created explicitly by the user support the deepcopy protocol")


def test_a_module_that_cannot_be_copied_to_the_cpu_says_why_and_what_to_do():
    from autotune.deploy.prepared import _copied

    with pytest.raises(ModelError, match=r"cannot be copied there\n  found: RuntimeError: Only Tensors") as refused:
        _copied(Stubborn(2, 2))
    assert "remove_weight_norm" in str(refused.value)
