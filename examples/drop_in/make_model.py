"""Write resnet50.pt: the model of the ResNet-50 study, traced, in fp32."""

import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "studies"))
from models import resnet50


class Logits(torch.nn.Module):
    """The model with a tensor for its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = resnet50()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return one number for each of 1,000 classes."""
        return self.model(image).logits


warnings.simplefilter("ignore")
with torch.no_grad():
    traced = torch.jit.trace(Logits().eval(), torch.rand(1, 3, 224, 224), check_trace=False)
torch.jit.save(traced, sys.argv[1] if len(sys.argv) > 1 else "resnet50.pt")
