"""A process that adds artifacts until it is killed.

``python -m autotune.programs.reliability.artifact_writer STORE FOLDER SEED`` prints the digest of each artifact as soon
as the store has returned it, so that the process that kills it knows which artifacts must exist afterwards.
"""

import random
import sys
from pathlib import Path

from autotune.database.artifacts import ArtifactStore

LARGEST_BYTES = 1 << 20


def write_for_ever(store: ArtifactStore, folder: Path, chance: random.Random) -> None:
    """Add artifacts of one to four files, some of them shared with earlier ones."""
    number = 0
    while True:
        built = folder / str(number)
        built.mkdir(parents=True)
        for name in range(chance.randint(1, 4)):
            content = f"shared {name}".encode() if name == 3 else chance.randbytes(chance.randint(1, LARGEST_BYTES))
            (built / f"{name}.so").write_bytes(content)
        _say("begin")
        _say(store.add(built))
        number += 1


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    write_for_ever(ArtifactStore(Path(sys.argv[1])), Path(sys.argv[2]), random.Random(sys.argv[3]))
