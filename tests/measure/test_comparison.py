import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.errors import RequestError
from autotune.measure.block import protocol_of
from autotune.measure.comparison import TOLERANCE, comparable, drift
from autotune.measure.statistics import median
from autotune.records.trial import Measurement

NOISES = ("normal", "spikes", "two peaks")


def measured(rng, latency_ms=10.0, *, blocks=20, size=3, noise=0.01, kind="normal", processes=None, spread=0.0):
    """Blocks of one candidate, each with a level of its own and samples about it; a process has a level too."""
    of_block = [index * (processes or 1) // blocks for index in range(blocks)]
    levels = rng.normal(0, noise, blocks) + rng.normal(0, spread, processes or 1)[of_block]
    if kind == "spikes":
        levels += rng.exponential(20 * noise, blocks) * (rng.random(blocks) < 0.1)
    if kind == "two peaks":
        levels += 0.1 * (rng.random(blocks) < 0.4)
    samples = latency_ms * np.exp(levels[:, None] + rng.normal(0, noise / 2, (blocks, size)))
    return Measurement(
        samples_ms=tuple(tuple(map(float, block)) for block in samples),
        conditions={} if processes is None else {"processes": of_block},
        protocol=protocol_of("finals", "cuda", 4),
    )


def statuses(pairs):
    found = [drift(stored, fresh).status for stored, fresh in pairs]
    return {status: found.count(status) for status in ("holds", "drifted", "cannot_tell")}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"l2": "cold"}, ['l2: "steady" and "cold"']),
        ({"device": "cpu", "sets": 1}, ['device: "cuda" and "cpu"', "sets: 4 and 1"]),
        ({"flush_bytes": 1}, ["flush_bytes: absent and 1"]),
    ],
)
def test_measurements_of_different_modes_do_not_compare(changes, named):
    first = Measurement(samples_ms=((1.0,),) * 3, protocol=protocol_of("finals", "cuda", 4))
    second = Measurement(samples_ms=((1.0,),) * 3, protocol={**first.protocol, **changes})
    for check in (comparable, drift):
        with pytest.raises(RequestError) as error:
            check(first, second)
        assert all(part in str(error.value) for part in named)
        assert str(error.value).count(" and ") == len(named)
    with pytest.raises(RequestError):
        comparable(second, first)


def test_how_a_call_was_timed_does_not_identify_a_measurement():
    first = Measurement(samples_ms=((1.0,),), protocol=protocol_of("finals", "cpu", 4, grouped=8) | {"shape": (1, 2)})
    second = Measurement.from_dict(
        json.loads(json.dumps(first.as_dict())) | {"protocol": {**first.protocol, "grouped": 1, "shape": [1, 2]}}
    )
    comparable(first, second)


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_equals_seldom_drift(kind, noise):
    rng = np.random.default_rng(7)
    found = statuses(
        (measured(rng, noise=noise, kind=kind, blocks=blocks), measured(rng, noise=noise, kind=kind))
        for blocks in (3, 6, 20) * 50
    )
    # At 5% an interval would be off in 7.5 of 150; 14 or more then have a probability of 2%.
    assert found["drifted"] <= 13
    if (kind, noise) == ("normal", 0.01):
        assert found["drifted"] == 0 and found["holds"] >= 130


def test_the_interval_covers_the_true_ratio():
    rng, covered = np.random.default_rng(8), 0
    for _ in range(200):
        low, high = drift(measured(rng, noise=0.05), measured(rng, 10.5, noise=0.05)).interval
        covered += low <= 1.05 <= high
    assert covered >= 0.93 * 200


@pytest.mark.parametrize("factor", [1.1, 1 / 1.1])
def test_an_injected_ten_percent_is_drift(factor):
    rng = np.random.default_rng(9)
    found = statuses((measured(rng), measured(rng, 10.0 * factor)) for _ in range(40))
    assert found["drifted"] == 40
    noisy = statuses((measured(rng, noise=0.03), measured(rng, 10.0 * factor, noise=0.03)) for _ in range(40))
    assert noisy["drifted"] >= 34 and noisy["holds"] == 0
    small = statuses((measured(rng, blocks=3), measured(rng, 10.0 * factor, blocks=5)) for _ in range(40))
    assert small["drifted"] >= 34


def test_what_is_detectable_is_found_in_about_four_of_five():
    rng, found = np.random.default_rng(10), 0
    effect = median([drift(measured(rng), measured(rng)).detectable for _ in range(60)])
    for _ in range(300):
        low, _ = drift(measured(rng), measured(rng, 10.0 * (1 + effect))).interval
        found += low > 1
    # Three standard deviations of the count about 80%, which the error of the effect itself uses up in part.
    assert 0.73 * 300 <= found <= 0.93 * 300


def test_a_small_change_within_the_tolerance_holds_however_sure():
    rng = np.random.default_rng(11)
    result = drift(measured(rng, noise=0.002), measured(rng, 10.3, noise=0.002))
    assert result.status == "holds" and result.interval[0] > 1.02
    strict = drift(measured(rng, noise=0.002), measured(rng, 10.3, noise=0.002), tolerance=0.02)
    assert strict.status == "drifted" and strict.headline == f"drifted by {strict.ratio - 1:+.1%}"


def test_what_straddles_the_tolerance_cannot_be_told():
    stored = Measurement(samples_ms=tuple((10.0 + 0.01 * index,) for index in range(20)))
    fresh = Measurement(samples_ms=tuple((10.1 + 0.05 * index,) for index in range(20)))
    result = drift(stored, fresh)
    assert result.status == "cannot_tell" and 1.02 < result.interval[0] < 1 + TOLERANCE < result.interval[1]
    assert result.headline == "cannot tell" and "neither" in result.reason
    worse = Measurement(samples_ms=tuple((10.3 + 0.05 * index,) for index in range(20)))
    assert drift(stored, worse).status == "drifted"


@pytest.mark.parametrize(("stored", "fresh"), [(2, 20), (20, 1)])
def test_too_few_blocks_tell_nothing(stored, fresh):
    rng = np.random.default_rng(13)
    result = drift(measured(rng, blocks=stored), measured(rng, 50.0, blocks=fresh))
    assert (result.status, result.interval, result.detectable) == ("cannot_tell", None, None)
    assert result.reason == f"{stored} and {fresh} blocks, stored and fresh; each side needs at least 3"


def test_flags_spoil_a_comparison_and_are_named():
    rng = np.random.default_rng(14)
    result = drift(measured(rng), measured(rng, 20.0), flags=["throttled", "canary_drift", "throttled"])
    assert result.status == "cannot_tell" and "under canary_drift, throttled" in result.reason
    assert result.ratio == pytest.approx(2.0, rel=0.02) and result.interval[0] > 1.9


def test_processes_that_differ_are_not_taken_for_drift():
    rng = np.random.default_rng(15)
    noted = [(measured(rng, processes=3, spread=0.05), measured(rng, processes=3, spread=0.05)) for _ in range(100)]
    blind = [tuple(Measurement(samples_ms=side.samples_ms, protocol=side.protocol) for side in pair) for pair in noted]
    assert statuses(noted)["drifted"] <= 1
    assert statuses(blind)["drifted"] >= 10
    alike = statuses(
        (measured(rng, processes=3, spread=0.002), measured(rng, 11.0, processes=3, spread=0.002)) for _ in range(40)
    )
    assert alike["drifted"] >= 38


def test_too_few_processes_are_said():
    rng = np.random.default_rng(16)
    three, one = measured(rng, processes=3), measured(rng, processes=1)
    assert "processes" not in drift(three, three).reason
    assert "not counting differences between processes" in drift(three, one).reason


def test_figures_follow_from_the_block_medians():
    rng = np.random.default_rng(17)
    stored, fresh = measured(rng), measured(rng, 10.2)
    result = drift(stored, fresh)
    assert result.stored_ms == median([median(block) for block in stored.samples_ms])
    assert result.fresh_ms == median([median(block) for block in fresh.samples_ms])
    assert result.ratio == result.fresh_ms / result.stored_ms
    assert json.loads(json.dumps(result.as_dict())) == {
        "status": "holds",
        "stored_ms": result.stored_ms,
        "fresh_ms": result.fresh_ms,
        "ratio": result.ratio,
        "interval": list(result.interval),
        "detectable": result.detectable,
        "reason": result.reason,
    }


def test_equal_samples_hold_exactly():
    still = Measurement(samples_ms=((5.0, 5.0),) * 3)
    result = drift(still, still)
    assert (result.status, result.ratio, result.interval) == ("holds", 1.0, pytest.approx((1.0, 1.0), rel=1e-12))


@st.composite
def sides(draw):
    """Two measurements of 3 to 12 blocks, with or without processes, by any amount apart."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = draw(st.sampled_from([1e-3, 0.01, 0.1]))
    processes, kind = draw(st.sampled_from([None, 1, 3])), draw(st.sampled_from(NOISES))
    latencies = (10.0, 10.0 * draw(st.sampled_from([0.9, 1.0, 1.04, 1.1])))
    return tuple(
        measured(rng, latency, blocks=draw(st.integers(3, 12)), noise=noise, kind=kind, processes=processes)
        for latency in latencies
    )


@settings(max_examples=60, deadline=None)
@given(sides(), st.randoms())
def test_the_order_of_blocks_does_not_matter(pair, random):
    def shuffled(side):
        order = list(range(len(side.samples_ms)))
        random.shuffle(order)
        noted = side.conditions.get("processes")
        return Measurement(
            samples_ms=tuple(tuple(random.sample(side.samples_ms[index], 3)) for index in order),
            conditions={} if noted is None else {"processes": [noted[index] for index in order]},
            protocol=side.protocol,
        )

    same(drift(*map(shuffled, pair)), drift(*pair))


@settings(max_examples=60, deadline=None)
@given(sides(), st.floats(1e-3, 1e3))
def test_scaling_both_changes_nothing(pair, factor):
    def scaled(side):
        blocks = tuple(tuple(factor * sample for sample in block) for block in side.samples_ms)
        return Measurement(samples_ms=blocks, conditions=side.conditions, protocol=side.protocol)

    same(drift(*map(scaled, pair)), drift(*pair))


@settings(max_examples=60, deadline=None)
@given(sides())
def test_exchanging_the_two_turns_the_ratio_round(pair):
    forward, back = drift(*pair), drift(*pair[::-1])
    assert back.status == forward.status and back.ratio == pytest.approx(1 / forward.ratio)
    assert back.interval == pytest.approx((1 / forward.interval[1], 1 / forward.interval[0]))
    assert forward.interval[0] <= forward.ratio <= forward.interval[1]


def same(found, expected):
    assert (found.status, found.ratio) == (expected.status, pytest.approx(expected.ratio))
    assert found.interval == pytest.approx(expected.interval)
    assert found.detectable == pytest.approx(expected.detectable, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -0.1, math.nan])
def test_a_tolerance_that_is_none_is_refused(tolerance):
    still = Measurement(samples_ms=((5.0,),) * 3)
    with pytest.raises(ValueError, match="tolerance"):
        drift(still, still, tolerance=tolerance)
