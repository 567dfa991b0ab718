"""Bytes and operations of instructions: of small texts, and of programs as JAX lowers them."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from convnext_jax.planning.hlo import arrays_of
from convnext_jax.planning.programs import read_program

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[8,128]{1,0:T(8,128)}", 8 * 128 * 4),
        ("f32[9,100]{1,0:T(8,128)}", 16 * 128 * 4),
        ("f32[9,100]{0,1:T(8,128)}", 104 * 128 * 4),  # 100 rows of 9
        ("bf16[128,56,56,96]{0,3,2,1:T(8,128)(2,1)}", 128 * 56 * 56 * 96 * 2),
        ("bf16[128,56,56,96]{3,0,2,1:T(8,128)(2,1)}", 128 * 56 * 56 * 128 * 2),
        ("u8[5,3]{1,0:T(32,128)(4,1)}", 32 * 128),
        ("f32[96]{0:T(128)}", 128 * 4),
        ("f32[]{:T(128)}", 128 * 4),
        ("f32[7]", 28),
        ("pred[3]{0}", 3),
        ("token[]", 0),
    ],
)
def test_padded_bytes(shape, size):
    (array,) = arrays_of(shape)
    assert array.padded_bytes == size


def test_arrays_of_a_tuple():
    first, second = arrays_of("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/u32[]{:S(2)})")
    assert (first.dtype, first.sizes, first.order, first.tile) == ("bf16", (2, 3), (1, 0), (8, 128))
    assert (first.space, second.space, first.bytes) == (1, 2, 12)


def program(body, entry, result="f32[16,128]{1,0:T(8,128)}"):
    return f"""\
HloModule jit_f, is_scheduled=true

%body (p: f32[16,128]) -> f32[16,128] {{
{body}
}}

ENTRY %main (x: f32[16,128]) -> {result} {{
{entry}
}}
"""


def executed(text):
    (found,) = read_program(text).executed
    return found


ADD = """\
  %p = f32[16,128]{1,0:T(8,128)} parameter(0)
  %q = f32[100]{0:T(128)S(1)} parameter(1)
  ROOT %add = f32[16,128]{1,0:T(8,128)} add(%p, %p)"""
ENTRY = """\
  %x = f32[16,128]{{1,0:T(8,128){0}}} parameter(0)
  %y = f32[100]{{0:T(128)S(1)}} parameter(1)
  %start = (f32[100]{{0:T(128)S(1)}}, f32[100]{{0:T(128)}}, u32[]{{:S(2)}}) copy-start(%y)
  %scalar = s32[]{{:T(128)S(6)}} add(%a, %b)
  ROOT %f = f32[16,128]{{1,0:T(8,128)}} fusion(%x, /*index=1*/%y), kind=kLoop, calls=%body"""
ONE = 16 * 128 * 4


def test_bytes_of_a_fusion():
    found = executed(program(ADD, ENTRY.format("")))
    # One operand lies in the cores' memory; what is read twice is one operand.
    assert (found.name, found.times, found.memory_bytes) == ("f", 1, 2 * ONE)
    assert executed(program(ADD, ENTRY.format("S(1)"))).memory_bytes == ONE


def test_only_the_slices_that_are_read():
    body = """\
  %p = f32[16,128]{1,0:T(8,128)} parameter(0)
  %q = f32[100]{0:T(128)S(1)} parameter(1)
  %b = f32[16,1,128]{2,1,0:T(1,128)} bitcast(%p)
  %part = f32[2,1,128]{2,1,0:T(1,128)} dynamic-slice(%b, %i, %i, %i), dynamic_slice_sizes={2,1,128}
  ROOT %wide = f32[16,128]{1,0:T(8,128)} pad(%part, %zero), padding=0_14x0_0"""
    assert executed(program(body, ENTRY.format(""))).memory_bytes == 2 * 128 * 4 + ONE
    both = body.replace("pad(%part, %zero)", "add(%p, %part)")
    assert executed(program(both, ENTRY.format(""))).memory_bytes == 2 * ONE


def test_only_the_part_that_is_changed_in_place():
    body = """\
  %p = f32[16,128]{1,0:T(8,128)} parameter(0)
  %q = f32[100]{0:T(128)S(1)} parameter(1)
  %new = f32[1,128]{1,0:T(1,128)} broadcast(%q), dimensions={1}
  ROOT %d = f32[16,128]{1,0:T(8,128)} dynamic-update-slice(%p, %new, %i, %i)"""
    assert executed(program(body, ENTRY.format(""))).memory_bytes == 128 * 4


def test_products_inside_nested_fusions():
    body = """\
  %p = f32[16,128]{1,0:T(8,128)} parameter(0)
  %k = f32[128,128]{1,0:T(8,128)} parameter(1)
  %fusion.4 = f32[16,128]{1,0:T(8,128)} fusion(%p, %k), kind=kOutput, calls=%inner
  ROOT %c = f32[16,128]{1,0:T(8,128)} convolution(%fusion.4, %k), dim_labels=bf_io->bf"""
    inner = """
%inner (p: f32[16,128]) -> f32[16,128] {
  %a = f32[16,128]{1,0:T(8,128)} parameter(0)
  %b = f32[128,128]{1,0:T(8,128)} parameter(1)
  ROOT %d = f32[16,128] dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body"""
    text = program(body, ENTRY.format("")).replace("\n%body", inner, 1)
    assert executed(text).matrix_flops == 2 * (2 * 16 * 128 * 128)


def flops(function, *shapes):
    """Of a function's program as JAX lowers it: no other parts than products."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    text = jax.jit(function).lower(*arguments).compiler_ir("hlo").as_hlo_text()
    return sum(found.matrix_flops for found in read_program(text).executed)


def conv(groups=1, stride=1, padding="SAME"):
    def function(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            dimension_numbers=DIMENSIONS,
            feature_group_count=groups,
        )

    return function


def test_products_of_dots():
    assert flops(lambda a, b: a @ b, (5, 7), (7, 11)) == 2 * 5 * 7 * 11
    batched = flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (3, 5, 7), (3, 7, 11))
    assert batched == 3 * 2 * 5 * 7 * 11


def test_products_of_convolutions():
    assert flops(conv(), (2, 8, 8, 3), (1, 1, 3, 5)) == 2 * 2 * 64 * 3 * 5
    assert flops(conv(stride=4), (2, 8, 8, 3), (4, 4, 3, 5)) == 2 * 2 * 4 * 16 * 3 * 5
    # Of 3 x 8 products a row two are with zeros.
    assert flops(conv(), (2, 8, 8, 3), (3, 3, 3, 5)) == 2 * 2 * 22 * 22 * 3 * 5


def test_products_of_grouped_convolutions():
    assert flops(conv(4), (2, 8, 8, 12), (1, 1, 3, 20)) == 2 * 2 * 64 * 3 * 20
    # The vector units do these.
    assert flops(conv(12), (2, 8, 8, 12), (7, 7, 1, 12)) == 0
    gradient = lambda x, k: jax.vjp(conv(12), x, k)[1](x)[1]  # noqa: E731
    assert flops(gradient, (2, 8, 8, 12), (7, 7, 1, 12)) == 0


@pytest.mark.parametrize("argument", [0, 1])
@pytest.mark.parametrize(
    ("groups", "stride", "kernel", "padding"),
    [
        (1, 4, (4, 4, 3, 5), "VALID"),
        (1, 2, (2, 2, 3, 5), "VALID"),
        (1, 1, (3, 3, 3, 5), "SAME"),
        (1, 2, (3, 3, 3, 5), "SAME"),
        (3, 1, (3, 3, 1, 15), "SAME"),
    ],
)
def test_gradients_have_as_many_products(argument, groups, stride, kernel, padding):
    # The zeros between a dilated input's elements are no work.
    function = conv(groups, stride, padding)
    x = (2, 8, 8, 3)
    y = jax.eval_shape(function, *(jax.ShapeDtypeStruct(s, jnp.float32) for s in (x, kernel)))
    gradient = lambda x, k, dy: jax.vjp(function, x, k)[1](dy)[argument]  # noqa: E731
    assert flops(gradient, x, kernel, y.shape) == flops(function, x, kernel) > 0


TWINS = """\
HloModule jit_f, is_scheduled=true

%one (p.1: f32[8,128]) -> f32[8,128] {
  %p.1 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %add.1 = f32[8,128]{1,0:T(8,128)} add(%p.1, %p.1), metadata={op_name="a/b" stack_frame_id=3}
}

%two (p.2: f32[8,128]) -> f32[8,128] {
  %p.2 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %add.2 = f32[8,128]{1,0:T(8,128)} add(%p.2, %p.2), metadata={op_name="{}" stack_frame_id=4}
}

%three (p.3: f32[8,128]) -> f32[8,128] {
  %p.3 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %mul.3 = f32[8,128]{1,0:T(8,128)} multiply(%p.3, %p.3)
}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %a = f32[8,128]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%one, sharding={replicated}
  %b = f32[8,128]{1,0:T(8,128)} fusion(%a), kind=kLoop, calls=%two, backend_config={"n":"1"}
  %c = f32[8,128]{1,0:T(8,128)} fusion(%b), kind=kLoop, calls=%three
  %d = f32[8,128]{1,0:T(8,128)S(1)} fusion(%c), kind=kLoop, calls=%one
  %e = f32[8,128]{1,0:T(8,128)} fusion(%d), kind=kLoop, calls=%one
  ROOT %f = f32[8,128]{1,0:T(8,128)} tuple(%e)
}
"""


def test_what_is_compiled_into_the_same_code():
    found = {each.name: each.likeness for each in read_program(TWINS).executed}
    assert sorted(found) == ["a", "b", "c", "d", "e"]
    assert found["a"] == found["b"]
    # Other arithmetic, another place of the result, another place of the operand.
    assert len(set(found.values())) == 4 and found["a"] != found["c"]
