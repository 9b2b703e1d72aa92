"""All programs that measure autotune itself, each with one line that describes it."""

from collections.abc import Mapping

PACKAGE = "autotune.programs"

PROGRAMS: Mapping[str, str] = {
    "selftest": "Tests the timing layer on a device.",
    "decisions": "Simulates finals under noise and counts right decisions.",
    "busy_host": "Checks the decisions of studies beside a load generator.",
    "agreement": "Compares several runs of one study.",
    "reliability": "Injects faults, kills and damage, and counts the losses.",
    "identity_pairs": "Compares the keys of models that differ in one thing.",
    "random_models": "Compares the answers of loaded plans with those of their models.",
    "search_score": "Scores the search over whole models against random search on recorded studies.",
    "kernel_recording": "Compiles a space of kernels and times it.",
    "kernel_search": "Measures the search over tiles on recorded spaces.",
    "kernel_replay": "Replays the tuning of models' kernels in simulated time.",
    "study_replay": "Replays the search of recorded studies in simulated time.",
    "kernel_set": "Chooses the tiles of a standard set of kernels by estimates.",
    "kernel_comparison": "Times own kernels beside the calls of libraries, on 40 products.",
    "coverage": "Estimates the share of models that the native engine leaves to torch, and says why.",
    "committed_plans": "Writes the plans of committed results to one file, for autotune db merge.",
    "comparison_cost": "Times the comparison of devices and its page on a large database.",
    "deployed_cost": "Times what a loaded plan adds to its runner, and the first answers of bundles and plans.",
    "results_table": "Prints the table of results from every results file.",
}
"""Descriptions by the name of the program. They stand here so that the list imports no program (and no torch)."""


def command_of(name: str) -> str:
    """Return the command that runs a program."""
    return f"python -m {PACKAGE}.{name}"
