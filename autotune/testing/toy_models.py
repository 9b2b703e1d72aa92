"""Small models for tests of backends: captured, built and answered as a study does it; imports torch."""

import functools
import itertools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from autotune.backend import Backend, Configuration, Device, Workload
from autotune.model.capture import capture
from autotune.model.source import CapturedModel, write
from autotune.runtime.artifact import describe

SEED = 7


class Convolutional(nn.Module):
    """Convolution, batch norm, ReLU, pooling and a linear head: an image to one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)
        self.norm.running_mean = torch.empty(16).uniform_(-0.5, 0.5)
        self.norm.running_var = torch.empty(16).uniform_(0.5, 2.0)

    def forward(self, image: Tensor) -> Tensor:
        """Return five numbers for each image [batch, 3, height, width]."""
        pooled = torch.relu(self.norm(self.convolution(image))).mean(dim=(2, 3))
        return torch.nn.functional.linear(pooled, self.head.weight, self.head.bias)


class Tokens(nn.Module):
    """Integer inputs, a mask, and a dict of a floating and an integer output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 16)
        self.mix = nn.Linear(16, 16)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the sum of the hidden states [batch, 16], and the index of its largest element."""
        hidden = torch.nn.functional.gelu(self.mix(self.embedding(ids))) * mask.unsqueeze(-1)
        return {"pooled": hidden.sum(dim=1), "best": hidden.sum(dim=1).argmax(dim=-1)}


class Mixed(nn.Module):
    """Both of them in one, for a backend with slow builds."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutional = Convolutional()
        self.tokens = Tokens()

    def forward(self, image: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the outputs of both parts."""
        return {"image": self.convolutional(image), **self.tokens(ids, mask)}


class Numbered(nn.Module):
    """Embeds numbers that begin at 1: a zero is out of its range."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(12, 8), nn.Linear(8, 3)

    def forward(self, month: Tensor) -> Tensor:
        """Return three numbers for each month."""
        answer: Tensor = self.head(torch.tanh(self.embedding(month - 1)))
        return answer


TOYS: Mapping[str, Callable[[], nn.Module]] = {
    "convolutional": Convolutional,
    "tokens": Tokens,
    "mixed": Mixed,
    "numbered": Numbered,
}
USUAL = ("convolutional", "tokens")
"""The toys on which a backend is tested if it does not choose others."""


def toy_inputs(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Return inputs of a toy by name, drawn under the seed; batch 2."""
    if name == "mixed":
        return {**toy_inputs("convolutional", seed), **toy_inputs("tokens", seed)}
    generator = torch.Generator().manual_seed(seed)
    if name == "convolutional":
        return {"image": torch.randn(2, 3, 16, 16, generator=generator)}
    if name == "numbered":
        return {"month": torch.randint(1, 13, (2, 5), generator=generator)}
    ids = torch.randint(0, 32, (2, 6), generator=generator)
    return {"ids": ids, "mask": (ids % 5 != 0).float()}


def toy_module(name: str) -> nn.Module:
    """Return a toy with the weights of its captured form."""
    torch.manual_seed(SEED)
    return TOYS[name]().eval()


def toy_source(name: str, folder: Path, *, factory: bool = False) -> CapturedModel:
    """Capture a toy into ``folder`` as a build worker gets it; with its factory if requested."""
    module, inputs = toy_module(name), toy_inputs(name)
    captured = capture(name, 2, module, inputs)
    spec = f"{__file__}:{type(module).__name__}" if factory else None
    write(folder, captured, inputs, factory=spec, seed=SEED, module=module if factory else None)
    return CapturedModel(folder)


def expected(name: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return the flat answer of the toy itself."""
    with torch.no_grad():
        answer: Tensor | dict[str, Tensor] = toy_module(name)(**inputs)
    return tuple(answer.values()) if isinstance(answer, dict) else (answer,)


@functools.cache
def toy_workload(name: str) -> Workload:
    """Return the workload of a toy."""
    with tempfile.TemporaryDirectory() as folder:
        return toy_source(name, Path(folder)).workload


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltToy:
    """An artifact of a toy, and the name of that toy."""

    toy: str
    folder: Path
    configuration: Configuration


def plain_configuration(backend: Backend, device: Device, source: CapturedModel) -> Configuration:
    """Return the first configuration that computes in fp32, of the defaults if there is one, without a factory."""
    space = backend.space(device, source.workload, has_factory=False)
    return next(c for c in itertools.chain(space.defaults, space) if c["precision"] in ("fp32", "default"))


def build_artifact(
    backend: Backend, source: CapturedModel, configuration: Configuration, device: Device, folder: Path
) -> None:
    """Build into an empty folder and describe the artifact, as a build worker does."""
    backend.build(source, configuration, device, folder)
    describe(
        folder, configuration, source.workload, source.output_schema, example=source.example(),
        signature=source.signature,
    )  # fmt: skip


def build_toy(
    backend: Backend,
    device: Device,
    toy: str,
    folder: Path,
    *,
    factory: bool = False,
    configuration: Configuration | None = None,
) -> BuiltToy:
    """Capture and build a toy below ``folder``."""
    source = toy_source(toy, folder / "source", factory=factory)
    artifact = folder / "artifact"
    artifact.mkdir()
    chosen = configuration or plain_configuration(backend, device, source)
    build_artifact(backend, source, chosen, device, artifact)
    return BuiltToy(toy=toy, folder=artifact, configuration=chosen)
