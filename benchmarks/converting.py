"""Measures conversion: `python -m benchmarks.converting`.

Runs the tests that compare converted weights with the original libraries, and the slow one that
converts convnext_xlarge, and writes what they measured to `benchmarks/results/converting.json` and
into the table of docs/converting.md.
"""

import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from benchmarks.readme import RESULTS, ROOT, machine, rewrite


def measured(*arguments: str) -> dict[str, dict[str, float]]:
    """Runs tests; returns the properties that they recorded, by their parameters.

    Raises:
      CalledProcessError: a test failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *arguments]
        subprocess.run(command, check=True, cwd=ROOT)
        found: dict[str, dict[str, float]] = {}
        for case in ElementTree.parse(report).iter("testcase"):
            of_parameter = found.setdefault(case.attrib["name"].partition("[")[2].rstrip("]"), {})
            for item in case.iter("property"):
                of_parameter[item.attrib["name"]] = float(item.attrib["value"])
        return found


def table(results: dict[str, Any]) -> str:
    """The document's generated part."""
    rows = [
        "| format and family | worst difference at 224x224 | at 75x101 |",
        "|---|---|---|",
        *(
            f"| {name} | {case['error 224']:.1e} | {case['error odd']:.1e} |"
            for name, case in sorted(results["parity"].items())
        ),
        "",
        f"Converting `convnext_xlarge` (350 million parameters) on {results['machine']}:",
        "",
    ]
    rows += [
        f"- from `{suffix}` and on to timm's safetensors: {case['seconds']:.0f} s, peak memory"
        f" {case['peak memory, times the size']:.2f} times the size of the weights"
        for suffix, case in sorted(results["xlarge"].items())
    ]
    return "\n".join(rows)


def main() -> None:
    """The command."""
    results = {
        "parity": measured("tests/convert/test_parity.py"),
        "xlarge": measured("tests/convert/test_command.py", "-m", "slow", "-k", "xlarge"),
        "machine": machine(),
    }
    (RESULTS / "converting.json").write_text(json.dumps(results, indent=2) + "\n")
    document = ROOT / "docs" / "converting.md"
    document.write_text(rewrite(document.read_text(), {"measured": table(results)}))


if __name__ == "__main__":
    main()
