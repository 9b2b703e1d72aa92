"""A captured model copies to a device within the turns that it was given."""

import pytest

from autotune.model import precision
from autotune.model.source import CapturedModel
from autotune.records.device import Device
from autotune.testing.backend_conformance import CPU
from autotune.testing.toy_models import toy_source
from tests.turns import RecordedTurns

GPU = Device(kind="cuda", name="NVIDIA H200", uuid="gpu-test", capability=(9, 0), cores=16)


@pytest.mark.parametrize("wanted", ["fp32", "fp16"])
def test_only_the_copy_of_the_weights_to_a_gpu_is_in_a_turn(wanted, tmp_path, monkeypatch):
    turns, depths = RecordedTurns(), []
    cast = precision.in_precision

    def casting(*arguments):
        depths.append(("cast", turns.depth))
        return cast(*arguments)

    monkeypatch.setattr(precision, "in_precision", casting)
    monkeypatch.setattr(precision, "on_device", lambda program, device: depths.append((device, turns.depth)))
    model = CapturedModel(toy_source("tokens", tmp_path).folder, turn=turns)
    model.program(wanted, GPU)
    assert depths == [("cast", 0), (GPU.torch_name, 1)] and turns.events == ["begin", "end"]


def test_a_model_on_the_host_has_no_turn(tmp_path):
    turns = RecordedTurns()
    model = CapturedModel(toy_source("tokens", tmp_path).folder, turn=turns)
    model.program("fp32", CPU)
    model.example_inputs(CPU)
    assert not turns.events
