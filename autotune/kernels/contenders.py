"""The kernels of a problem between which the search cannot decide, and the final that decides between them.

The search times each candidate alone and once, and the lowest of twenty such medians flatters: of forty products, one
got a kernel that was 3% slower than the best library call. So the best few are timed against each other in rounds.
Medians of the search and of rounds are never compared: between finalists the rounds decide, and all others follow.
"""

from collections.abc import Iterable, Sequence

from autotune import registry
from autotune.kernel import KernelToolchains
from autotune.records.configuration import Configuration
from autotune.records.kernel_final import KernelFinal
from autotune.records.kernel_trial import KernelTrial

WITHIN = 1.05
"""A kernel whose median in the search is at most this multiple of the lowest one may be the best."""

MOST = 4
"""The most kernels of a problem that are timed against each other."""


def contenders(trials: Iterable[KernelTrial]) -> tuple[Configuration, ...]:
    """Return the best few kernels by the search, the fastest first; if there is only one, it is clearly the best."""
    timed = [(trial.median_us, trial.configuration) for trial in by_search(trials) if trial.median_us is not None]
    within = [configuration for median_us, configuration in timed if median_us <= WITHIN * timed[0][0]]
    fastest = list(dict.fromkeys(within))  # several machines may have timed a kernel
    chosen = fastest[:MOST]
    # The best library call within reach always takes part: the choice must not be slower.
    library_kinds = registry.library_kinds()
    library = next((configuration for configuration in fastest if configuration.backend in library_kinds), None)
    if library is not None and library not in chosen:
        chosen[-1] = library
    return tuple(chosen)


def deciding_final(
    trials: Sequence[KernelTrial], finals: Iterable[KernelFinal], toolchains: KernelToolchains
) -> KernelFinal | None:
    """Return the newest final that has all contenders; ``None`` if there is none, so that the search decides.

    ``trials`` are those of the problem under the present toolchains, and ``finals`` those of the problem, the newest
    first, of which others than those of the present toolchains are left out.
    """
    present = set(contenders(trials))
    for final in finals:
        finalists = {finalist.configuration for finalist in final.finalists}
        is_present = all(each.toolchain == toolchains.of(each.configuration.backend) for each in final.finalists)
        if present and present <= finalists and is_present:
            return final
    return None


def ranked(trials: Iterable[KernelTrial], final: KernelFinal | None) -> tuple[KernelTrial, ...]:
    """Return the complete trials, the fastest first: the finalists by their rounds, then all others by the search."""
    complete = by_search(trials)
    if final is None:
        return complete
    first = {trial.configuration: trial for trial in reversed(complete)}
    finalists = [first[finalist.configuration] for finalist in final.ranked if finalist.configuration in first]
    return (*finalists, *(trial for trial in complete if final.of(trial.configuration) is None))


def by_search(trials: Iterable[KernelTrial]) -> tuple[KernelTrial, ...]:
    """Return the complete trials by their medians in the search, the fastest first."""
    complete = (trial for trial in trials if trial.state == "complete")
    return tuple(sorted(complete, key=lambda trial: (trial.median_us or 0.0, trial.configuration.digest)))
