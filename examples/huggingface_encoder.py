"""Tune a Hugging Face encoder under a stricter accuracy limit, and list the finalists.

The model is made from a configuration, so nothing is downloaded; ``AutoModel.from_pretrained`` gives yours. The answer
keeps the form of the model's own, a dataclass of transformers::

    python examples/huggingface_encoder.py --budget 10s --backends eager,torchscript,onnxruntime
"""

import argparse

import torch
from transformers import BertConfig, BertModel

import autotune


def main() -> None:
    """Tune the encoder, list the finalists, and read the plan's answer by the names of its outputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="2m", help="time of active search (the finals come on top)")
    parser.add_argument("--db", help="the tuning database; by default your own")
    parser.add_argument("--backends", type=lambda names: tuple(names.split(",")), help="such as eager,onnxruntime")
    options = parser.parse_args()

    torch.manual_seed(0)
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
    model = BertModel(BertConfig(vocab_size=1000, **shape)).eval()
    inputs = {"input_ids": torch.randint(0, 1000, (1, 64)), "attention_mask": torch.ones(1, 64, dtype=torch.int64)}

    outcome = autotune.tune(
        model, inputs, name="encoder", budget=options.budget, db=options.db,
        constraints={"signal_error": {"last_hidden_state": 0.005, "default": 0.02}},
        backends=options.backends,
    )  # fmt: skip
    print(f"status: {outcome.status}; found in the database: {outcome.cached}; trials: {dict(outcome.trials)}")
    for finalist in outcome.finalists:
        print(f"{finalist['latency_ms']:9.3f} ms  signal error {finalist['signal_error']:.1e}  {finalist['backend']}")

    fast = autotune.load(model, inputs, db=options.db, name="encoder", constraints={"signal_error": 0.02})
    answer = fast(**inputs)
    print(f"{type(answer).__name__}: last_hidden_state {tuple(answer.last_hidden_state.shape)}")
    print("seconds until the plan could answer:", {step: round(taken, 3) for step, taken in fast.seconds.items()})
    fast.close()


if __name__ == "__main__":
    main()
