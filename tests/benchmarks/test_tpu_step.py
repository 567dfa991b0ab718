"""The table of forms for TPUs is that of the committed results, which keep what is promised."""

import json

from benchmarks import tpu_step

PLAN = {
    "compute_seconds": 0.065,
    "schedule_seconds": 0.060,
    "memory_seconds": 0.025,
    "matrix_seconds": 0.018,
    "compiler_seconds": 0.113,
    "memory": {"temporary": 2**32},
    "compile_seconds": 100.4,
}


def test_table_of_committed_results_is_in_the_document():
    plans = json.loads(tpu_step.FILE.read_text())
    assert plans.keys() == tpu_step.FORMS.keys()
    assert tpu_step.table(plans) in tpu_step.PAGE.read_text()
    for name, plan in plans.items():
        assert plan["environment"] == tpu_step.FORMS[name]
        assert plan["compute_from"] == "schedules" and plan["per_device_batch"] == 128
        # Images stay where they are, and no more than gradients of 29 million parameters is added.
        assert plan["collectives"].keys() == {"all-reduce"}
        assert plan["collectives"]["all-reduce"]["bytes"] < 4 * 29e6
    before, *_, after = plans.values()
    assert before["compute_seconds"] / after["compute_seconds"] >= 1.3


def test_a_line_for_each_form():
    first, second, third = tpu_step.FORMS
    faster = PLAN | {"compute_seconds": 0.05}
    lines = tpu_step.table({first: PLAN, second: faster}).splitlines()[2:]
    rest = "60.0 ms | 25.0 ms | 18.0 ms | 113.0 ms | 4.00 GiB | 100 s |"
    assert lines == [
        f"| {first} | 65.0 ms | 1.00 | {rest}",
        f"| {second} | 50.0 ms | 1.30 | {rest}",
        f"| {third} | not compiled yet | | | | | | | |",
    ]
