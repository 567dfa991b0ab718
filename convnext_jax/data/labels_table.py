"""Labels of a folder's images from a CSV file, as competitions and the Hub have them."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from convnext_jax.data.decode import one_line
from convnext_jax.data.listing import answered
from convnext_jax.errors import InputError

# In the folder, as on the Hugging Face Hub.
INSIDE = "metadata.csv"
_FILE, _LABEL = "file_name", "label"
# Files that a message names.
_NAMED = 3


def labels_images(table: Path) -> bool:
    """Whether a table's columns say that it labels images; one that is no table does not."""
    try:
        return {_FILE, _LABEL} <= set(_cells(table)[0])
    except InputError:
        return False


def files_by_class(
    table: Path, folder: Path, images: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Reads which image is of which class.

    The file has a header, and commas or semicolons between its columns. The column of images is
    `file_name`, or the first; that of classes is `label`, or the other one of two. An image is
    named by its path in the folder, the ending may be left out.

    Args:
      table: the file.
      folder: of the images.
      images: their paths in it.

    Returns:
      The images of each class, sorted; classes in the order of their names, of numbers if all are
      whole numbers; and the images that the file does not have.

    Raises:
      InputError: the file cannot be read, has no such columns, names images that are not there, or
        one of them with two classes.
    """
    stems: dict[str, str | None] = {}
    for path in images:
        stem = os.path.splitext(path)[0]
        # Two of one stem need their endings.
        stems[stem] = None if stem in stems else path
    there = set(images)

    def image_of(name: str) -> str | None:
        for written in (name, name.replace("\\", "/")):  # as Windows has it
            path = os.path.normpath(written)
            inside = path.removeprefix(folder.name + os.sep)
            for one in (path, stems.get(path), inside, stems.get(inside)):
                if one is not None and one in there:
                    return one
        return None

    header, *rows = _rows(table)
    if image_of(header[0]) is not None:
        raise InputError(
            f"{table} must begin with a header, and its first row names the image {header[0]}"
        )
    labels: dict[str, str] = {}
    missing = []
    for name, label in rows:
        found = image_of(name)
        if found is None:
            missing.append(name)
        elif labels.setdefault(found, label) != label:
            raise InputError(
                f"{table} must have one class for an image, and has {labels[found]} and {label} for"
                f" {name}"
            )
    if missing:
        named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
        raise InputError(
            f"{table} must name images in {folder}, and {len(missing)} of those it names are not"
            f" there: {named}"
        )
    if not labels:
        raise InputError(f"{table} must have a row for each image, and has none")
    classes: dict[str, list[str]] = {name: [] for name in _in_order(set(labels.values()))}
    for path in sorted(labels):
        classes[labels[path]].append(path)
    return classes, sorted(there - labels.keys())


def _cells(table: Path) -> list[list[str]]:
    """The cells of each row without blanks around, the header first; empty rows are left out."""
    try:
        text = answered(lambda: table.read_text("utf-8-sig"))
        first = text.partition("\n")[0]
        semicolons = "," not in first and ";" in first
        reader = csv.reader(
            io.StringIO(text, newline=""), strict=True, delimiter=";" if semicolons else ","
        )
        rows = [[cell.strip() for cell in row] for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{table} must be a CSV file with a header, in UTF-8: {one_line(error)}"
        ) from error
    rows = [row for row in rows if any(row)]
    if not rows:
        raise InputError(f"{table} must be a CSV file with a header, and is empty")
    return rows


def _rows(table: Path) -> list[tuple[str, str]]:
    """Image and class of each row, as they are written; the header first."""
    names, *rows = _cells(table)
    label = names.index(_LABEL) if _LABEL in names else 1
    file = names.index(_FILE) if _FILE in names else 0
    if file == label and len(names) == 2:
        file = 1 - label
    if label == file or len(names) < 2 or (_LABEL not in names and len(names) > 2):
        raise InputError(
            f"{table} must have columns `{_FILE}` and `{_LABEL}`, or only two; its columns are"
            f" {', '.join(names)}"
        )
    found = [(names[file], names[label])]
    for number, row in enumerate(rows, 1):
        if len(row) <= max(file, label) or not row[file] or not row[label]:
            raise InputError(
                f"{table} must have an image and a class in each row, and lacks one in row {number}"
                f" after the header: {', '.join(row)}"
            )
        found.append((row[file], row[label]))
    return found


def _in_order(names: set[str]) -> list[str]:
    try:
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)
