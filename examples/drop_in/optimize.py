"""Put the fastest TorchScript file of resnet50.pt in its place; the original is kept as resnet50.pt.orig."""

import sys

import torch

import autotune

if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else "resnet50.pt"
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    print(autotune.optimize_file(path, inputs=(image,)))
