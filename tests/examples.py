"""How many examples property tests draw whose examples are slow, such as those that export a graph."""

from hypothesis import settings

QUICK, THOROUGH = "quick", "thorough"


def examples(thorough: int) -> int:
    """Give all with ``pytest --hypothesis-profile=thorough``, one in ten with ``--quick``, else half as many."""
    profile = settings.get_current_profile_name()
    return {THOROUGH: thorough, QUICK: (thorough + 9) // 10}.get(profile, (thorough + 1) // 2)
