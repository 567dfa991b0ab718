"""Saving and restoring training state with Orbax, which only this package imports."""
