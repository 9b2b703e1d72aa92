"""The behaviour of a model in calls: its answer, and every property that a plan of it cannot reproduce.

A plan answers by a graph, which has no state of its own, draws no random numbers and does not branch on values. So a
model is called three times before the capture: on its example, on another set of inputs, and on the example again.
"""

import logging
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.errors import AutotuneError, ModelError
from autotune.model.form import Form, flatten
from autotune.model.state_watch import StateWatch
from autotune.model.tensors import why_not
from autotune.model.untouched import same_values

if TYPE_CHECKING:
    import torch

    Inputs = Mapping[str, torch.Tensor]

log = logging.getLogger(__name__)

ROUNDING = 1e-5
"""The largest relative difference of two answers to one input: threads may add up a sum in any order."""

INTERPRETER_FAILED = "The following operation failed in the TorchScript interpreter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """A model's answer to its example, flat, with its form; ``other`` is its answer to the other inputs.

    ``written`` are the inputs that it writes into, ``set_at_first`` the parts of it that its first call has set, and
    ``notes`` are for its user.
    """

    answer: "tuple[torch.Tensor, ...]"
    other: "tuple[torch.Tensor, ...]"
    form: Form
    written: tuple[str, ...] = ()
    set_at_first: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def observe(
    name: str, module: "torch.nn.Module", call: "Callable[[Inputs], object]", example: "Inputs", other: "Inputs"
) -> Behaviour:
    """Call a model on both sets of inputs, and on the first once more; ``call`` calls it.

    The caller restores the module. Raises ModelError if an answer cannot be put together again or has a part that no
    backend returns, if its form or shapes differ between the inputs, if the model draws random numbers, or if it keeps
    state: writes into a buffer or a parameter, counts or averages in an attribute, or answers one input differently a
    second time.
    """
    _refuse_weights(module)
    watch = StateWatch(module)
    before = _random_numbers()
    given = _copies(example)
    answer, form = _answered(call, given, "")
    written = tuple(key for key in example if not same_values(given[key], example[key]))
    watch.note_first_call()
    varied, varied_form = _answered(call, _copies(other), "another set of inputs of these shapes")
    _refuse_other_form(name, form, answer, varied_form, varied)
    watch.refuse_writes(name)
    again, _ = _answered(call, _copies(example), "")
    after = _random_numbers()
    if differing := _differing(form, answer, again):
        raise _different(name, differing, watch, drew=before != after)
    if before[1:] != after[1:]:
        raise _draws(name, "numbers from Python's or NumPy's generator, which no graph draws", watch.module)
    watch.refuse_writes(name)
    watch.refuse_accumulation(name)
    notes = [_written_note(written)] if written else []
    notes += [_training_note(trained)] if (trained := in_train_mode(module)) else []
    return Behaviour(
        answer=answer, other=varied, form=form, written=written, set_at_first=tuple(watch.set_at_first),
        notes=tuple(notes),
    )  # fmt: skip


def refuse_first_values(name: str, call: "Callable[[Inputs], object]", other: "Inputs", behaviour: Behaviour) -> None:
    """Refuse a module whose answers depend on its first inputs; it has not been called since it was restored.

    A value that the first call sets is a cache if the answer to the other inputs is the same in the first call and in
    the second. Raises ModelError.
    """
    first, _ = _answered(call, _copies(other), "another set of inputs of these shapes")
    if differing := _differing(behaviour.form, behaviour.other, first):
        raise ModelError(
            f"the first call of {name} sets {', '.join(behaviour.set_at_first[:6])} from the values of its inputs",
            found=f"other answers by which inputs come first, in {', '.join(differing)}",
            expected="a model that was called before, so that these values are set",
            run="the model once on representative inputs, then this request",
        )


def refuse_random_operators(name: str, operators: Sequence[str], module: "torch.nn.Module") -> None:
    """Refuse a model whose graph draws random numbers that an answer depends on, however rarely that shows."""
    if operators:
        raise _draws(name, f"the operators {', '.join(operators[:6])} in its graph", module)


def in_train_mode(module: "torch.nn.Module") -> list[str]:
    """Return the parts that are in train mode though the whole is not, with their classes, without containers."""
    if _trains(module):
        return []
    return [
        f"{path} ({type(part).__name__})"
        for path, part in module.named_modules()
        if _trains(part) and not any(map(_trains, part.children()))
    ]


def _trains(part: "torch.nn.Module") -> bool:
    return bool(getattr(part, "training", False))  # a frozen TorchScript module has no mode


def _answered(
    call: "Callable[[Inputs], object]", inputs: "Inputs", what: str
) -> "tuple[tuple[torch.Tensor, ...], Form]":
    try:
        value = call(inputs)
    except AutotuneError:
        raise
    except (Exception, SystemExit) as error:
        shapes = ", ".join(f"{name} {dtype_name(t)}{list(t.shape)}" for name, t in inputs.items())
        raise ModelError(
            f"the model refuses {what or 'its inputs'}",
            found=f"{type(error).__name__}: {main_line(error)}",
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
    for output, tensor, another in zip(form.names, answer, other, strict=True):
        if tensor.shape != another.shape or tensor.dtype != another.dtype:
            raise depends_on_values(name, output, f"{list(tensor.shape)}, then {list(another.shape)} for other values")
    if form.node != other_form.node:
        raise ModelError(
            f"{name} answers with a constant that depends on the values of its inputs",
            found="parts beside the tensors that differ from call to call",
            expected="tensors for all parts that depend on the inputs",
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


def _differing(form: Form, answer: "Sequence[torch.Tensor]", other: "Sequence[torch.Tensor]") -> list[str]:
    """Return the outputs that differ by more than the order of a sum explains, with their distance."""
    differing = []
    for name, here, there in zip(form.names, answer, other, strict=True):
        if same_values(here, there):
            continue
        if here.shape != there.shape or not (here.is_floating_point() or here.is_complex()):
            differing.append(name)
            continue
        apart = float((_wide(here) - _wide(there)).abs().max())
        if not apart <= ROUNDING * float(_wide(here).abs().max()):
            differing.append(f"{name} by up to {apart:.2g}")
    return differing


def _wide(tensor: "torch.Tensor") -> "torch.Tensor":
    import torch

    return tensor.to(torch.complex128)


def _different(name: str, differing: list[str], watch: StateWatch, *, drew: bool) -> ModelError:
    finding = f"two calls on one input differ in {', '.join(differing)}"
    if drew:
        return _draws(name, finding, watch.module)
    trained = in_train_mode(watch.module)
    parts = f"; in train mode: {', '.join(trained[:6])}" if trained else ""
    changed = watch.changed()
    return ModelError(
        f"{name} answers one input differently from call to call: it draws random numbers of its own, or keeps state",
        found=finding + (f"; changed parts: {', '.join(changed[:6])}" if changed else "") + parts,
        expected="the same answer to the same input",
        run="the model with its state as an input and an output",
    )


def _draws(name: str, found: str, module: "torch.nn.Module") -> ModelError:
    trained = in_train_mode(module)
    parts = f"; in train mode: {', '.join(trained[:6])}" if trained else ""
    return ModelError(
        f"{name} draws random numbers in its forward, so no candidate can be judged by its answer",
        found=found + parts,
        expected="the same answer to the same input",
        run="the model with its random numbers as an input, or without them"
        + (", or with these parts in eval mode" if trained else ""),
    )


def _written_note(written: tuple[str, ...]) -> str:
    return (
        f"the forward writes into its input{'s' * (len(written) > 1)} {', '.join(written)}; "
        "a plan works on a copy and leaves the caller's tensor as it was"
    )


def _training_note(trained: list[str]) -> str:
    return f"in train mode and kept so, as the model is used: {', '.join(trained)}"


def _random_numbers() -> tuple[object, ...]:
    """Return values that change with every draw from torch's, Python's or NumPy's own generator."""
    import torch

    numpy = sys.modules.get("numpy")
    drawn = numpy.random.get_state()[1:3] if numpy is not None else ()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), tuple(str(state) for state in drawn)


def dtype_name(tensor: "torch.Tensor") -> str:
    """Return the dtype as torch writes it, without its prefix."""
    return str(tensor.dtype).removeprefix("torch.")


def main_line(error: BaseException) -> str:
    """Return the first line of an exception's message that is not empty; of TorchScript's, the last: the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if lines[0].startswith(INTERPRETER_FAILED) else lines[0]
