"""The precisions in which a device and a backend compute, and the thread counts worth trying."""

from autotune.records.device import Device

# Backends whose CPU kernels use reduced precisions if the processor has the instructions. ONNX Runtime's CPU provider
# has hardly any such kernels: it casts to fp32 and back around each node, which is fp32 with additional rounding.
_REDUCED_ON_CPU = ("eager", "inductor", "native", "openvino", "torchscript")
# ONNX Runtime's CUDA provider has no bf16 convolution, and its fused attention and norm kernels are fp16 and fp32.
_BF16_ON_CUDA = ("eager", "inductor", "native", "torchscript")
_BF16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}
_FP16_INSTRUCTIONS = {"avx512_fp16", "amx_fp16"}


def precisions(device: Device, backend: str) -> tuple[str, ...]:
    """Return the precisions of ``backend`` on ``device`` among fp32, tf32, bf16 and fp16; fp32 comes first."""
    if device.kind == "cpu":
        return ("fp32", *_reduced_on_cpu(device, backend))
    if device.capability is None:
        return ("fp32",)
    supported = ["fp32"]
    if device.capability >= (8, 0):
        supported.append("tf32")
    if device.capability >= (8, 0) and backend in _BF16_ON_CUDA:
        supported.append("bf16")
    if device.capability >= (7, 0):
        supported.append("fp16")
    return tuple(supported)


def threads(device: Device) -> tuple[int, ...]:
    """Return thread counts of a CPU: all its cores, then smaller powers of two; none on a GPU, which has no threads."""
    if device.kind != "cpu":
        return ()
    powers = [1 << exponent for exponent in reversed(range(device.cores.bit_length()))]
    return (device.cores, *(power for power in powers if power < device.cores))


def _reduced_on_cpu(device: Device, backend: str) -> tuple[str, ...]:
    if backend not in _REDUCED_ON_CPU:
        return ()
    instructions = set(device.isa)
    bf16 = ("bf16",) if instructions & _BF16_INSTRUCTIONS else ()
    fp16 = ("fp16",) if instructions & _FP16_INSTRUCTIONS else ()
    return bf16 + fp16
