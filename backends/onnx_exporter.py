"""The exporter of torch.onnx, as the backends that build from an ONNX file declare it."""

MODULES = ("torch.onnx", "onnxscript", "torch.onnx._internal.exporter._core")
"""The modules that an export imports; together they take seconds."""
