"""A module becomes a graph: flat tensors in, flat tensors out, by torch.export."""

import contextlib
import io
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from autotune.errors import AutotuneError, ModelError
from autotune.model import fingerprint, schema, torchscript
from autotune.model.behaviour import (
    Behaviour,
    depends_on_values,
    dtype_name,
    main_line,
    observe,
    refuse_first_values,
    refuse_random_operators,
)
from autotune.model.form import Form, Node, flatten
from autotune.model.masks import drop_neutral_masks
from autotune.model.program import has_varying_sizes
from autotune.model.silence import silenced
from autotune.model.tensors import is_lazy
from autotune.model.untouched import process_state, untouched
from autotune.model.work import work
from autotune.records.workload import TensorSpec, Workload

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    Inputs = Mapping[str, torch.Tensor]

GRAPH_TOLERANCE = 1e-3
"""The largest distance of the graph from the module, relative to the largest value of an output."""
HALF_TOLERANCE = 3e-2
"""The same for outputs in bf16 and fp16."""

_NOISY = ("torch.fx.experimental.symbolic_shapes", "torch.export")
"""The loggers by which torch prints the graphs of a failed capture: the refusal reports the error."""

_DATA_DEPENDENT = re.compile(
    r"data.?dependent|unbacked|GuardOnData|u\d+ (?:==|<|>|!=)|control flow|value of a symbolic", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """A captured model: its workload, and the form of its own answer.

    ``inputs`` maps a call's arguments to its flat inputs. ``answers`` are the module's own, flat, to the example and to
    the other set of inputs. ``written`` are the inputs that it writes into (its graph works on copies of them),
    ``notes`` are for its user, and ``weights_s`` is the time of the fingerprint of the weights.
    """

    workload: Workload
    form: Form
    inputs: schema.InputSchema
    weights_s: float = 0.0
    answers: "tuple[tuple[torch.Tensor, ...], ...]" = ()
    written: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def output_schema(self) -> Node:
        """The form of the answer as plain data."""
        return self.form.node


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedGraph(Captured):
    """A captured model of torch, with its graph on the CPU."""

    program: "ExportedProgram"


def caller(module: "torch.nn.Module", names: Sequence[str]) -> "Callable[[Mapping[str, torch.Tensor]], object]":
    """Return a function that calls a module on named inputs as its users do: by position, until one is left out.

    Hooks and wrappers see arguments by position; a module that was captured before takes all of them by position.
    """
    import torch

    first = list(takewhile(lambda name: name in names, schema.by_position(module.forward)))
    if isinstance(module, torch.fx.GraphModule):
        first = [name for name in names if name not in schema.by_keyword(module.forward)]
    rest = [name for name in names if name not in first]

    def call(inputs: "Mapping[str, torch.Tensor]") -> object:
        return module(*(inputs[name] for name in first), **{name: inputs[name] for name in rest})

    return call


def flat(
    module: "torch.nn.Module", names: tuple[str, ...], written: Sequence[str] = (), *, in_order: bool = False
) -> "torch.nn.Module":
    """Wrap a module so that it takes its named inputs as flat tensors and returns a tuple of flat tensors.

    It gets copies of the inputs that it writes into. Training flags stay as they are. With ``in_order`` the module
    takes the inputs by position, in the order of the names, whatever its own names for them are.
    """
    import torch

    call = (lambda inputs: module(*inputs.values())) if in_order else caller(module, names)
    copied = [name in written for name in names]

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module
            self.training = False

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            given = [tensor.clone() if copy else tensor for tensor, copy in zip(tensors, copied, strict=True)]
            return tuple(flatten(call(dict(zip(names, given, strict=True))))[0])

    return Flat()


def capture(
    name: str,
    batch: int,
    module: "torch.nn.Module",
    inputs: "Mapping[str, torch.Tensor]",
    other: "Mapping[str, torch.Tensor] | None" = None,
) -> CapturedGraph:
    """Capture ``module`` as it answers the named ``inputs`` (tensors on the CPU), and leave it as it was.

    ``other`` is another set of inputs of the same shapes, on which the graph is compared with the module, too. A root
    in train mode is captured in eval mode; parts in train mode under a root in eval mode stay so. Lazy layers are
    initialised by a first call. Raises ModelError if the module refuses the inputs, cannot be captured, or behaves as
    no graph can (see :mod:`autotune.model.behaviour`).
    """
    import torch

    from autotune.model.torchscript_graph import first_graph

    example = schema.bind(module.forward, inputs)
    names = tuple(example)
    varied = {key: (other or example)[key] for key in names}
    notes = _initialise(module, example)
    if isinstance(module, torch.fx.GraphModule) and has_varying_sizes(module):
        notes.append("the program takes inputs of several sizes; it is specialised to those of the inputs given")
    if torchscript.is_scripted(module):
        notes += torchscript.notes(module)
    if getattr(module, "training", False):
        notes.append("the model is in train mode; it is tuned as it answers in eval mode")
    with _evaluating(module) as own, torch.no_grad():
        behaviour = observe(name, own, caller(own, names), example, varied)
        if torchscript.is_scripted(own):
            program = first_graph(
                name, own, example,
                lambda found: _from_module(name, found, behaviour, example, varied, in_order=True),
            )  # fmt: skip
        else:
            program = _from_module(name, own, behaviour, example, varied)
        # A hook or an object of the user's own that has kept values of the export now keeps those of a real call.
        caller(own, names)({key: value.clone() for key, value in example.items()})
    if behaviour.set_at_first:
        with _evaluating(module) as own, torch.no_grad():
            refuse_first_values(name, caller(own, names), varied, behaviour)
    begin = time.perf_counter()
    weights = fingerprint.weights(program)
    weights_s = time.perf_counter() - begin
    counted = work(program)
    workload = Workload(
        name=name,
        batch=batch,
        structure=fingerprint.structure(program),
        former=fingerprint.former(program),
        weights=weights,
        inputs=tuple(map(_spec, names, example.values())),
        outputs=tuple(map(_spec, behaviour.form.names, behaviour.answer)),
        features=fingerprint.features(program),
        flops=counted.flops,
        traffic_bytes=counted.traffic_bytes,
    )
    return CapturedGraph(
        program=program, workload=workload, form=replace(behaviour.form, inputs=names),
        inputs=schema.InputSchema.of(module.forward, names), weights_s=weights_s,
        answers=(behaviour.answer, behaviour.other), written=behaviour.written, notes=(*notes, *behaviour.notes),
    )  # fmt: skip


@contextlib.contextmanager
def _evaluating(module: "torch.nn.Module") -> "Iterator[torch.nn.Module]":
    """Yield the module in eval mode, to be called; it is left as it was, TorchScript by means of a copy."""
    import torch

    if torchscript.is_scripted(module):
        # A few calls are not worth the optimiser, which rewrites the graph in each of the first two.
        with process_state(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            yield torchscript.copied(module)
        return
    with untouched(module):
        if module.training:
            _evaluate(module)
        yield module


def _from_module(
    name: str, module: "torch.nn.Module", behaviour: Behaviour, example: "Inputs", varied: "Inputs",
    *, in_order: bool = False,
) -> "ExportedProgram":  # fmt: skip
    """Return the graph of a module, which answers like it on both sets of inputs; raises ModelError."""
    program = _exported(name, flat(module, tuple(example), behaviour.written, in_order=in_order), example)
    _keep_buffers(program)
    refuse_random_operators(name, fingerprint.random_operators(program), module)
    drop_neutral_masks(program)
    _refuse_unsavable(name, program)
    _refuse_values(name, program, behaviour.form)
    _refuse_other_answers(name, program, behaviour, (example, varied))
    return program


def _initialise(module: "torch.nn.Module", inputs: "Mapping[str, torch.Tensor]") -> list[str]:
    """Call a module with lazy layers once, as its user would: the layers get their shapes and keep them."""
    import torch

    named = (*module.named_parameters(), *module.named_buffers())
    lazy = sorted({name.rpartition(".")[0] for name, tensor in named if is_lazy(tensor)})
    if not lazy:
        return []
    flags = {part: part.training for part in module.modules()}
    try:
        with torch.no_grad():
            module.eval()
            caller(module, tuple(inputs))({name: tensor.clone() for name, tensor in inputs.items()})
    except Exception as error:
        raise ModelError(
            "the model has lazy layers, which a first call initialises, and that call fails",
            found=f"{type(error).__name__}: {main_line(error)}",
            expected="a model that takes its inputs",
        ) from error
    finally:
        for part, training in flags.items():
            part.training = training
    return [f"lazy layers were initialised by a first call: {', '.join(lazy)}"]


def _evaluate(module: "torch.nn.Module") -> None:
    """Put a module into eval mode; a captured graph refuses, so only its flag is set."""
    try:
        module.eval()
    except NotImplementedError:
        module.training = False


def _exported(name: str, module: "torch.nn.Module", inputs: "Mapping[str, torch.Tensor]") -> "ExportedProgram":
    import torch

    try:
        with silenced(*_NOISY):
            return torch.export.export(module, tuple(tensor.clone() for tensor in inputs.values()))
    except AutotuneError:
        raise
    except Exception as error:
        text = str(error)
        data_dependent = _is_torchs(error) and bool(_DATA_DEPENDENT.search(f"{type(error).__name__} {text}"))
        raise ModelError(
            f"{name} cannot be captured by torch.export"
            + (": its computation depends on the values of its inputs" if data_dependent else ""),
            found=f"{type(error).__name__}: {main_line(error)}{_place(text)}",
            expected="a forward without control flow, and without shapes, that depend on the values of its inputs",
            run=f"torch.export.export(module, (), kwargs) with the inputs {', '.join(inputs)}, which shows the place",
        ) from error


def _is_torchs(error: BaseException) -> bool:
    """Return whether torch has raised an exception, by its class or its place; a user's own text proves nothing."""
    places = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(name.partition(".")[0] == "torch" for name in (type(error).__module__, *places[-1:]))


def _refuse_unsavable(name: str, program: "ExportedProgram") -> None:
    """Refuse a graph with nested graphs that torch cannot save and load again: workers get it as a file."""
    import torch

    if sum(1 for _ in fingerprint.graphs(program.graph_module)) == 1:
        return
    try:
        written = io.BytesIO()
        torch.export.save(program, written)
        written.seek(0)
        torch.export.load(written)
    except Exception as error:
        raise ModelError(
            f"torch.export captures {name}, but cannot save its graph and load it again",
            found=f"{type(error).__name__}: {main_line(error)}",
            expected="blocks under autocast or no_grad, and branches, that are not nested in one another",
            run="the model without the inner block (a model that is tuned computes no gradients anyway)",
        ) from error


def _keep_buffers(program: "ExportedProgram") -> None:
    """Replace the buffers and constants that a graph shares with the module by copies; the module gets its own back."""
    import torch

    buffers = set(program.graph_signature.inputs_to_buffers.values())
    for tensors in (program.state_dict, program.constants):
        for name, value in tensors.items():
            if isinstance(value, torch.Tensor) and (name in buffers or tensors is program.constants):
                tensors[name] = value.detach().clone()


def _place(text: str) -> str:
    """Return the user's own line that an error of torch.export names; empty if it names none."""
    lines = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', text)
    own = [(file, line, name) for file, line, name in lines if "site-packages" not in file and "/autotune/" not in file]
    return f" (in {own[-1][2]}, line {own[-1][1]})" if own else ""


def _refuse_values(name: str, program: "ExportedProgram", form: Form) -> None:
    """Refuse outputs whose size depends on values."""
    import torch

    outputs = next(node for node in program.graph.nodes if node.op == "output").args[0]
    kept = outputs[len(outputs) - len(form.names) :]
    for output, node in zip(form.names, kept, strict=True):
        value = getattr(node, "meta", {}).get("val")
        shape = value.shape if isinstance(value, torch.Tensor) else ()
        if any(not isinstance(size, int) for size in shape):
            raise depends_on_values(name, output, f"the shape [{', '.join(map(str, shape))}] in the captured graph")


def _refuse_other_answers(
    name: str, program: "ExportedProgram", behaviour: Behaviour, sets: "Sequence[Mapping[str, torch.Tensor]]"
) -> None:
    """Compare the graph with the module on both sets of inputs: the graph keeps the branch that Python took."""
    from autotune.model.precision import flat_module

    module = flat_module(program)
    for inputs, expected in zip(sets, (behaviour.answer, behaviour.other), strict=True):
        try:
            answer = module(*(tensor.clone() for tensor in inputs.values()))
        except Exception as error:
            raise _capture_mismatch(name, f"{type(error).__name__}: {main_line(error)}") from error
        for output, tensor, right in zip(behaviour.form.names, answer, expected, strict=True):
            if tensor.shape != right.shape or tensor.dtype != right.dtype:
                got, wanted = (f"{dtype_name(part)}{list(part.shape)}" for part in (tensor, right))
                raise _capture_mismatch(name, f"output {output} is {got}, not {wanted}")
            apart = _apart(tensor, right)
            if not apart <= (HALF_TOLERANCE if right.dtype.itemsize == 2 else GRAPH_TOLERANCE):
                raise _capture_mismatch(name, f"output {output} differs by {apart:.2g} of its largest value")


def _apart(tensor: "torch.Tensor", right: "torch.Tensor") -> float:
    """Return the largest difference of two outputs, relative to the largest value; of integers the differing share."""
    import torch

    if not right.numel():
        return 0.0
    if not (right.is_floating_point() or right.is_complex()):
        return float((tensor != right).double().mean())
    here, there = tensor.detach().to(torch.complex128), right.detach().to(torch.complex128)
    finite = there.isfinite()
    if not bool((finite == here.isfinite()).all()):
        return float("inf")
    size = float(there[finite].abs().max()) if bool(finite.any()) else 0.0
    apart = float((here - there)[finite].abs().max()) if bool(finite.any()) else 0.0
    return apart / max(size, 1e-30)


def _capture_mismatch(name: str, found: str) -> ModelError:
    return ModelError(
        f"the graph that torch.export captures of {name} does not answer like the model",
        found=found,
        expected="the model's own answer: a forward whose steps do not depend on state or on values of its inputs",
        run="the model with such a branch as a tensor operator (torch.where, torch.cond)",
    )


def _spec(name: str, tensor: "torch.Tensor") -> TensorSpec:
    return TensorSpec(name=name, shape=tuple(tensor.shape), dtype=dtype_name(tensor))
