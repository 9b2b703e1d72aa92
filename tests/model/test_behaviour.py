"""What a call of a model shows: state, random numbers, writes, and parts in train mode, each refused or reported."""

import random

import numpy
import pytest
import torch
from torch import nn

from autotune.errors import ModelError
from autotune.model.capture import capture


def captured(module, example, other=None):
    return capture("model", 4, module, {"x": example}, {"x": torch.randn_like(example) if other is None else other})


class Levels(nn.Module):
    """A running level in a buffer, moved by so much at each call."""

    def __init__(self, step: float, where: str) -> None:
        super().__init__()
        self.step, self.where = step, where
        self.inner = nn.Module()
        self.inner.register_buffer("level", torch.zeros(6))
        self.seen = torch.zeros(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        level = self.inner.level if self.where == "buffer" else self.seen
        level.lerp_(x.mean(0), self.step)
        return x - level


@pytest.mark.parametrize("step", [1e-6, 1e-3, 0.5])
def test_a_buffer_that_is_written_into_is_refused_by_its_name_however_slowly(step):
    module = Levels(step, "buffer").eval()
    with pytest.raises(ModelError, match=r"buffer inner\.level"):
        captured(module, torch.rand(4, 6) + 1)
    assert module.inner.level.abs().sum() == 0


class Block(nn.Module):
    """The write stands in a block that the exported graph keeps as a graph of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            self.count.add_(1)
            return x.sin()


def test_a_write_within_an_inner_graph_is_seen():
    with pytest.raises(ModelError, match="buffer count"):
        captured(Block().eval(), torch.rand(4, 6))


def test_state_in_a_plain_attribute_is_named_and_put_back():
    module = Levels(0.5, "attribute").eval()
    with pytest.raises(ModelError, match=r"attribute seen|differently"):
        captured(module, torch.rand(4, 6) + 1)
    assert module.seen.abs().sum() == 0


class Draws(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.own = torch.Generator().manual_seed(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        drawn = {
            "torch": lambda: torch.randn_like(x),
            "dropout": lambda: nn.functional.dropout(x, 0.5, training=True),
            "python": lambda: x * random.random(),
            "numpy": lambda: x * float(numpy.random.rand()),
            "own": lambda: torch.randn(x.shape, generator=self.own),
        }
        return x + drawn[self.how]()


@pytest.mark.parametrize("how", ["torch", "dropout", "python", "numpy", "own"])
def test_random_numbers_are_recognised_before_anything_is_captured(how):
    with pytest.raises(ModelError, match=r"draws random numbers.*\n.*two calls on one input differ"):
        captured(Draws(how).eval(), torch.rand(4, 6))


def test_a_part_in_train_mode_is_refused_by_what_it_does_and_reported_if_it_does_nothing():
    norm = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).eval()
    norm[1].train()
    with pytest.raises(ModelError, match=r"buffer 1\.running_mean.*\n.*BatchNorm1d.*train mode"):
        captured_input(norm)
    drop = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)).eval()
    drop[1].train()
    with pytest.raises(ModelError, match=r"random numbers.*\n.*in train mode: 1 \(Dropout\)"):
        captured_input(drop)
    harmless = nn.Sequential(nn.Linear(6, 6), nn.ReLU()).eval()
    harmless[1].train()
    assert captured_input(harmless).notes == ("in train mode and kept so, as the model is used: 1 (ReLU)",)
    assert harmless[1].training and not harmless.training


def captured_input(module):
    return capture("model", 4, module, {"input": torch.rand(4, 6)}, {"input": torch.rand(4, 6)})


class Writes(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.mul_(2) + y


def test_a_write_into_an_input_is_reported_and_the_graph_works_on_a_copy():
    from autotune.model.precision import flat_module

    x, y = torch.rand(4), torch.rand(4)
    before = x.clone()
    found = capture("writes", 4, Writes(), {"x": x, "y": y})
    assert found.written == ("x",) and "input x" in " ".join(found.notes) and torch.equal(x, before)
    (answer,) = flat_module(found.program)(x, y)
    assert torch.equal(x, before) and torch.equal(answer, 2 * before + y)


class Holder:
    """An object of the user's own."""

    def __init__(self) -> None:
        self.last, self.calls = None, 0


class Keeps(nn.Module):
    """Keeps what its last inputs gave, or counts its calls, somewhere."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.last, self.calls, self.holder, self.log = None, 0, Holder(), {"all": [0]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "last":
            self.last, self.holder.last = x.detach() * 2, x.detach()
        elif self.how == "calls":
            self.calls += 1
        elif self.how == "holder":
            self.holder.calls += 1
        else:
            self.log["all"].append(1)
        return x + 1 if self.calls < 10 else x


def test_what_a_forward_keeps_of_its_last_inputs_is_no_reason_to_refuse_and_is_put_back():
    module = Keeps("last")
    captured(module, torch.rand(4))
    assert module.last is None and module.holder.last is None


@pytest.mark.parametrize(("how", "name"), [("calls", "calls"), ("holder", "holder"), ("log", "log")])
def test_what_counts_is_refused_by_its_name_and_put_back(how, name):
    module = Keeps(how)
    with pytest.raises(ModelError, match=f"keeps state in its attribute {name}"):
        captured(module, torch.rand(4))
    assert module.calls == module.holder.calls == 0 and module.log == {"all": [0]}


class Rarely(nn.Module):
    """Draws numbers that hardly ever show."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "python":
            return x * (2 if random.random() < 1e-9 else 1)
        if self.how == "unused":
            torch.rand(3)
            return x + 1
        return torch.where(torch.rand_like(x) < 1e-9, torch.zeros_like(x), x)


def test_random_numbers_are_refused_however_rarely_they_show():
    for how in ("python", "torch"):
        with pytest.raises(ModelError, match="draws random numbers"):
            captured(Rarely(how).eval(), torch.rand(4))
    captured(Rarely("unused").eval(), torch.rand(4))
    quiet = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.0)).eval()
    quiet[1].train()
    captured_input(quiet)


class FirstDecides(nn.Module):
    """Takes a scale from whatever comes first, and keeps it where no buffer was."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.scale, self.stats = where, None, {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.where == "attribute":
            self.scale = x.std() if self.scale is None else self.scale
            return x * self.scale
        if self.where == "buffer":
            if not hasattr(self, "late"):
                self.register_buffer("late", x.std())
            return x * self.late
        self.stats.setdefault("scale", x.std())
        return x * self.stats["scale"]


@pytest.mark.parametrize("where", ["attribute", "buffer", "dict"])
def test_a_first_call_that_decides_is_refused_wherever_it_keeps_that(where):
    module = FirstDecides(where).eval()
    with pytest.raises(ModelError, match="the first call of model sets"):
        captured(module, torch.rand(4, 6), torch.rand(4, 6) * 9)
    assert module.scale is None and not module.stats and not hasattr(module, "late")


def test_hooks_and_wrappers_see_a_call_as_its_user_makes_it():
    from autotune.model.precision import flat_module

    module = nn.Sequential(nn.Linear(6, 6), nn.ReLU()).eval()
    module.register_forward_pre_hook(lambda _, given: tuple(one + 1 for one in given))
    module.register_forward_hook(lambda _, given, answer: answer + given[0])
    x = torch.rand(4, 6)
    found = captured_input(module)
    torch.testing.assert_close(flat_module(found.program)(x)[0], module(x))
    kept = {}
    module[0].register_forward_hook(lambda _, given, answer: kept.__setitem__("last", answer))
    captured_input(module)
    assert type(kept["last"]) is torch.Tensor, "nothing of the export stays behind"


def test_weights_made_in_inference_mode_are_taken_or_refused_with_a_reason():
    with torch.inference_mode():
        module = nn.Linear(6, 3).eval()
    try:
        captured_input(module)
    except ModelError as error:
        assert "nference" in str(error)


def test_blocks_that_torch_cannot_write_down_are_refused_at_once():
    class Nested(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", enabled=False):
                return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))

    with pytest.raises(ModelError, match="cannot save its graph"):
        captured(Nested().eval(), torch.rand(4))


@pytest.mark.parametrize("error", [SystemExit(2), ValueError("no"), AssertionError()])
def test_a_model_that_does_not_take_varied_inputs_says_which(error):
    class Sorted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not bool((x.diff() > 0).all()):
                raise error
            return x * 2

    with pytest.raises(ModelError, match=r"refuses another set of inputs"):
        captured(Sorted(), torch.arange(4.0), torch.tensor([3.0, 1.0, 2.0, 0.0]))


class Numbers(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, object]:
        return {"y": x, "mean": float(x.mean())}


def test_a_number_that_depends_on_the_input_is_refused():
    with pytest.raises(ModelError, match="constant that depends on the values"):
        captured(Numbers(), torch.rand(4))
