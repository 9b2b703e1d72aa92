"""Tune a PyTorch model of your own, and check that the plan answers like the model.

Run it twice: the first run searches, the second finds the stored plan::

    python examples/own_model.py --budget 20s
"""

import argparse

import torch

import autotune


class Classifier(torch.nn.Module):
    """A small convolutional network; replace it by your own model."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), torch.nn.BatchNorm2d(32), torch.nn.ReLU(),
            torch.nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False), torch.nn.BatchNorm2d(64), torch.nn.ReLU(),
            torch.nn.Conv2d(64, 128, 3, stride=2, padding=1, bias=False), torch.nn.BatchNorm2d(128), torch.nn.ReLU(),
        )  # fmt: skip
        self.head = torch.nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits [batch, 10] of images [batch, 3, 96, 96]."""
        logits: torch.Tensor = self.head(self.features(images).mean(dim=(2, 3)))
        return logits


def main() -> None:
    """Tune the model, compare the answers, and time both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="1m", help="time of active search (the finals come on top)")
    parser.add_argument("--db", help="the tuning database; by default your own")
    parser.add_argument("--backends", type=lambda names: tuple(names.split(",")), help="such as eager,onnxruntime")
    options = parser.parse_args()

    torch.manual_seed(0)  # the same weights in every run, so that the second run finds the plan of the first
    model = Classifier().eval()
    images = torch.randn(4, 3, 96, 96)

    fast = autotune.optimize(
        model, images, name="classifier", budget=options.budget, db=options.db, backends=options.backends
    )
    print(fast)
    with torch.no_grad():
        difference = (fast(images) - model(images)).abs().max().item()
        print(f"largest difference of an answer: {difference:.1e}")
        print(f"model: {autotune.measure(model, images, limit_s=3)}")
        print(f"plan:  {autotune.measure(fast, images, limit_s=3)}")
    fast.close()


if __name__ == "__main__":
    main()
