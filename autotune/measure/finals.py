"""The coordinator's half of the finals: collect rounds from fresh processes, look, decide: Finals.

Search-time numbers are biased towards the lucky, so the best few are measured again beside the baseline, interleaved.
The worker's half is :func:`run_rounds`.
"""

from collections.abc import Collection, Mapping

from autotune.measure.block import Block
from autotune.measure.paired import RoundFigures, Statistic
from autotune.measure.rounds import TimedRunner, run_rounds
from autotune.measure.statistics import median
from autotune.measure.verdict import TieKeys, Verdict, verdict_from_samples
from autotune.records.trial import Measurement

__all__ = ["LOOKS", "Finals", "TimedRunner", "run_rounds"]

LOOKS = (20, 40, 60, 80, 100)
"""The numbers of rounds after which the finals may be decided; five looks, each at Pocock's bound.

The rounds from one look to the next come from processes that ran none before. In simulated finals with three processes
to the first look, which differ by 0.5%, a lead of 2% was then found in 99% of repeats, and in 78% if all further rounds
are run by the third process: twenty rounds of a fourth process contribute more than eighty more of the third.
"""


class Finals:
    """Collects rounds, plans those of the next process, names the finalists that may stop, and decides.

    Finalists ``beside`` the others are measured with them and cannot win. Call :meth:`next_rounds`, run that number in
    a fresh process without the :meth:`freeze` d finalists, :meth:`add` them, :meth:`look`; repeat until there is a
    verdict. When the time is up, call :meth:`conclude`.
    """

    def __init__(
        self,
        names: Collection[str],
        *,
        baselines: Collection[str],
        tie_keys: TieKeys | None = None,
        processes: int = 3,
        statistic: Statistic = median,
        beside: Collection[str] = (),
    ) -> None:
        if not baselines or not set(baselines) <= set(names):
            raise ValueError(f"finals need baselines among {sorted(names)}, found {sorted(baselines)}")
        if tie_keys is not None and not set(names) <= set(tie_keys):
            raise ValueError(f"finalists without a tie key: {sorted(set(names) - set(tie_keys))}")
        if not 1 <= processes <= LOOKS[0]:
            raise ValueError(f"finals run in 1 to {LOOKS[0]} processes before the first look, found {processes}")
        self._blocks: dict[str, list[Block | None]] = {name: [] for name in sorted(names)}
        self._baselines, self._beside = frozenset(baselines), frozenset(beside)
        self._tie_keys = tie_keys
        self._statistic = statistic
        self._by_median = statistic is median
        self._needed = processes
        self._processes: list[int] = []
        self._frozen: frozenset[str] = frozenset()
        self._looked = 0

    @property
    def rounds(self) -> int:
        """The number of rounds that were added."""
        return len(self._processes)

    @property
    def running(self) -> tuple[str, ...]:
        """The finalists that the next round runs, sorted."""
        return tuple(name for name in self._blocks if name not in self._frozen)

    @property
    def candidates(self) -> tuple[str, ...]:
        """The running finalists that can win and are no baselines, sorted."""
        return tuple(name for name in self.running if name not in self._baselines | self._beside)

    def next_rounds(self) -> int:
        """Return the number of rounds that the next process should run to reach the next look; 0 after the last look.

        The rounds to the first look are divided evenly among the processes that must have contributed by then.
        """
        target = next((look for look in LOOKS if look > max(self._looked, self.rounds)), None)
        if target is None:
            return 0
        missing = target - self.rounds
        still_needed = self._needed - len(set(self._processes))
        return -(-missing // still_needed) if still_needed > 1 else missing

    def add(self, process: int, rounds: Collection[Mapping[str, Block]]) -> None:
        """Add the rounds of one process, named by an index of its own; every running finalist is in each of them.

        Raises ``ValueError``, and adds nothing, if a round holds other finalists.
        """
        for blocks in rounds:
            if set(blocks) != set(self.running):
                raise ValueError(f"a round has blocks of {sorted(blocks)}, expected {list(self.running)}")
        for blocks in rounds:
            for name, collected in self._blocks.items():
                collected.append(blocks.get(name))
            self._processes.append(process)

    def freeze(self) -> frozenset[str]:
        """Freeze the finalists that are far behind and return all frozen ones, which need no more rounds.

        Far behind: after at least 8 rounds, more than 10% slower than the best in each of them. The fastest baseline is
        never frozen; another baseline only if it is that far behind the fastest.
        """
        if self.rounds:
            figures = RoundFigures(self.figures(), self._statistic, self._processes, self.disturbed())
            self._frozen |= figures.far_behind(self._baselines, self._beside)
        return self._frozen

    def drop(self, name: str) -> None:
        """Forget a finalist that failed; ``ValueError`` if it is unknown or the last baseline."""
        if name not in self._blocks or self._baselines == {name}:
            raise ValueError(f"finalist {name!r} cannot be dropped: it is unknown or the only baseline")
        del self._blocks[name]
        self._baselines -= {name}
        self._frozen -= {name}

    def look(self) -> Verdict | None:
        """Decide if a look is due and the outcome is settled, or at the last look whatever the outcome.

        A look is due once at each of 20, 40, 60, 80 and 100 rounds, if enough processes have contributed.
        """
        due = [look for look in LOOKS if self._looked < look <= self.rounds]
        if not due or len(set(self._processes)) < self._needed:
            return None
        self._looked = due[-1]
        verdict = self.conclude()
        return verdict if verdict.settled or self._looked == LOOKS[-1] else None

    def conclude(self) -> Verdict:
        """Decide with the present rounds; below :func:`autotune.measure.paired.fewest_rounds` nothing is promoted.

        Call it once: it counts as the next look. Raises ``ValueError`` without a single round.
        """
        return verdict_from_samples(
            self.figures(),
            baselines=self._baselines,
            tie_keys=self._tie_keys,
            statistic=self._statistic,
            processes=self._processes,
            disturbed=self.disturbed(),
            beside=self._beside,
        )

    def figures(self) -> dict[str, list[list[float] | None]]:
        """Return the compared figures, a block a round.

        From them, the processes and :meth:`disturbed`, :func:`verdict_from_samples` derives the same verdict. If
        medians of latencies are compared and others used the device, they are the undisturbed samples, if there are
        any: a tail, or a figure of the objective's own, needs all samples.
        """
        return {
            name: [None if block is None else list(self._compared(block)) for block in blocks]
            for name, blocks in self._blocks.items()
        }

    def disturbed(self) -> dict[str, list[bool]]:
        """Return for each finalist and round whether its block is disturbed: others used the device all the time."""
        return {
            name: [block is not None and self._is_disturbed(block) for block in blocks]
            for name, blocks in self._blocks.items()
        }

    def _compared(self, block: Block) -> tuple[float, ...]:
        escaped = block.undisturbed_ms if self._by_median and not block.figures else ()
        return escaped or block.compared

    def _is_disturbed(self, block: Block) -> bool:
        return block.shared and not (self._by_median and not block.figures and block.undisturbed_ms)

    def flags(self) -> dict[str, tuple[str, ...]]:
        """Return the flags of each finalist's rounds."""
        return {
            name: tuple(sorted({flag for block in blocks if block is not None for flag in block.flags}))
            for name, blocks in self._blocks.items()
        }

    def samples(self) -> dict[str, list[list[float] | None]]:
        """Return the raw samples in milliseconds; :meth:`figures` follow from them or belong to the objective."""
        return {
            name: [None if block is None else list(block.samples_ms) for block in blocks]
            for name, blocks in self._blocks.items()
        }

    def measurement(
        self, name: str, protocol: Mapping[str, object], conditions: Mapping[str, object] | None = None
    ) -> Measurement:
        """Return the measurement of one finalist, with the round, process and place of each block.

        ``protocol`` comes from :func:`autotune.measure.block.protocol_of`, its grouping is that of the largest block;
        ``conditions`` hold the seed. Raises ``ValueError`` for a finalist that took part in no round.
        """
        blocks = [(index, block) for index, block in enumerate(self._blocks[name]) if block is not None]
        around = {
            **(conditions or {}),
            "rounds": [index for index, _ in blocks],
            "processes": [self._processes[index] for index, _ in blocks],
            "positions": [block.position for _, block in blocks],
            "cpu_ms": [list(block.cpu_ms) for _, block in blocks],
            "switches": [list(block.switches) for _, block in blocks],
            "input_sets": [list(block.input_sets) for _, block in blocks],
            "grouped": [block.grouped for _, block in blocks],
            "unrolled": [block.unrolled for _, block in blocks],
            "queued": [block.queued for _, block in blocks],
            "readings": [dict(block.readings) for _, block in blocks],
            "flags": [list(block.flags) for _, block in blocks],
            "figures": [list(block.figures) for _, block in blocks],
        }
        return Measurement(
            samples_ms=tuple(block.samples_ms for _, block in blocks),
            device_samples_ms=tuple(block.device_samples_ms for _, block in blocks if block.device_samples_ms),
            conditions=around,
            protocol={
                **protocol,
                "grouped": max(block.grouped for _, block in blocks),
                "unrolled": max(block.unrolled for _, block in blocks),
            },
        )
