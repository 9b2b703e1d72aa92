"""All programs that measure autotune itself, each with one line that describes it."""

from collections.abc import Mapping

PACKAGE = "autotune.programs"

PROGRAMS: Mapping[str, str] = {
    "selftest": "Acceptance tests of the timing layer on a device.",
    "decisions": "How often do finals decide rightly under noise? A simulation.",
    "busy_host": "Do studies decide rightly beside a load generator?",
    "agreement": "Do several runs of one study agree?",
    "reliability": "Faults, kills and damage: is anything lost?",
    "identity_pairs": "Do models that differ in one thing share a key?",
    "random_models": "Does a loaded plan answer like its model?",
    "kernel_recording": "Records a space of kernels: compiles it, and times it.",
    "kernel_search": "How good is the search over tiles, on recorded spaces?",
    "kernel_comparison": "Own kernels beside the calls of libraries, on 40 products.",
    "results_table": "Prints the table of results, made from every results file.",
}
"""Descriptions by the name of the program. They stand here so that the list imports no program (and no torch)."""


def command_of(name: str) -> str:
    """Return the command that runs a program."""
    return f"python -m {PACKAGE}.{name}"
