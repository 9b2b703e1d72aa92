"""The products on which our kernels are compared with the libraries' calls: those of real models, with their epilogues.

Those of the studies' models are the kernel problems of the native backend
(:meth:`~autotune.backends.native.backend.NativeBackend.problems`, fp16, every fusion but back_to_back_gemm): a test
reads them from the captured graphs. A larger batch only adds rows. Those of a Llama with
7 billion parameters (4096 features, 11008 in the MLP) follow from its architecture; it has no biases, so a gate's SiLU
has a bias only because a problem's epilogue needs one.
"""

from dataclasses import dataclass
from typing import Any

from autotune.records.kernel_problem import GemmProblem

EPILOGUES: dict[str, dict[str, Any]] = {
    "none": {},
    "residual": {"residual": True},
    "bias": {"bias": True},
    "bias, ReLU": {"bias": True, "activation": "relu"},
    "bias, residual, ReLU": {"bias": True, "residual": True, "activation": "relu"},
    "bias, GELU": {"bias": True, "activation": "gelu"},
    "bias, SiLU": {"bias": True, "activation": "silu"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedShape:
    """One product: its model, the number of inputs (or tokens) at once, and its role in the model."""

    model: str
    batch: int
    what: str
    epilogue: str
    problem: GemmProblem

    @property
    def name(self) -> str:
        """Its name in ``--only`` and in tables."""
        return f"{self.model}-{self.batch}-{self.problem.m}x{self.problem.n}x{self.problem.k}"


_ROWS: tuple[tuple[str, int, str, str, int, int, int], ...] = (
    ("bert_base", 1, "queries, keys, values", "bias", 128, 2304, 768),
    ("bert_base", 1, "attention's output", "bias", 128, 768, 768),
    ("bert_base", 1, "MLP, first", "bias, GELU", 128, 3072, 768),
    ("bert_base", 1, "MLP, second", "bias", 128, 768, 3072),
    ("bert_base", 8, "queries, keys, values", "bias", 1024, 2304, 768),
    ("bert_base", 8, "attention's output", "bias", 1024, 768, 768),
    ("bert_base", 8, "MLP, first", "bias, GELU", 1024, 3072, 768),
    ("bert_base", 8, "MLP, second", "bias", 1024, 768, 3072),
    ("bert_base", 32, "queries, keys, values", "bias", 4096, 2304, 768),
    ("bert_base", 32, "attention's output", "bias", 4096, 768, 768),
    ("bert_base", 32, "MLP, first", "bias, GELU", 4096, 3072, 768),
    ("bert_base", 32, "MLP, second", "bias", 4096, 768, 3072),
    ("vit_b16", 1, "queries, keys, values", "bias", 197, 2304, 768),
    ("vit_b16", 1, "MLP, first", "bias, GELU", 197, 3072, 768),
    ("vit_b16", 1, "MLP, second", "bias", 197, 768, 3072),
    ("vit_b16", 8, "attention's output", "bias", 1576, 768, 768),
    ("vit_b16", 8, "MLP, first", "bias, GELU", 1576, 3072, 768),
    ("vit_b16", 32, "queries, keys, values", "bias", 6304, 2304, 768),
    ("vit_b16", 32, "MLP, first", "bias, GELU", 6304, 3072, 768),
    ("vit_b16", 32, "MLP, second", "bias", 6304, 768, 3072),
    ("resnet50", 1, "first stage, entry", "bias, ReLU", 3136, 64, 64),
    ("resnet50", 1, "first stage, exit", "bias, residual, ReLU", 3136, 256, 64),
    ("resnet50", 1, "third stage, exit", "bias, residual, ReLU", 196, 1024, 256),
    ("resnet50", 1, "fourth stage, entry", "bias, ReLU", 49, 512, 2048),
    ("resnet50", 1, "classes", "bias", 1, 1000, 2048),
    ("resnet50", 8, "second stage, exit", "bias, residual, ReLU", 6272, 512, 128),
    ("resnet50", 8, "third stage, entry", "bias, ReLU", 1568, 256, 1024),
    ("resnet50", 8, "fourth stage, exit", "bias, residual, ReLU", 392, 2048, 512),
    ("resnet50", 32, "first stage, exit", "bias, residual, ReLU", 100352, 256, 64),
    ("resnet50", 32, "third stage, entry", "bias, ReLU", 6272, 256, 1024),
    ("resnet50", 32, "classes", "bias", 32, 1000, 2048),
    ("llama_7b", 1, "queries, keys, values", "none", 1, 12288, 4096),
    ("llama_7b", 1, "MLP, gate", "bias, SiLU", 1, 11008, 4096),
    ("llama_7b", 1, "MLP, last", "residual", 1, 4096, 11008),
    ("llama_7b", 8, "MLP, gate", "bias, SiLU", 8, 11008, 4096),
    ("llama_7b", 8, "MLP, last", "residual", 8, 4096, 11008),
    ("llama_7b", 32, "queries, keys, values", "none", 32, 12288, 4096),
    ("llama_7b", 32, "MLP, last", "residual", 32, 4096, 11008),
    ("llama_7b", 512, "MLP, gate", "bias, SiLU", 512, 11008, 4096),
    ("llama_7b", 512, "attention's output", "residual", 512, 4096, 4096),
)

SHAPES: tuple[ComparedShape, ...] = tuple(
    ComparedShape(
        model=model,
        batch=batch,
        what=what,
        epilogue=epilogue,
        problem=GemmProblem(m=m, n=n, k=k, **EPILOGUES[epilogue]),
    )
    for model, batch, what, epilogue, m, n, k in _ROWS
)
