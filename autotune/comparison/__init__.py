"""Comparisons of devices by their stored plans: figures side by side, winners, cost, regressions."""
