"""The acceptance tests of the timing layer, one file a group; :mod:`autotune.measure.selftest` runs them."""
