"""How many examples property tests draw whose examples are slow, such as those that export a graph."""

from hypothesis import settings

QUICK, THOROUGH = "quick", "thorough"


def examples(thorough: int) -> int:
    """Give all with ``--hypothesis-profile=thorough``, as .ci/run does, one in ten with ``--quick``, else a fifth."""
    share = {THOROUGH: 1, QUICK: 10}.get(settings.get_current_profile_name(), 5)
    return -(-thorough // share)
