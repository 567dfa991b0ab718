"""Datasets that come inside packages: written without a download, by whoever opens them first."""

import contextlib
import io
import logging

import tensorflow_datasets as tfds

from convnext_jax.errors import InputError


def write_unless_there(builder: tfds.core.DatasetBuilder, logger: logging.Logger) -> None:
    """Writes a dataset unless it is there.

    Several processes may do so at once, and one may be killed: each writes a directory of its own
    and renames it when complete; the first wins and the others use what it wrote.

    Args:
      builder: of the dataset, made with the data directory.
      logger: is told where it was written.

    Raises:
      InputError: the data directory cannot be written.
    """
    if _is_complete(builder):
        return
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    # TFDS prints its progress; for a few thousand examples one log line is enough.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            builder.download_and_prepare(file_format="array_record", download_config=config)
        except OSError as error:
            if not _is_complete(builder):
                raise InputError(
                    f"`data_dir` (={builder.data_dir}) must be a directory that can be written,"
                    f" to hold the `{builder.name}` dataset: {error.strerror or error}"
                ) from error
            return  # another process was first
    logger.info("wrote the `%s` dataset to %s", builder.name, builder.data_dir)


def _is_complete(builder: tfds.core.DatasetBuilder) -> bool:
    # The builder's own `is_prepared` logs a warning where this is False.
    return (builder.data_path / "dataset_info.json").exists()
