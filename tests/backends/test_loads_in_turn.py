"""A built-in backend that loads in turn calls the model within one turn; before that it reads, copies and folds."""

import shutil

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from autotune import registry
from autotune.runtime.turn import computes_by
from autotune.testing.backend_conformance import CPU
from autotune.testing.toy_models import build_toy
from tests.turns import RecordedTurns

MODEL_WORDS = ("conv", "linear", "mm", "relu", "norm")


class Calls(TorchDispatchMode):
    """Records the operators of a model that torch calls, and how many turns are open then."""

    def __init__(self, turns):
        super().__init__()
        self.turns, self.depths = turns, []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.name()
        if any(word in name for word in MODEL_WORDS) and "reorder" not in name:  # weights in another order are copies
            self.depths.append(self.turns.depth)
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("name", [name for name in registry.BUILT_IN if registry.loads_in_turn(name)])
def test_the_model_is_called_in_one_turn(name, tmp_path):
    if name == "inductor" and shutil.which("g++") is None:
        pytest.skip("needs g++")
    backend, turns = registry.backend(name), RecordedTurns()
    built = build_toy(backend, CPU, "convolutional", tmp_path)
    with computes_by(turns), Calls(turns) as calls:
        backend.load(built.folder, CPU).close()
    assert turns.events == ["begin", "end"]
    assert all(calls.depths) and (calls.depths or name == "inductor"), "a compiled package calls no operator of torch"
