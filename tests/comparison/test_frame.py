"""A comparison in a notebook."""

import math
import sys

import pytest

from autotune.comparison.comparison import compare_store as compare
from autotune.comparison.prices import Prices
from autotune.errors import RequestError
from tests.comparison.database import CPU, H200, L4, add


def test_a_frame_has_a_row_a_cell_with_figures_and_units(store):
    add(store, H200, 0.5)
    add(store, CPU, 40.0)
    add(store, L4, 2.0, batch=8)
    frame = compare(store, prices=Prices(currency="EUR", per_hour={"h200": 4.0})).to_frame()
    assert len(frame) == 6 and frame.attrs["units"]["latency"] == "ms" and frame.attrs["units"]["cost"] == "EUR"
    row = frame[(frame.batch == 1) & (frame.device == "nvidia-h200")].iloc[0]
    assert (row.latency, row.state) == (0.5, "compared") and row.latency_low < 0.5 < row.latency_high
    missing = frame[frame.state == "missing"]
    assert len(missing) == 3 and missing.latency.isna().all() and missing.command.str.contains("autotune tune").all()
    assert math.isnan(frame[frame.device == "amd-epyc-2c"].iloc[0].energy)


def test_without_pandas_it_says_what_to_install(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(RequestError, match="pip install pandas"):
        compare(store).to_frame()


def test_a_notebook_shows_a_table_with_all_text_escaped(store):
    add(store, H200, 0.5, name="<script>alert(1)</script>")
    text = compare(store)._repr_html_()
    assert "<script>" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "only one device class" in text and "latency (ms)" in text
