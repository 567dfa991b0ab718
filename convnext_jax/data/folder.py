"""A user's own images: `ROOT/SPLIT/CLASS/*.jpg`, as torchvision's ImageFolder has them."""

from pathlib import Path

from PIL import Image

from convnext_jax.data.decode import decode
from convnext_jax.errors import InputError, did_you_mean

# What a config calls such a dataset; its root is `data.dir`.
NAME = "folder"
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


class FolderSource:
    """One split of a folder of images, in the order of class and file names.

    Attributes:
      name: `folder`.
      split: name of the split's folder.
      class_names: names of the class folders, sorted; a label is a place in them.
      num_classes: how many there are.
      num_files: how many files stay open: none.
    """

    num_files = 0

    def __init__(self, root: Path, split: str):
        """Lists the files; opens none.

        Raises:
          InputError: there is no such folder; it has no classes; a class is empty, or is missing in
            one of the splits that stand beside it.
        """
        self.name = NAME
        self.split = split
        splits = _folders(root) if root.is_dir() else {}
        if split not in splits:
            found = f"{root} has {', '.join(splits)}" if splits else f"{root} has no folders"
            raise InputError(
                f"split `{split}` must be a folder of class folders, and {found}"
                f"{did_you_mean(split, splits)}"
            )
        classes = {name: _folders(path) for name, path in splits.items()}
        for other, names in classes.items():
            for missing in sorted(classes[split].keys() ^ names.keys()):
                there, here = (split, other) if missing in classes[split] else (other, split)
                raise InputError(
                    f"class `{missing}` must have a folder in every split of {root}: it is in"
                    f" `{there}` and not in `{here}`"
                )
        if not classes[split]:
            raise InputError(f"{splits[split]} must have a folder for each class, and has none")
        self.class_names = tuple(classes[split])
        self.num_classes = len(self.class_names)
        self._files: list[tuple[str, int]] = []
        for label, folder in enumerate(classes[split].values()):
            files = sorted(str(p) for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS)
            if not files:
                raise InputError(
                    f"class folder {folder} must have images ({', '.join(sorted(EXTENSIONS))}), and"
                    f" has none"
                )
            self._files += [(file, label) for file in files]

    def __len__(self) -> int:
        """Number of images."""
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Reads and decodes one image.

        Args:
          index: 0..len-1.

        Returns:
          The image in RGB, at its own size and ignoring EXIF orientation, as torchvision loads it;
          and its label, 0..num_classes-1.

        Raises:
          InputError: the image cannot be decoded.
        """
        file, label = self._files[index]
        return decode(file, file), label

    def __str__(self) -> str:
        """Dataset and split, as messages name them."""
        return f"dataset `{self.name}`, split `{self.split}`"


def _folders(path: Path) -> dict[str, Path]:
    return {p.name: p for p in sorted(path.iterdir()) if p.is_dir()}
