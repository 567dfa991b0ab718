"""Rehearsals at real size: `python -m benchmarks.rehearsal`."""
