"""Rehearses real sizes: `python -m benchmarks.rehearsal [--only PART,...] [--missing]`.

Stand-ins with the real numbers of records, shards and files (see `standins.py`) go through the real
commands. What came out goes to `benchmarks/results/rehearsal.json`, part after part, and into the
table of docs/reliability.md. Exit status: 0; 1 a part broke, which the table then says.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.readme import RESULTS, ROOT, machine, rewrite
from benchmarks.rehearsal.parts import PARTS, Stage
from benchmarks.rehearsal.runs import Broken
from benchmarks.rehearsal.table import table

FILE = RESULTS / "rehearsal.json"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rehearsal", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--only", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--missing", action="store_true", help="those without a result, or broken")
    parser.add_argument("--keep", type=Path, help="directory for the stand-ins, kept for next time")
    arguments = parser.parse_args()
    names = list(PARTS) if arguments.only is None else arguments.only.split(",")
    if unknown := set(names) - set(PARTS):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    results = json.loads(FILE.read_text()) if FILE.exists() else {}
    if arguments.missing:
        names = [name for name in names if "broken" in results.get(name, {"broken": ""})]
    elif arguments.only is None:
        results = {}
    with contextlib.ExitStack() as stack:
        keep = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stage = Stage(keep.absolute())
        for name in names:
            print(name, flush=True)
            began = time.perf_counter()
            try:
                found = PARTS[name](stage)
            except Broken as error:
                found = {"broken": str(error)}
            found |= {"machine": machine(), "took_seconds": time.perf_counter() - began}
            print(f"  {json.dumps(found)}", flush=True)
            results[name] = found
            FILE.write_text(json.dumps(results, indent=2) + "\n")
    page = ROOT / "docs" / "reliability.md"
    page.write_text(rewrite(page.read_text(), {"rehearsal": table(results)}))
    sys.exit(any("broken" in results[name] for name in names))


if __name__ == "__main__":
    main()
