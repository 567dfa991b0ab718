"""What our own datasets of objects store beside their examples, to be known without reading them.

TFDS writes it to `metadata.json` when all examples are written, and reads it with the dataset.
"""

import dataclasses

import tensorflow_datasets as tfds

_KEY = "objects"


@dataclasses.dataclass
class ObjectMetadata:
    """What is known of the examples of each split, in the order of its records.

    Attributes:
      sizes: height and width of each image, by split.
      counts: of each image its objects without crowds, and its crowds, by split.
      notes: sentences about a split, by split.
    """

    sizes: dict[str, list[list[int]]] = dataclasses.field(default_factory=dict)
    counts: dict[str, list[list[int]]] = dataclasses.field(default_factory=dict)
    notes: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def store(self, info: tfds.core.DatasetInfo) -> None:
        """Puts all into what is written with the dataset; to be called again when it has changed.

        The dataset must have been made with a `tfds.core.MetadataDict`.
        """
        assert info.metadata is not None
        info.metadata[_KEY] = dataclasses.asdict(self)


def stored_objects(info: tfds.core.DatasetInfo) -> ObjectMetadata | None:
    """What a prepared dataset has stored; None where it is none of ours."""
    found = dict(info.metadata.items()).get(_KEY) if info.metadata is not None else None
    return None if found is None else ObjectMetadata(**found)


def object_notes(info: tfds.core.DatasetInfo) -> list[tuple[str, str]]:
    """The sentences that a prepared dataset has about its splits, each with its split."""
    stored = stored_objects(info)
    by_split = {} if stored is None else stored.notes
    return [(split, note) for split, notes in by_split.items() for note in notes]
