"""Steps that make what is measured: prepare a model, compute its reference, build a configuration."""

import json
import shutil
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from autotune.execute import metric_steps
from autotune.execute.answers import BuildAnswer, Done, PrepareAnswer
from autotune.execute.candidate import on_device
from autotune.execute.channel import Channel
from autotune.execute.input_sets import (
    HELD_OUT,
    HELD_OUT_SETS,
    REFERENCE,
    TIMING,
    TIMING_SETS,
    read_sets,
    write_sets,
)
from autotune.execute.requests import BuildRequest, PrepareRequest, ReferenceRequest
from autotune.execute.stages import building, enter, holding

if TYPE_CHECKING:
    import torch

    from autotune.model.capture import Captured
    from autotune.model.source import CapturedModel
    from autotune.runtime.artifact import ModelAnswer


def prepare(request: PrepareRequest, channel: Channel) -> PrepareAnswer:
    """Make the module, draw the study's inputs, capture it, and write all of it into a folder.

    A model file is copied first, so that all that follows is of one content.
    """
    from autotune.model import factory, inputs, reading, source

    enter(channel, "build")
    before = set(sys.modules)
    folder, seed, batch, specs = request.folder, request.seed, request.batch, request.inputs
    with reading.watching() as seen, factory.folder_of(request.factory):
        example, other = inputs.generate(specs, batch, seed, 2, "example")
        captured, module = _captured(request, example, other)
        timing = inputs.generate(specs, batch, seed, TIMING_SETS, "timing")
        held_out = inputs.generate(specs, batch, seed, HELD_OUT_SETS, "heldout")
    drawn = {spec.name: spec.drawn_from for spec in specs if spec.file is None}
    constant = {name: values for name, values in drawn.items() if values in ("ones", "zeros")}
    source.write(
        folder, captured, example, factory=request.factory, seed=seed, module=module,
        treatments={name: f"all {values}, as the study says" for name, values in constant.items()},
    )  # fmt: skip
    write_sets(folder / TIMING, timing)
    write_sets(folder / HELD_OUT, held_out)
    loaded = set(sys.modules) - before
    return PrepareAnswer(
        workload=captured.workload,
        imported=tuple(name for name in sys.modules if name in loaded and reading.is_third_party(name)),
        read=seen.record(),
        notes=tuple(captured.notes),
    )


def _captured(
    request: PrepareRequest, example: "Mapping[str, torch.Tensor]", other: "Mapping[str, torch.Tensor]"
) -> "tuple[Captured, torch.nn.Module | None]":
    """Return the captured model, and its module if it is one of torch; a copy of its file lies in the folder."""
    from autotune.model import factory, model_file, onnx_capture, onnx_model, source
    from autotune.model.capture import capture
    from autotune.model.file_kind import ONNX

    spec = request.factory
    if model_file.is_file(spec):
        path = model_file.path_of(spec)
        kind = model_file.read(path).kind  # refuses what is no such file by its own name
        request.folder.mkdir(parents=True, exist_ok=True)
        if kind.model_format == ONNX:
            fixed = request.folder / source.OWN_ONNX
            onnx_model.write_fixed(path, example, fixed)
            return onnx_capture.capture_onnx(request.name, request.batch, fixed, example, other), None
        spec = model_file.source_of(shutil.copyfile(path, request.folder / source.OWN_FILE))
    module = factory.make_module(spec, request.seed)
    return capture(request.name, request.batch, module, example, other), module


def reference(request: ReferenceRequest, channel: Channel) -> Done:
    """Answer the held-out inputs by the model's reference in fp32 with TF32 off; refuse what cannot judge.

    It computes on the device, so it holds the shared lock: it runs beside builds, never beside a timing.
    """
    import torch

    from autotune import accuracy
    from autotune.model import source
    from autotune.runtime.switches import Switches

    folder, device = request.folder, request.device
    with holding(channel, device, "check", exclusive=False):
        Switches(tf32="off", threads=None).apply()
        model = source.CapturedModel(folder)
        answer_of = model.reference(device)
        with torch.inference_mode():
            answers = [answer_of(*on_device(device, inputs)) for inputs in read_sets(folder / HELD_OUT, model)]
        references = [tuple(tensor.cpu() for tensor in answer) for answer in answers]
    names = [spec.name for spec in model.workload.outputs]
    accuracy.check_reference(references, names, model.treatments)
    accuracy.check_metrics(references, names, metric_steps.functions_of(request.objective))
    write_sets(folder / REFERENCE, [dict(zip(names, answer, strict=True)) for answer in references])
    return Done()


def build(request: BuildRequest, channel: Channel) -> BuildAnswer:
    """Build a configuration into a folder, alone on the device if the build times kernels there.

    Otherwise it holds the shared lock if it uses the device, as every build for a CPU does, so that it computes beside
    no timing of any study: as a whole, or in the parts that compute on a GPU if its backend builds in turn. ``build_s``
    leaves out the waits for these parts.
    """
    from autotune import registry
    from autotune.kernel import KnownKernels
    from autotune.model.source import CapturedModel
    from autotune.runtime import artifact
    from autotune.runtime.switches import Switches

    configuration, device, target = request.configuration, request.device, request.target
    backend = registry.backend(configuration.backend)
    kernels = None if request.kernels is None else KnownKernels.from_dict(json.loads(request.kernels.read_text()))
    digest = "" if kernels is None else kernels.digest
    model = CapturedModel(request.folder, kernels)
    alone, in_turn = registry.builds_alone(configuration), registry.builds_in_turn(configuration.backend)
    with building(channel, device, uses_device=backend.build_uses_device, alone=alone, in_turn=in_turn) as turns:
        Switches.of(configuration).apply()
        begin = time.monotonic()
        backend.build(model, configuration, device, target)
        artifact.describe(
            target, configuration, model.workload, model.output_schema, example=model.example(), kernels=digest,
            signature=model.signature, answer=_own_answer(model),
        )  # fmt: skip
        return BuildAnswer(build_s=time.monotonic() - begin - turns.waited_s, kernels=digest)


def _own_answer(model: "CapturedModel") -> "ModelAnswer":
    """Return the model's own answer to the example, which was recorded when it was captured."""
    from autotune import accuracy
    from autotune.model.source import ANSWERS
    from autotune.runtime.artifact import ModelAnswer

    answers = read_sets(model.folder / ANSWERS, model, outputs=True)
    return ModelAnswer(tensors=answers[0], scales=accuracy.signal_scales(answers))
