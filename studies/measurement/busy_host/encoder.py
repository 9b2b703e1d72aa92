"""A small encoder, quick enough that a study of it can be repeated many times."""

from torch import nn


def encoder() -> nn.Module:
    """Four layers of 256; ``input_ids`` [batch, 64] to hidden states [batch, 64, 256] and a pooled one [batch, 256]."""
    from transformers import BertConfig, BertModel

    shape = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    model: nn.Module = BertModel(BertConfig(vocab_size=1000, **shape)).eval()
    return model
