"""The changes that calls of a module make in it: StateWatch."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from autotune.errors import ModelError
from autotune.model import torchscript
from autotune.model.untouched import OWN, copies, is_plain_object, same_values

if TYPE_CHECKING:
    import torch

DEPTH = 3
"""The depth to which containers and plain objects of a module are compared."""
MOST_ENTRIES = 1000
"""The number of entries of one container that are compared."""

State = dict[str, object]


class StateWatch:
    """Snapshots of a module's buffers, parameters and attributes, taken before its first call and after each call."""

    def __init__(self, module: "torch.nn.Module") -> None:
        self.module = module
        self._before = self._state()
        self._first: State = self._before

    def note_first_call(self) -> None:
        """Keep the state after the first call: it may have filled a cache."""
        self._first = self._state()

    @property
    def set_at_first(self) -> list[str]:
        """The parts that the first call has set or changed, each with its kind before its name."""
        return list(_changed(self._before, self._first))

    def refuse_writes(self, name: str) -> None:
        """Raise ModelError if a later call has written into a buffer or a parameter."""
        now = self._state()
        for key in _changed(self._before, now):
            kind, _, path = key.partition(" ")
            at_first = kind == "buffer" and not _differ(self._first.get(key), now.get(key))
            if kind == "attribute" or at_first:
                continue
            raise self._writes(name, key, path)

    def refuse_accumulation(self, name: str) -> None:
        """Raise ModelError if an attribute has another value than after the first call, which had the same inputs.

        A value that a forward keeps of its last inputs is the same again, and no answer has depended on it. A counter
        or an average is not the same, and an answer may depend on it.
        """
        for key in _changed(self._first, self._state()):
            raise ModelError(
                f"the forward of {name} keeps state in its {key}, and a plan keeps no state between calls",
                found="another value of it after a second call on the same inputs",
                expected="a forward whose answer depends on its inputs alone",
                run="the model without it, or with this state as an input and an output",
            )

    def changed(self) -> list[str]:
        """Return the parts that differ from those before the first call."""
        return list(_changed(self._before, self._state()))

    def _writes(self, name: str, key: str, path: str) -> ModelError:
        owner = dict(self.module.named_modules())[path.rpartition(".")[0]]  # TorchScript has no get_submodule
        trained = f"; its part {path.rpartition('.')[0] or 'itself'} ({type(owner).__name__}) is in train mode"
        training = getattr(owner, "training", False)  # a frozen TorchScript module has no mode
        return ModelError(
            f"the forward of {name} writes into its {key}, and a plan keeps no state between calls",
            found=f"other values of {path} after a call{trained if training else ''}",
            expected="a forward that leaves its buffers and parameters as they are",
            run="the model with this state as an input and an output"
            + (", or with that part in eval mode" if training else ""),
        )

    def _state(self) -> State:
        state: State = {f"buffer {name}": _content(buffer) for name, buffer in self.module.named_buffers()}
        for name, parameter in self.module.named_parameters():
            state[f"parameter {name}"] = None if parameter.is_inference() else parameter._version
        for path, part in self.module.named_modules():
            own = torchscript.attributes(part) if torchscript.is_scripted(part) else vars(part).items()
            for name, value in own:
                if name not in (*OWN, "_modules") and not (name.startswith("_") and name.endswith("hooks")):
                    state[f"attribute {path}.{name}" if path else f"attribute {name}"] = _content(value)
        return state


def _changed(before: State, now: State) -> Iterator[str]:
    for key, value in now.items():
        if key not in before or _differ(before[key], value):
            yield key


def _content(value: object, depth: int = 0) -> object:
    """Return a value in a form for a later comparison: a copy of a tensor, the content of containers and objects."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().clone() if copies(value) else type(value).__name__
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    if depth < DEPTH:
        if isinstance(value, list | tuple | set | frozenset | deque):
            return [type(value).__name__, len(value), [_content(one, depth + 1) for one in list(value)[:MOST_ENTRIES]]]
        if isinstance(value, Mapping):
            some = list(value.items())[:MOST_ENTRIES]
            return ["mapping", len(value), [[str(key), _content(one, depth + 1)] for key, one in some]]
        if is_plain_object(value):
            return [type(value).__name__, [[name, _content(one, depth + 1)] for name, one in vars(value).items()]]
    return type(value).__name__


def _differ(value: object, other: object) -> bool:
    import torch

    if isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor):
        return not same_values(value, other)
    if isinstance(value, list) and isinstance(other, list):
        return len(value) != len(other) or any(map(_differ, value, other))
    return type(value) is not type(other) or not (value == other or value != value)
