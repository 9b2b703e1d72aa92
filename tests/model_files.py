"""Models in files, as their users write them: a convolutional network and an encoder, traced, scripted and exported."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn


class Convolutional(nn.Module):
    """Two convolutions and a head: an image to four numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 8, 3, stride=2), nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.norm(self.first(image))))).mean(dim=(2, 3)))


class Encoder(nn.Module):
    """An encoder layer over token ids: a dict of two outputs; the mask may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 16), nn.Linear(16, 3)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, ids: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> dict[str, Tensor]:
        hidden = self.layer(self.embedding(ids))
        if mask is not None:
            hidden = hidden * mask.unsqueeze(-1)
        return {"logits": self.head(hidden) * scale, "pooled": hidden.mean(dim=1)}


def convolutional() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    return Convolutional().eval(), {"image": torch.randn(2, 3, 12, 12)}


def encoder() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    return Encoder().eval(), {"ids": torch.randint(0, 50, (2, 6)), "mask": torch.rand(2, 6)}


MODELS = {"convolutional": convolutional, "encoder": encoder}
KINDS = ("traced", "scripted", "exported")


def compiled(model: nn.Module, inputs: dict[str, Tensor], kind: str) -> torch.jit.ScriptModule:
    """Trace or script a module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "scripted":
            return torch.jit.script(model)
        return torch.jit.trace(model, tuple(inputs.values()), strict=False, check_trace=False)


def write(name: str, kind: str, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Write a model into a folder; returns its file, and inputs for it."""
    model, inputs = MODELS[name]()
    path = folder / f"{name}-{kind}.{'pt2' if kind == 'exported' else 'pt'}"
    if kind == "exported":
        torch.export.save(torch.export.export(model, (), inputs), path)
    else:
        compiled(model, inputs, kind).save(str(path))
    return path, inputs


def answers(name: str, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Return the flat answer of the eager model."""
    with torch.no_grad():
        answer = MODELS[name]()[0](**inputs)
    return list(answer.values()) if isinstance(answer, dict) else [answer]
