"""How many examples property tests draw whose examples are slow, such as those that export a graph."""

from hypothesis import settings

THOROUGH = "thorough"


def examples(thorough: int) -> int:
    """Give half as many by default, and all of them with ``pytest --hypothesis-profile=thorough``."""
    return thorough if settings.get_current_profile_name() == THOROUGH else (thorough + 1) // 2
