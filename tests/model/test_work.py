"""The work of a captured graph: operations and compulsory traffic, counted on shapes alone."""

import pytest
import torch
import torch.nn.functional as functional
from torch import nn

from autotune.model import capture, work

FLOAT = 4


def counted(module, **inputs):
    captured = capture.capture("net", 2, module.eval(), inputs)
    assert work.work(captured.program) == work.Work(
        flops=captured.workload.flops, traffic_bytes=captured.workload.traffic_bytes
    )
    return captured.workload


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.conv = nn.Linear(8, 16), nn.Conv2d(3, 4, 3, bias=False)

    def forward(self, x, image):
        return self.linear(x).relu(), self.conv(image)


def test_a_product_and_a_convolution_count_two_operations_for_each_multiplication():
    workload = counted(Layers(), x=torch.randn(2, 8), image=torch.randn(2, 3, 6, 6))
    assert workload.flops == 2 * 2 * 8 * 16 + 2 * (2 * 4 * 4 * 4) * 3 * 9
    weights, inputs, outputs = 8 * 16 + 16 + 4 * 3 * 9, 2 * 8 + 2 * 3 * 6 * 6, 2 * 16 + 2 * 4 * 4 * 4
    assert workload.traffic_bytes == FLOAT * (weights + inputs + outputs)


class Attention(nn.Module):
    def __init__(self, mask=None):
        super().__init__()
        self.mask = mask

    def forward(self, x):
        with torch.no_grad():
            return functional.scaled_dot_product_attention(x, x, x, attn_mask=self.mask)


@pytest.mark.parametrize("mask", [None, torch.randn(16, 16)])
def test_both_products_of_an_attention_count_also_in_a_nested_graph(mask):
    assert counted(Attention(mask), x=torch.randn(2, 4, 16, 8)).flops == 2 * (2 * 2 * 4 * 16 * 16 * 8)


class Tables(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.tied = nn.Embedding(1000, 8), nn.Embedding(50, 8)
        self.register_buffer("unused", torch.randn(100))

    def forward(self, ids):
        return self.words(ids) + self.tied(ids % 50), functional.linear(self.tied(ids % 50), self.tied.weight)


def test_of_a_table_the_rows_that_are_read_count_and_what_is_unused_does_not():
    workload = counted(Tables(), ids=torch.randint(0, 1000, (2, 3)))
    rows, inputs, outputs = 2 * 3 * 8, 2 * 3 * 8, 2 * 3 * 8 + 2 * 3 * 50
    assert workload.traffic_bytes == FLOAT * (rows + 50 * 8 + outputs) + inputs, "int64 has eight bytes, too"


def test_half_precision_counts_as_fp32_and_a_shared_weight_once():
    shared = nn.Linear(8, 8, bias=False)
    workload = counted(nn.Sequential(shared, nn.ReLU(), shared).bfloat16(), input=torch.randn(2, 8).bfloat16())
    assert workload.traffic_bytes == FLOAT * (8 * 8 + 2 * 2 * 8) and workload.flops == 2 * (2 * 2 * 8 * 8)


def test_a_graph_that_cannot_be_counted_is_captured_without_its_work(monkeypatch):
    class Refusing(torch.utils.flop_counter.FlopCounterMode):
        def get_total_flops(self):
            raise NotImplementedError("no formula")

    monkeypatch.setattr("torch.utils.flop_counter.FlopCounterMode", Refusing)
    workload = counted(nn.Linear(8, 8), input=torch.randn(2, 8))
    assert (workload.flops, workload.traffic_bytes) == (None, None)


def test_counting_leaves_the_structure_and_the_program_as_they_are(monkeypatch):
    inputs = {"x": torch.randn(2, 8), "image": torch.randn(2, 3, 6, 6)}
    torch.manual_seed(0)
    module = Layers()
    workload = counted(module, **inputs)
    monkeypatch.setattr(capture, "work", lambda program: work.Work())
    without = capture.capture("net", 2, module.eval(), inputs).workload
    assert (without.structure, without.weights) == (workload.structure, workload.weights) and without.flops is None
