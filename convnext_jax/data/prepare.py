"""Prepares a dataset once, as array_record files: `python -m convnext_jax.data.prepare NAME`.

    python -m convnext_jax.data.prepare imagenet2012 --manual_dir=/downloads --data_dir=/data/tfds

Any dataset of TFDS that has a class or a mask for each image, and our `digits`, `digit_scenes`,
`imagenet22k`, `ade20k` and `coco2017`:

    python -m convnext_jax.data.prepare ade20k --manual_dir=/downloads --data_dir=/data/tfds
    python -m convnext_jax.data.prepare coco2017 --manual_dir=/downloads --data_dir=/data/tfds

TFDS writes into a directory `incomplete.*` and renames it at the end, so a run that is killed
leaves nothing that can be read.
"""

from convnext_jax import command

if __name__ == "__main__":  # before the imports, which take seconds
    command.begin()

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from convnext_jax.arguments import Parser
from convnext_jax.data import ade20k, coco, imagenet22k
from convnext_jax.data.decode import one_line
from convnext_jax.data.mask_metadata import notes_of
from convnext_jax.data.object_metadata import object_notes
from convnext_jax.data.prepared import (
    base_name,
    check_known,
    default_data_dir,
    find_prepared,
    wrong_format,
)
from convnext_jax.errors import InputError
from convnext_jax.progress import progress_bar

_ARRAY_RECORD = tfds.core.FileFormat.ARRAY_RECORD
_IMAGENET_ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")


def prepare(
    name: str,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    *,
    overwrite: bool = False,
    convert: bool = False,
) -> tuple[tfds.core.DatasetBuilder, bool]:
    """Prepares a dataset unless it is there.

    Args:
      name: TFDS name, as for `sources.open_source`.
      data_dir: root to write below; None is TFDS's default.
      manual_dir: directory of the archives that a user has to download, where the dataset has some.
      overwrite: prepare anew; what is there is removed after the new files are complete.
      convert: add array_record files to a dataset that is there in TFRecord format.

    Returns:
      The prepared dataset's builder, and whether anything was written.

    Raises:
      InputError: the dataset is unknown, its archives are missing, or it cannot be prepared.
    """
    found = find_prepared(name, data_dir)
    if found is not None and not overwrite:
        if _ARRAY_RECORD in found.info.available_file_formats():
            return found, False
        if convert:
            try:
                _convert(found)
            except OSError as error:
                raise InputError(
                    f"{found.data_dir} must be a directory that can be written: {error}"
                ) from error
            return _reopen(found), True
        raise InputError(wrong_format(name, found))
    if convert:
        raise InputError(
            f"`--convert` adds array_record files to a prepared dataset, but `{name}` is not"
            f" prepared in {data_dir or default_data_dir()}"
        )
    check_known(name)
    builder = _builder(name, data_dir)
    _check_archives(name, builder, manual_dir)
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    directory = epath.Path(builder.data_dir)
    if directory.exists() and not overwrite:
        raise InputError(
            f"{directory} must not exist before `{name}` is prepared there: it holds something that"
            f" cannot be read, and `--overwrite` would replace it"
        )
    with _moved_aside(directory):
        # Made again: the first one has read the description of what was there.
        builder = _builder(name, data_dir)
        try:
            builder.download_and_prepare(file_format=_ARRAY_RECORD, download_config=config)
        except InputError:  # of our own datasets, which is clear as it is
            raise
        except Exception as error:  # whatever a dataset's own code raises
            raise InputError(
                f"dataset `{name}` cannot be prepared in {builder.data_dir}: {one_line(error)}"
            ) from error
    return _reopen(builder), True


def _builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # unknown config or version, or a package that is not installed
        raise InputError(f"dataset `{name}` cannot be opened: {one_line(error)}") from error


def _reopen(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
    return tfds.builder_from_directory(builder.data_dir)


def _check_archives(name: str, builder: tfds.core.DatasetBuilder, manual_dir: str | None) -> None:
    """Raises InputError if files that only a user can download are missing."""
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return
    if base_name(name) == "imagenet2012":
        missing = [
            archive
            for archive in _IMAGENET_ARCHIVES
            if manual_dir is None or not (epath.Path(manual_dir) / archive).exists()
        ]
        if missing:
            raise InputError(
                f"`--manual_dir` (={manual_dir}) must be a directory that has"
                f" {' and '.join(_IMAGENET_ARCHIVES)}; missing: {', '.join(missing)}; download"
                f" them from https://image-net.org/download-images (an account is needed)"
            )
    elif base_name(name) == imagenet22k.NAME:
        imagenet22k.find(manual_dir)
    elif base_name(name) == ade20k.NAME:
        ade20k.find(manual_dir)
    elif base_name(name) == coco.NAME:
        coco.find(manual_dir)
    elif manual_dir is None:
        instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        raise InputError(f"dataset `{name}` needs `--manual_dir`: {instructions}")


@contextlib.contextmanager
def _moved_aside(directory: epath.Path) -> Iterator[None]:
    """Moves `directory` away for the time of the block; back on an error, else deletes it.

    Deleting it first would, if killed half-way, leave a dataset that looks complete.
    """
    aside = directory.parent / f"incomplete.replaced_{directory.name}"
    existed = directory.exists()
    if existed:
        aside.rmtree(missing_ok=True)
        directory.rename(aside)
    try:
        yield
    except BaseException:
        if existed:
            aside.rename(directory)
        raise
    if existed:
        aside.rmtree()


def _convert(builder: tfds.core.DatasetBuilder) -> None:
    """Writes array_record files beside the TFRecord files of a prepared dataset.

    TFDS's own `convert_format` does the same, but cannot be imported without Apache Beam. The
    dataset's description lists the new format last, so a run that is killed changes nothing.
    """
    import tensorflow as tf
    from tensorflow_datasets.core import file_adapters

    directory = epath.Path(builder.data_dir)
    splits = builder.info.splits.values()
    bar = progress_bar("converting", sum(split.num_examples for split in splits), "examples")
    for split in splits:
        template: Any = split.filename_template
        template = template.replace(filetype_suffix=_ARRAY_RECORD.file_suffix)
        for shard, source in enumerate(split.filepaths):
            target = template.sharded_filepath(shard_index=shard, num_shards=split.num_shards)
            partial = target.parent / f"incomplete.{target.name}"
            records: Any = tf.data.TFRecordDataset(os.fspath(source)).as_numpy_iterator()

            def counted(records: Any = records) -> Iterator[tuple[int, Any]]:
                for pair in enumerate(records):
                    yield pair
                    bar.update()

            file_adapters.ArrayRecordFileAdapter.write_examples(partial, counted())
            partial.rename(target)
    bar.close()
    description = directory / "dataset_info.json"
    info = json.loads(description.read_text())
    formats = info.setdefault("alternativeFileFormats", [])
    formats.append(_ARRAY_RECORD.value)
    partial = directory / "incomplete.dataset_info.json"
    partial.write_text(json.dumps(info, indent=2))
    partial.replace(description)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = Parser(
        prog="python -m convnext_jax.data.prepare",
        description="Prepares a dataset as array_record files, which training reads by index.",
    )
    parser.add_argument(
        "name",
        help="TFDS name, such as imagenet2012, or ade20k, coco2017, digits, digit_scenes,"
        " imagenet22k",
    )
    parser.add_argument("--data_dir", help="root to write below (default: TFDS's own)")
    parser.add_argument("--manual_dir", help="directory of archives downloaded by hand")
    parser.add_argument("--overwrite", action="store_true", help="prepare anew what is there")
    parser.add_argument(
        "--convert", action="store_true", help="add array_record files to TFRecord files"
    )
    args = parser.parse_args(argv)
    try:
        builder, wrote = prepare(
            args.name,
            args.data_dir,
            args.manual_dir,
            overwrite=args.overwrite,
            convert=args.convert,
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.name} {'is prepared' if wrote else 'was already prepared'}:")
    for split in builder.info.splits.values():
        print(f"  {split.name}: {split.num_examples} examples")
    print(f"  in {builder.data_dir}")
    for split, note in notes_of(builder.info) + object_notes(builder.info):
        print(f"note: {split}: {note}")
    for left in epath.Path(builder.data_dir).parent.glob("incomplete.*"):
        print(f"note: {left} belongs to a run that is going on or was killed; if killed, delete it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
