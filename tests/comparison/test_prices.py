"""Files of prices: what they may say, and what is refused."""

import pytest

from autotune.comparison.prices import read_prices, unknown_names
from autotune.errors import RequestError
from tests.comparison.database import CPU, H200, L4

GOOD = """
currency = "EUR"
electricity_per_kwh = 0.25
[devices."nvidia-h200"]
per_hour = 3.9
[devices.l4]
per_hour = 1
"""


def written(tmp_path, text):
    path = tmp_path / "prices.toml"
    path.write_text(text)
    return path


def test_prices_are_found_by_a_part_of_the_name(tmp_path):
    prices = read_prices(written(tmp_path, GOOD))
    assert (prices.currency, prices.electricity_per_kwh) == ("EUR", 0.25)
    assert prices.of(H200.device_class) == 3.9 and prices.of(L4.device_class) == 1.0
    assert prices.of(CPU.device_class) is None


def test_the_longest_name_counts_and_two_of_one_length_are_refused(tmp_path):
    text = 'currency = "EUR"\n[devices.nvidia]\nper_hour = 9\n[devices."nvidia-l4"]\nper_hour = 2\n'
    prices = read_prices(written(tmp_path, text))
    assert prices.of(L4.device_class) == 2 and prices.of(H200.device_class) == 9
    text = 'currency = "EUR"\n[devices.l4]\nper_hour = 9\n[devices.L4]\nper_hour = 2\n'
    with pytest.raises(RequestError, match="two prices for nvidia-l4"):
        read_prices(written(tmp_path, text)).of(L4.device_class)


def test_names_that_fit_no_device_are_listed_with_the_nearest(tmp_path):
    text = GOOD + "[devices.h20]\nper_hour = 1\n[devices.h300]\nper_hour = 1\n"
    prices = read_prices(written(tmp_path, text))
    unknown = unknown_names(prices, [H200.device_class, L4.device_class])
    assert unknown["h20"] == unknown["h300"] == "fits no device of the database; there are: nvidia-h200"
    assert set(unknown) == {"h20", "h300"}


def test_a_name_that_a_longer_one_hides_is_said_to_fit(tmp_path):
    text = 'currency = "EUR"\n[devices.l4]\nper_hour = 9\n[devices."nvidia-l4"]\nper_hour = 2\n'
    unknown = unknown_names(read_prices(written(tmp_path, text)), [L4.device_class])
    assert unknown == {"l4": "fits nvidia-l4, and so does the longer name nvidia-l4, which counts"}


def test_a_name_fits_by_whole_words(tmp_path):
    text = 'currency = "EUR"\n[devices.l4]\nper_hour = 9\n[devices."nvidia-h20"]\nper_hour = 2\n'
    prices = read_prices(written(tmp_path, text))
    assert prices.of(L4.device_class) == 9
    assert prices.of("nvidia-l40s/whole/350w") is None and prices.of(H200.device_class) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("currency = ", "Invalid value"),
        ("[devices.l4]\nper_hour = 1\n", "currency None"),
        ('currency = "EUR"\n', "no devices"),
        ('currency = "EUR"\n[devices.l4]\n', "no per_hour"),
        ('currency = "EUR"\n[devices.l4]\nper_hour = -1\n', "per_hour = -1"),
        ('currency = "EUR"\n[devices.l4]\nper_hour = 0\n', "per_hour = 0"),
        ('currency = "EUR"\n[devices.l4]\nper_hour = nan\n', "per_hour = nan"),
        ('currency = "EUR"\n[devices.l4]\nper_hour = true\n', "per_hour = True"),
        ('currency = "EUR"\n[devices.l4]\nper_hour = "1 EUR"\n', "'1 EUR'"),
        ('currency = "EUR"\n[devices.l4]\nper_hour = 1\ncurrency = "USD"\n', "USD"),
        ('currency = "EUR"\n[devices.l4]\nper_month = 1\n', "per_month"),
        ('currency = "EUR"\n[devices]\nl4 = 3\n', "devices.l4 = 3"),
        ('currency = "EUR"\nelectricity_per_kwh = -1\n[devices.l4]\nper_hour = 1\n', "electricity_per_kwh = -1"),
        ('currency = "EUR"\nelectricty = 1\n[devices.l4]\nper_hour = 1\n', "electricty"),
    ],
)
def test_a_price_that_cannot_be_used_is_refused(tmp_path, text, found):
    path = written(tmp_path, text)
    with pytest.raises(RequestError) as raised:
        read_prices(path)
    assert found in raised.value.found and str(path) in str(raised.value) and raised.value.expected


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RequestError, match="No such file"):
        read_prices(tmp_path / "none.toml")
