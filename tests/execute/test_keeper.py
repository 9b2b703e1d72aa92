import pytest

from autotune.execute.keeper import kernel_kills


@pytest.mark.parametrize(
    ("text", "kills"), [("nr_free_pages 5\noom_kill 3\n", 3), ("nr_free_pages 5\n", 0), ("a b c\n", 0), (None, 0)]
)
def test_what_the_kernel_killed_for_want_of_memory_is_counted(tmp_path, text, kills):
    counters = tmp_path / "vmstat"
    if text is not None:
        counters.write_text(text)
    assert kernel_kills(counters) == kills
