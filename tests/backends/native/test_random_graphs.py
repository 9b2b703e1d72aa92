from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor
from torch.export import ExportedProgram

from autotune.backends.native.graph import Pass
from autotune.backends.native.passes import EXACT
from tests.backends.native.fusions.comparing import fused
from tests.backends.native.graphs import check, graphs
from tests.thoroughness import examples

# Shrinking exports a graph at each step, which takes minutes.
FEW = settings(
    max_examples=examples(20),
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("one", EXACT, ids=lambda one: one.name)
@FEW
@given(made=graphs())
def test_each_pass_keeps_every_bit(one: Pass, made: tuple[ExportedProgram, tuple[Tensor, ...]]) -> None:
    program, inputs = made
    check(program, [one], *inputs)


def test_depthwise_convolutions_in_random_graphs_stay_within_rounding() -> None:
    matches: Counter[str] = Counter()

    @settings(FEW, max_examples=max(examples(60), 24))
    @given(made=graphs())
    def check_fused(made: tuple[ExportedProgram, tuple[Tensor, ...]]) -> None:
        program, inputs = made
        done, before, after = fused(program, ["depthwise"], *inputs)
        matches.update(done.matches)
        for one, other in zip(before, after, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3, equal_nan=True)

    check_fused()
    assert matches["depthwise"] > 1


def test_all_exact_passes_together_keep_every_bit() -> None:
    found: Counter[str] = Counter()

    def keep_every_bit(made: tuple[ExportedProgram, tuple[Tensor, ...]]) -> None:
        program, inputs = made
        found.update(check(program, EXACT, *inputs).matches)

    # Which graphs are drawn depends on the modules that are imported, whose constants hypothesis tries.
    for many in (examples(40), 120):
        if not all(found[one.name] for one in EXACT):
            settings(FEW, max_examples=many)(given(made=graphs())(keep_every_bit))()
    assert all(found[one.name] for one in EXACT), f"graphs in which a pass has nothing to do prove nothing: {found}"
