"""Steps that prove a backend on a toy model: capture the toy once, then build, load, run and compare it."""

from autotune import registry
from autotune.execute.answers import Done, ProveAnswer
from autotune.execute.channel import Channel
from autotune.execute.input_sets import read_sets, write_sets
from autotune.execute.requests import CaptureToyRequest, ProveRequest
from autotune.execute.stages import enter

INPUTS, REFERENCES = "inputs.safetensors", "references.safetensors"


def capture_toy(request: CaptureToyRequest, channel: Channel) -> Done:
    """Capture a small convolutional model once for all proofs, with inputs and the model's answers to them."""
    import torch

    from autotune.model import capture, source
    from autotune.model.precision import flat_module

    enter(channel, "build")
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(8, 16),
    ).eval()  # fmt: skip
    inputs = [torch.randn(1, 3, 32, 32) for _ in range(8)]
    captured = capture.capture("toy", 1, module, {"input": inputs[0]})
    source.write(request.folder, captured, {"input": inputs[0]}, factory=None, seed=0)
    reference = flat_module(captured.program)
    outputs = [spec.name for spec in captured.workload.outputs]
    with torch.no_grad():
        answers = [dict(zip(outputs, reference(tensor), strict=True)) for tensor in inputs]
    write_sets(request.folder / INPUTS, [{"input": tensor} for tensor in inputs])
    write_sets(request.folder / REFERENCES, answers)
    return Done()


def prove(request: ProveRequest, channel: Channel) -> ProveAnswer:
    """Build the first default configuration of one backend for the toy, load it, run it, and compare its answers.

    It takes no lock: the coordinator holds the device for all proofs.
    """
    import torch

    from autotune.accuracy import signal_errors
    from autotune.model.source import CapturedModel
    from autotune.runtime import artifact

    enter(channel, "build")
    device, model = request.device, CapturedModel(request.folder / "model")
    backend = registry.backend(request.backend)
    configuration = next(iter(backend.space(device, model.workload, has_factory=False).defaults))
    target = request.folder / "artifact"
    target.mkdir()
    backend.build(model, configuration, device, target)
    artifact.describe(target, configuration, model.workload, model.output_schema, example=model.example())
    enter(channel, "load")
    runner = artifact.load_runner(target, device)
    enter(channel, "check")
    inputs = read_sets(model.folder / INPUTS, model)
    expected = read_sets(model.folder / REFERENCES, model, outputs=True)
    with torch.no_grad():
        answers = [runner(*(tensor.to(device.torch_name) for tensor in tensors)) for tensors in inputs]
    on_cpu = [tuple(tensor.cpu() for tensor in answer) for answer in answers]
    return ProveAnswer(signal_error=max(signal_errors(on_cpu, expected)), configuration=str(configuration))
