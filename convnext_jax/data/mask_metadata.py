"""What our own datasets of masks store beside their examples: how values become labels, and sizes.

TFDS writes it to `metadata.json` when all examples are written, and reads it with the dataset.
"""

import dataclasses

import tensorflow_datasets as tfds

_KEY = "masks"


@dataclasses.dataclass
class MaskMetadata:
    """How to read the masks of a dataset, and what else is known of them.

    Attributes:
      first_label: value of the first class.
      ignored: value of pixels that belong to no class; None: there is none.
      largest: height and width that no mask of a split exceeds, by split.
      notes: sentences about a split, by split.
    """

    first_label: int
    ignored: int | None
    largest: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    notes: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def see(self, split: str, height: int, width: int) -> None:
        """Takes the size of a mask into account."""
        before = self.largest.get(split, [0, 0])
        self.largest[split] = [max(before[0], height), max(before[1], width)]

    def store(self, info: tfds.core.DatasetInfo) -> None:
        """Puts all into what is written with the dataset; to be called again when it has changed.

        The dataset must have been made with a `tfds.core.MetadataDict`.
        """
        assert info.metadata is not None
        info.metadata[_KEY] = dataclasses.asdict(self)


def stored_metadata(info: tfds.core.DatasetInfo) -> MaskMetadata | None:
    """What a prepared dataset has stored; None where it is none of ours."""
    found = dict(info.metadata.items()).get(_KEY) if info.metadata is not None else None
    return None if found is None else MaskMetadata(**found)


def notes_of(info: tfds.core.DatasetInfo) -> list[tuple[str, str]]:
    """The sentences that a prepared dataset has about its splits, each with its split."""
    stored = stored_metadata(info)
    by_split = {} if stored is None else stored.notes
    return [(split, note) for split, notes in by_split.items() for note in notes]
