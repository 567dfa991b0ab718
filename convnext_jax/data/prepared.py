"""Finds datasets that TFDS prepared, by the names that users give them."""

import os

import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, read_only_builder

from convnext_jax.data import ade20k, coco, digits, folder, imagenet22k, scenes
from convnext_jax.errors import InputError, did_you_mean

# Datasets that this package has builders of.
_OURS = (ade20k.NAME, coco.NAME, digits.NAME, imagenet22k.NAME, scenes.NAME)


def find_prepared(
    name: str, data_dir: str | os.PathLike[str] | None
) -> tfds.core.DatasetBuilder | None:
    """The builder of a prepared dataset, made from its files, or None where there are none.

    Raises:
      InputError: `name` is not written as TFDS names are.
    """
    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        return None
    except Exception as error:
        if type(error).__name__ == "NotFoundError":  # TensorFlow's, of a bucket's folder
            return None
        if not isinstance(error, ValueError):
            raise
        raise InputError(
            f"dataset `{name}` must be written NAME, NAME/CONFIG, NAME:VERSION or"
            f" NAME/CONFIG:VERSION"
        ) from error


def require_prepared(
    name: str, data_dir: str | os.PathLike[str] | None
) -> tfds.core.DatasetBuilder:
    """The builder of a prepared dataset, made from its files.

    Raises:
      InputError: the dataset is unknown or not prepared; how to prepare it is said.
    """
    builder = find_prepared(name, data_dir)
    if builder is not None:
        return builder
    check_known(name)
    root = os.fspath(data_dir) if data_dir is not None else default_data_dir()
    raise InputError(
        f"dataset `{name}` is not prepared in {root}; prepare it with"
        f" `{prepare_command(name, root)}`"
    )


def check_known(name: str) -> None:
    """Raises InputError, with the closest names, unless `name` is a dataset that can be prepared.

    That is one of TFDS or of ours. A `folder` is read as it is.
    """
    base = base_name(name)
    if base == folder.NAME:
        raise InputError(
            f"dataset `{name}` cannot be prepared and has no versions: as `{folder.NAME}`, training"
            f" reads the images below `data.dir` as they are"
        )
    # Without community datasets, whose list would be fetched over the network.
    known = {*tfds.list_builders(with_community_datasets=False), *_OURS}
    if base in known:
        return
    hint = did_you_mean(base, known | {folder.NAME})
    ours = ", ".join(f"`{name}`" for name in sorted((*_OURS, folder.NAME)))
    raise InputError(f"dataset `{name}` must be {ours} or the name of a TFDS dataset{hint}")


def base_name(name: str) -> str:
    """The dataset name without its config and version."""
    return name.partition(":")[0].partition("/")[0]


def default_data_dir() -> str:
    """TFDS's default root of prepared datasets."""
    return os.path.expanduser(constants.DATA_DIR)


def data_dir_of(builder: tfds.core.DatasetBuilder) -> str:
    """The root below which `builder`'s prepared files lie."""
    directory = os.fspath(builder.data_dir).rstrip("/")
    # <root>/<name>[/<config>]/<version>
    return directory.removesuffix(builder.info.full_name).rstrip("/")


def wrong_format(name: str, builder: tfds.core.DatasetBuilder) -> str:
    """The sentence about a dataset that was prepared in a format without random access."""
    stored = builder.info.file_format
    return (
        f"dataset `{name}` in {builder.data_dir} is stored as {stored and stored.value} and must be"
        f" array_record; convert it with `{prepare_command(name, data_dir_of(builder))} --convert`"
    )


def prepare_command(name: str, data_dir: str) -> str:
    """The command that prepares `name` below `data_dir`."""
    return f"python -m convnext_jax.data.prepare {name} --data_dir={data_dir}"
