"""The passes that simplify a graph, in the order in which they run."""

from autotune.backends.native.passes.casts_and_views import CASTS_AND_VIEWS
from autotune.backends.native.passes.common_subexpressions import COMMON_SUBEXPRESSIONS
from autotune.backends.native.passes.dead_code import DEAD_CODE
from autotune.backends.native.passes.fold_constants import FOLD_CONSTANTS
from autotune.backends.native.passes.identities import IDENTITIES

EXACT = (FOLD_CONSTANTS, IDENTITIES, CASTS_AND_VIEWS, COMMON_SUBEXPRESSIONS, DEAD_CODE)
"""Passes that keep every bit of every result, except that a NaN may have another sign and payload."""
