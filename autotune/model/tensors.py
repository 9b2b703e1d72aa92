"""The tensors that backends can exchange: dense ones, with values of their own."""


def is_lazy(tensor: object) -> bool:
    """Return whether a parameter or buffer of a lazy layer has no shape yet."""
    from torch.nn import parameter

    return isinstance(tensor, parameter.UninitializedParameter | parameter.UninitializedBuffer)


def why_not(tensor: object) -> str:
    """Return why a tensor cannot be an input, an output or a weight of a tuned model; empty if it can.

    Backends exchange plain dense tensors. No form that all of them accept exists for a sparse, nested or quantised
    tensor, one of a class of its own, one on the ``meta`` device, or a view that conjugates or negates its values.
    """
    import torch

    if not isinstance(tensor, torch.Tensor):
        return f"{type(tensor).__name__} is no tensor"
    if is_lazy(tensor):
        return "it is not initialised"
    if tensor.is_nested:
        return "it is a nested tensor"
    if tensor.layout is not torch.strided:
        return f"it is sparse ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_quantized:
        return f"it is quantised ({str(tensor.dtype).removeprefix('torch.')})"
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return f"it is of the tensor class {type(tensor).__name__}"
    if tensor.device.type == "meta":
        return "it is on the meta device, so it has no values"
    if tensor.dtype is torch.complex128:
        return "its type complex128 has no form in the files that workers share; complex64 has"
    if tensor.is_conj():
        return "it is a conjugated view; tensor.resolve_conj() gives it values of its own"
    if tensor.is_neg():
        return "it is a negated view; tensor.resolve_neg() gives it values of its own"
    return ""
