"""Lengths of schedules, of small texts as the TPU compiler writes them."""

import pytest

from convnext_jax.planning.schedules import read_schedules, schedule_length

HEADER = ["= control target key start", "LB: loop body", "= control target key end", ""]
STAGES = "%s1 = sadd.s32 1, %s2 /* iteration index, stage = 1 */"


def bundles(count, depth=0, label="  ", first="%v1 = vadd.f32 %v2, %v3", last=None):
    """Lines of so many bundles; the first has the label."""
    marks = ">" * depth
    lines = [f"  0x10 {'':2} : {marks} {{ %v1 = vadd.f32 %v2, %v3  ;;  %4 = vst %v1 }}"] * count
    lines[0] = f"   0x7 {label} : {marks} {{ {first}  ;;  %5 = vld %s1 }}"
    if last is not None:
        lines[-1] = f"  0x11    : {marks} {{ {last} }}"
    return lines


def loop(count, trips, depth=1, first="%s3 = smov 0"):
    exit_test = (
        f"%p11 = scmp.ge.s32.totalorder %s14, {trips} /* loop exit test */  ;;  %s9 = smov 1"
    )
    return bundles(count, depth, "LB", first, exit_test)


def test_straight_code():
    assert schedule_length([*HEADER, *bundles(17)]) == 17
    assert schedule_length(HEADER) == 0
    # Notes of the compiler's go over several lines, and other labels open no loop.
    note = ["     /* window_bounds: (57, 16)", "pad_low: (0, 0) */", "  0x19 PF:  { %1 = smov 0 }"]
    assert schedule_length([*bundles(2), *note]) == 3


def test_the_first_address_has_no_prefix():
    assert schedule_length(["     0   :  { %3 = vsyncpa [#allocation4], 0 }"]) == 1


def test_a_loop_counts_as_often_as_it_runs():
    assert schedule_length([*bundles(3), *loop(5, 10), *bundles(4)]) == 3 + 50 + 4


def test_a_pipelined_loop_runs_two_rounds_more_than_it_has_pieces():
    assert schedule_length([*bundles(3), *loop(5, 10, first=STAGES)]) == 3 + 5 * 8
    assert schedule_length(loop(5, 1, first=STAGES)) == 5


def test_nested_loops():
    inner = loop(2, 7, depth=2)
    outer = loop(4, 12, first=STAGES)
    lines = [*bundles(1), *outer[:3], *inner, *outer[3:], *bundles(1)]
    assert schedule_length(lines) == 1 + (4 + 2 * 7) * 10 + 1


def test_two_loops_in_a_row():
    assert schedule_length([*loop(2, 3), *loop(5, 4)]) == 6 + 20
    inner = [*loop(2, 3, depth=2), *loop(5, 4, depth=2)]
    outer = loop(2, 10)
    assert schedule_length([outer[0], *inner, outer[1]]) == 10 * (2 + 6 + 20)


@pytest.mark.parametrize(
    "empty", ["  0x12    :  {}", "  0x12    :  { }", "  0x12    :  {} /* x */"]
)
def test_empty_bundles_are_in_the_loop_around_them(empty):
    lines = loop(2, 10)
    assert schedule_length([lines[0], empty, lines[1], *bundles(1)]) == 31
    assert schedule_length([*bundles(2), empty]) == 3


def test_a_loop_of_unknown_rounds_counts_once():
    lines = bundles(5, 1, "LB", last="%p1 = scmp.ge.s32.totalorder %s1, %s2")
    assert schedule_length(lines) == 5


def test_a_known_program():
    # The structure of a depthwise convolution, 7x7, of 128 x 14 x 14 x 384 in bfloat16 on v5e: 48
    # pieces. The compiler's own profile says 239 thousand cycles.
    lines = [*bundles(7), *loop(4918, 50, first=STAGES), *bundles(4)]
    assert schedule_length(lines) == 236_075


def test_files_of_a_program(tmp_path):
    def write(name, count):
        (tmp_path / name).write_text("\n".join([*HEADER, *bundles(count)]) + "\n")

    write("1795385958609672805-TLP-01-final_bundles.txt", 9)
    write("1795385961486189505-fusion.3-01-final_bundles.txt", 5)
    write("1795385961486189505-fusion.3-00-schedule-analysis_final_bundles.txt", 100)
    # Compiled twice: what counts is the last.
    write("1795385961486189506-add-multiply_fusion-01-final_bundles.txt", 6)
    write("1795385961486189507-add-multiply_fusion-01-final_bundles.txt", 7)
    (tmp_path / "1795385958609672805-TLP-hlo.txt").write_text("HloModule x")
    assert read_schedules(tmp_path) == {"TLP": 9, "fusion.3": 5, "add-multiply_fusion": 7}
