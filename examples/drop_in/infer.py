"""Load a TorchScript file, call it 100 times to warm up and 1,000 times to measure, and print the mean."""

import sys
import time

import torch

path = sys.argv[1] if len(sys.argv) > 1 else "resnet50.pt"
calls = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
device = "cuda" if torch.cuda.is_available() else "cpu"
model = torch.jit.load(path).to(device).eval()
image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)

with torch.no_grad():
    for _ in range(min(100, calls)):
        answer = model(image)
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        answer = model(image)
    if device == "cuda":
        torch.cuda.synchronize()
    mean_ms = 1e3 * (time.perf_counter() - begin) / calls

top = answer.flatten().topk(3)
print(f"{mean_ms:.3f} ms a call on {device}, mean of {calls}")
best = zip(top.indices.tolist(), top.values.tolist(), strict=True)
print("best three:", ", ".join(f"{index} ({value:.3f})" for index, value in best))
