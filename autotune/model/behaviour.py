"""What a model does when it is called: its answer, and whatever would make a plan of it answer otherwise.

A plan answers by a graph, which has no state of its own, draws nothing and does not look at values. So a model is
called three times before anything is captured: on its example, on another set of inputs, and on the example again.
"""

import logging
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autotune.errors import AutotuneError, ModelError
from autotune.model.form import Form, flatten
from autotune.model.tensors import why_not
from autotune.model.untouched import OWN, copies, same_values

if TYPE_CHECKING:
    import torch

    Inputs = Mapping[str, torch.Tensor]

log = logging.getLogger(__name__)

ROUNDING = 1e-5
"""Two answers to one input may differ by so much of their size if sums are made by several threads in any order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What a model answered to its example, flat, and in which form; ``other`` is its answer to the other inputs.

    ``written`` are the inputs that it writes into, ``filled`` the buffers that its first call has filled, with what,
    and ``notes`` what its user ought to know.
    """

    answer: "tuple[torch.Tensor, ...]"
    other: "tuple[torch.Tensor, ...]"
    form: Form
    written: tuple[str, ...] = ()
    filled: "Mapping[str, torch.Tensor]" = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def observe(
    name: str, module: "torch.nn.Module", call: "Callable[[Inputs], Any]", example: "Inputs", other: "Inputs"
) -> Behaviour:
    """Call a model on both sets of inputs, and on the first once more; ``call`` calls it.

    The caller puts the module back as it was. Raises ModelError if an answer cannot be put together again or holds what
    no backend gives, if its form or shapes differ between the inputs, if the model draws random numbers, or if it keeps
    state: writes into a buffer or a parameter, or answers one input differently a second time.
    """
    _refuse_weights(module)
    watch = _Watch(module)
    given = _copies(example)
    answer, form = _answered(call, given, "")
    written = tuple(key for key in example if not same_values(given[key], example[key]))
    watch.note_first_call()
    drawn = _random_numbers()
    varied, varied_form = _answered(call, _copies(other), "another set of inputs of these shapes")
    _refuse_other_form(name, form, answer, varied_form, varied)
    watch.refuse_writes(name)
    again, _ = _answered(call, _copies(example), "")
    if differing := _differing(form, answer, again):
        raise _different(name, differing, watch, drew=drawn != _random_numbers())
    watch.refuse_writes(name)
    notes = [_written_note(written)] if written else []
    notes += [_training_note(trained)] if (trained := in_train_mode(module)) else []
    return Behaviour(
        answer=answer, other=varied, form=form, written=written, filled=watch.filled, notes=tuple(notes)
    )  # fmt: skip


def refuse_first_values(
    name: str,
    module: "torch.nn.Module",
    call: "Callable[[Inputs], Any]",
    other: "Inputs",
    filled: "Mapping[str, torch.Tensor]",
) -> None:
    """Refuse a module whose first call fills a buffer with what depends on its inputs; ``module`` has not been called.

    A table that is the same whatever comes first is a cache, and the graph has it. Raises ModelError.
    """
    call(_copies(other))
    now = dict(module.named_buffers())
    for buffer, value in filled.items():
        if buffer not in now or not same_values(now[buffer], value):
            raise ModelError(
                f"the first call of {name} fills its buffer {buffer} from the values of its inputs",
                found="other values of it after a first call on other inputs",
                expected="a model that was called before, so that it keeps what it has learnt",
                run="the model once on representative inputs, then this request",
            )


def in_train_mode(module: "torch.nn.Module") -> list[str]:
    """Name the parts that are in train mode though the whole is not, with their classes; containers left out."""
    if module.training:
        return []
    return [
        f"{path} ({type(part).__name__})"
        for path, part in module.named_modules()
        if part.training and not any(child.training for child in part.children())
    ]


def _answered(
    call: "Callable[[Inputs], Any]", inputs: "Inputs", what: str
) -> "tuple[tuple[torch.Tensor, ...], Form]":
    try:
        value = call(inputs)
    except AutotuneError:
        raise
    except (Exception, SystemExit) as error:
        shapes = ", ".join(f"{name} {dtype_name(t)}{list(t.shape)}" for name, t in inputs.items())
        raise ModelError(
            f"the model refuses {what or 'its inputs'}",
            found=f"{type(error).__name__}: {first_line(error)}",
            expected=f"a forward that takes {shapes}"
            + (", with other values in the ranges of those given" if what else ""),
            run="the study with low, high or a file for its inputs; in Python, several sets of inputs" if what else "",
        ) from error
    tensors, form = flatten(value)
    if not tensors:
        raise ModelError("the model's answer has no tensor", found=repr(value)[:80], expected="at least one tensor")
    for name, tensor in zip(form.names, tensors, strict=True):
        if reason := why_not(tensor):
            raise ModelError(f"output {name} cannot be given by a plan", found=reason, expected="a dense tensor")
    return tuple(tensor.detach().clone() for tensor in tensors), form


def _copies(inputs: "Inputs") -> "dict[str, torch.Tensor]":
    return {name: tensor.clone() for name, tensor in inputs.items()}


def _refuse_weights(module: "torch.nn.Module") -> None:
    for kind, tensors in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
        for name, tensor in tensors:
            if reason := why_not(tensor):
                raise ModelError(f"the model's {kind} {name} cannot be taken", found=reason, expected="a dense tensor")


def _refuse_other_form(
    name: str, form: Form, answer: "Sequence[torch.Tensor]", other_form: Form, other: "Sequence[torch.Tensor]"
) -> None:
    if form.names != other_form.names:
        raise ModelError(
            f"{name} answers in another form for other values of its inputs",
            found=f"outputs {', '.join(form.names)}, then {', '.join(other_form.names)}",
            expected="one form for all inputs of these shapes",
        )
    for output, one, another in zip(form.names, answer, other, strict=True):
        if one.shape != another.shape or one.dtype != another.dtype:
            raise depends_on_values(name, output, f"{list(one.shape)}, then {list(another.shape)} for other values")
    if form.node != other_form.node:
        raise ModelError(
            f"{name} answers with a constant that depends on the values of its inputs",
            found="parts beside the tensors that differ from call to call",
            expected="tensors for whatever depends on the inputs",
            run="the model with an answer that holds the number as a tensor",
        )


def depends_on_values(name: str, output: str, found: str) -> ModelError:
    """Make the refusal of an output whose shape depends on the values of the inputs."""
    return ModelError(
        f"the shape of output {output} of {name} depends on the values of its inputs",
        found=found,
        expected="outputs of fixed shapes, for which alone a graph can be built and timed",
        run="the model with that part taken out (such as a mask that is applied afterwards), or padded to a fixed size",
    )


def _differing(form: Form, one: "Sequence[torch.Tensor]", other: "Sequence[torch.Tensor]") -> list[str]:
    """Name the outputs that differ by more than the order of a sum explains, with how far apart they are."""
    found = []
    for name, here, there in zip(form.names, one, other, strict=True):
        if same_values(here, there):
            continue
        if here.shape != there.shape or not (here.is_floating_point() or here.is_complex()):
            found.append(name)
            continue
        apart = float((_wide(here) - _wide(there)).abs().max())
        if not apart <= ROUNDING * float(_wide(here).abs().max()):
            found.append(f"{name} by up to {apart:.2g}")
    return found


def _wide(tensor: "torch.Tensor") -> "torch.Tensor":
    import torch

    return tensor.to(torch.complex128)


def _different(name: str, differing: list[str], watch: "_Watch", *, drew: bool) -> ModelError:
    found = f"two calls on one input differ in {', '.join(differing)}"
    trained = in_train_mode(watch.module)
    parts = f"; in train mode: {', '.join(trained[:6])}" if trained else ""
    if drew:
        return ModelError(
            f"{name} draws random numbers in its forward, so nobody can judge a candidate by its answer",
            found=found + parts,
            expected="the same answer to the same input",
            run="the model with its random numbers as an input, or without them"
            + (", or with these parts in eval mode" if trained else ""),
        )
    changed = [*watch.changed().values()]
    return ModelError(
        f"{name} answers one input differently from call to call: it draws random numbers of its own, or keeps state",
        found=found + (f"; what changed: {', '.join(changed[:6])}" if changed else "") + parts,
        expected="the same answer to the same input",
        run="the model with its state as an input and an output",
    )


def _written_note(written: tuple[str, ...]) -> str:
    return (
        f"the forward writes into its input{'s' * (len(written) > 1)} {', '.join(written)}; "
        "a plan works on a copy and leaves the caller's tensor as it was"
    )


def _training_note(trained: list[str]) -> str:
    return f"in train mode and kept so, as the model is used: {', '.join(trained)}"


class _Watch:
    """Notes what the calls of a module change in it."""

    def __init__(self, module: "torch.nn.Module") -> None:
        self.module = module
        self._buffers = {name: one.detach().clone() for name, one in module.named_buffers() if copies(one)}
        self._versions = {name: one._version for name, one in module.named_parameters()}
        self._attributes = self._plain()
        self.filled: dict[str, torch.Tensor] = {}

    def changed(self) -> dict[str, str]:
        """Name each buffer, parameter and attribute that is not as it was, with its kind before the name."""
        found = {}
        now = dict(self.module.named_buffers())
        for name, value in self._buffers.items():
            if name not in now or not same_values(now[name], value):
                found[f"buffer:{name}"] = f"buffer {name}"
        for name, one in self.module.named_parameters():
            if self._versions.get(name, one._version) != one._version:
                found[f"parameter:{name}"] = f"parameter {name}"
        for name, value in self._plain().items():
            if name not in self._attributes or not _equal(self._attributes[name], value):
                found[f"attribute:{name}"] = f"attribute {name}"
        return found

    def note_first_call(self) -> None:
        """Keep the values of the buffers that the first call has changed: it may have filled a cache."""
        changed = self.changed()
        now = self.module.named_buffers()
        self.filled = {name: one.detach().clone() for name, one in now if f"buffer:{name}" in changed}

    def refuse_writes(self, name: str) -> None:
        """Refuse a module that writes into a parameter, or into a buffer at more than its first call.

        Whether the graph answers like the module without what the first call has filled is seen when both are compared.
        """
        buffers = dict(self.module.named_buffers())
        for key, what in self.changed().items():
            kind, _, path = key.partition(":")
            cached = kind == "buffer" and path in self.filled and path in buffers
            if kind == "attribute" or (cached and same_values(self.filled[path], buffers[path])):
                continue
            owner = self.module.get_submodule(path.rpartition(".")[0])
            trained = f"; its part {path.rpartition('.')[0] or 'itself'} ({type(owner).__name__}) is in train mode"
            raise ModelError(
                f"the forward of {name} writes into its {what}, and a plan keeps no state between calls",
                found=f"other values of {path} after a call{trained if owner.training else ''}",
                expected="a forward that leaves its buffers and parameters as they are",
                run="the model with this state as an input and an output"
                + (", or with that part in eval mode" if owner.training else ""),
            )

    def _plain(self) -> dict[str, Any]:
        """Attributes of the module's parts that are no tensors' registries, tensors by a copy."""
        import torch

        found: dict[str, Any] = {}
        for path, part in self.module.named_modules():
            for name, value in vars(part).items():
                if name in (*OWN, "_modules") or (name.startswith("_") and name.endswith("hooks")):
                    continue
                if isinstance(value, torch.Tensor) and copies(value):
                    value = value.detach().clone()
                elif isinstance(value, list | dict | set | tuple):
                    value = (type(value), len(value))
                found[f"{path}.{name}" if path else name] = value
        return found


def _equal(one: Any, other: Any) -> bool:
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return same_values(one, other)
    if one is other:
        return True
    try:
        return bool(one == other)
    except Exception:  # a class of the user's own may compare as it likes; then it counts as changed
        return False


def _random_numbers() -> Any:
    """Return what changes whenever somebody draws from torch's, Python's or NumPy's own generator."""
    import torch

    numpy: Any = sys.modules.get("numpy")
    drawn = numpy.random.get_state()[1:3] if numpy is not None else ()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), tuple(str(one) for one in drawn)


def dtype_name(tensor: Any) -> str:
    """The dtype as torch writes it, without its prefix."""
    return str(tensor.dtype).removeprefix("torch.")


def first_line(error: BaseException) -> str:
    """The first line of an exception's message that says something."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
