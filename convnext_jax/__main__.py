"""Lists the commands: `python -m convnext_jax`."""

_COMMANDS = """\
python -m convnext_jax.main          train, or go on training
python -m convnext_jax.evaluate      evaluate a checkpoint
python -m convnext_jax.predict       classify, embed or segment images
python -m convnext_jax.report        write a page on a run, or on several
python -m convnext_jax.convert       convert weights from and to PyTorch's formats
python -m convnext_jax.export        write a model for other run-times: StableHLO, ONNX
python -m convnext_jax.plan          compile a run for machines that are not there
python -m convnext_jax.data.prepare  prepare a dataset

Each says more with --help."""

if __name__ == "__main__":
    print(_COMMANDS)
