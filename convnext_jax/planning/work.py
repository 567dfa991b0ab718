"""What an instruction of a compiled program does: memory it moves, matrix products it makes.

Both are the least that it can do: what is read twice counts once, products with the zeros of a
convolution's padding do not count.
"""

import functools
import math
import re
from collections.abc import Mapping

from convnext_jax.planning.hlo import Array, Computation, Instruction

_SLICES = ("slice", "dynamic-slice", "gather")
_CALLED = re.compile(r"\b(calls|to_apply)=%?([\w.\-]+)")
# Convolutions of a library: the places of x, of the kernel and of y among the operands, None for
# that which is the result.
_LIBRARY = {
    "__cudnn$convForward": (0, 1, None),
    "__cudnn$convBiasActivationForward": (0, 1, None),
    "__cudnn$convBackwardInput": (None, 1, 0),
    "__cudnn$convBackwardFilter": (0, None, 1),
}
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
_WINDOW = re.compile(r"(\w+)=([\dx_\-]+)")
# What differs between two instructions that are compiled into the same code.
_INCIDENTAL = re.compile(
    r", (?:metadata|frontend_attributes|sharding|origin|control-predecessors)="
    r"\{(?:[^{}\"]|\"[^\"]*\"|\{[^{}]*\})*\}"
    r"|, backend_config=.*"
)

Computations = Mapping[str, Computation]


def memory_bytes(
    instruction: Instruction, computation: Computation, computations: Computations
) -> int:
    """Bytes that an instruction reads from the chip's memory and writes to it.

    Operands and results count with the padding of their tiles, and not at all where they lie in the
    cores' own memory. Of an operand of which a fusion takes only slices those count, and of a
    result that only has a part changed in place, that part.

    Args:
      instruction: of the program; no tuple may be among its operands.
      computation: that it is in.
      computations: of the program, by name.
    """
    body = _body(instruction, computations)
    total = 0
    for number, name in enumerate(instruction.operands):
        operand = computation.instructions.get(name)
        whole = 0 if operand is None else _in_memory(operand.arrays)
        if whole and body is not None and number < len(body.parameters):
            whole = min(whole, _read(body.parameters[number], whole, body, computations))
        total += whole
    written = _in_memory(instruction.arrays)
    if written and body is not None:
        written = min(written, _written(body, computations, written))
    return total + written


def matrix_flops(
    instruction: Instruction, computation: Computation, computations: Computations
) -> int:
    """Operations of the matrix products and convolutions in an instruction, nested fusions too.

    A multiply-accumulate is two. A depthwise convolution and its gradients are none: with one input
    and one output channel in each group they are not matrix products.
    """
    if instruction.operation == "dot":
        axes = instruction.attribute("lhs_contracting_dims")
        return _dot_flops(instruction, computation, axes or "")
    if instruction.operation == "convolution":
        return _convolution_flops(instruction, computation, (0, 1, None))
    if instruction.operation == "custom-call":
        target = _TARGET.search(instruction.attributes)
        if target is not None and target[1] in _LIBRARY:
            return _convolution_flops(instruction, computation, _LIBRARY[target[1]])
        axes = _CONTRACTED.search(instruction.attributes)
        if target is None or axes is None or not target[1].startswith("__cublas$"):
            return 0
        return _dot_flops(instruction, computation, axes[1].replace('"', ""))
    body = _body(instruction, computations)
    if body is None:
        return 0
    return sum(matrix_flops(each, body, computations) for each in body.instructions.values())


def likeness(instruction: Instruction, computation: Computation, computations: Computations) -> str:
    """A text that is the same for instructions that do the same with arrays of the same layout.

    The compiler writes code for one of them, which the others use as well.
    """
    operands = [
        each.shape if (each := computation.instructions.get(name)) else ""
        for name in instruction.operands
    ]
    attributes = _attributes(instruction, computations)
    parts = [instruction.operation, instruction.shape, *operands, attributes]
    return "\n".join(parts)


def _attributes(instruction: Instruction, computations: Computations) -> str:
    """Attributes that matter, a called computation in place of its name."""
    text = _INCIDENTAL.sub("", instruction.attributes)
    called = [name for _, name in _CALLED.findall(text)]
    bodies = [_text(computations[name], computations) for name in called if name in computations]
    return "\n".join([_CALLED.sub(r"\1", text), *bodies])


def _text(computation: Computation, computations: Computations) -> str:
    names: dict[str, str] = {}
    lines = []
    for each in computation.instructions.values():
        names[each.name] = f"%{len(names)}"
        operands = [names.get(name, name) for name in each.operands]
        attributes = _attributes(each, computations)
        lines.append(f"{each.is_root} {each.shape} {each.operation}{operands}{attributes}")
    return "\n".join(lines)


def _body(instruction: Instruction, computations: Computations) -> Computation | None:
    """What a fusion calls."""
    if instruction.operation != "fusion":
        return None
    return computations.get(instruction.attribute("calls") or "")


def _in_memory(arrays: list[Array]) -> int:
    return sum(array.padded_bytes for array in arrays if array.space == 0)


def _read(name: str, whole: int, body: Computation, computations: Computations) -> int:
    """Bytes that a fusion reads of an array of `whole` bytes, which is `name` in its body."""
    total = 0
    for user in body.users.get(name, []):
        inner = _body(user, computations)
        if user.operation in _SLICES and user.operands[0] == name:
            total += sum(array.padded_bytes for array in user.arrays)
        elif user.operation == "dynamic-update-slice" and user.operands.index(name) == 0:
            continue  # changed in place
        elif user.operation == "bitcast" and not user.is_root:
            total += _read(user.name, whole, body, computations)
        elif inner is not None and user.operands.index(name) < len(inner.parameters):
            parameter = inner.parameters[user.operands.index(name)]
            total += _read(parameter, whole, inner, computations)
        else:
            return whole
    return total


def _written(body: Computation, computations: Computations, whole: int) -> int:
    """Bytes that a fusion writes of a result of `whole` bytes."""
    root = body.root
    while root.operation == "bitcast" and root.operands[0] in body.instructions:
        root = body.instructions[root.operands[0]]
    if root.operation == "dynamic-update-slice":
        update = body.instructions.get(root.operands[1])
        return whole if update is None else sum(each.padded_bytes for each in update.arrays)
    inner = _body(root, computations)
    return whole if inner is None else _written(inner, computations, whole)


def _dot_flops(instruction: Instruction, computation: Computation, contracted: str) -> int:
    left = computation.instructions[instruction.operands[0]].arrays[0]
    summed = math.prod(left.sizes[int(axis)] for axis in contracted.split(",") if axis)
    return 2 * math.prod(instruction.arrays[0].sizes) * summed


def _convolution_flops(
    instruction: Instruction, computation: Computation, places: tuple[int | None, ...]
) -> int:
    x, kernel, y = (
        (
            instruction if place is None else computation.instructions[instruction.operands[place]]
        ).arrays[0]
        for place in places
    )
    labels = re.split("_|->", instruction.attribute("dim_labels") or "")
    features, inputs = y.sizes[labels[2].index("f")], kernel.sizes[labels[1].index("i")]
    if _is_depthwise(instruction, features, inputs, x.sizes[labels[0].index("b")]):
        return 0
    products = y.sizes[labels[2].index("b")] * features * inputs
    window = dict(_WINDOW.findall(instruction.attribute("window") or ""))
    spatial = sorted(label for label in labels[1] if label.isdigit())
    for number, label in enumerate(spatial):

        def of(name: str, default: str, number: int = number) -> str:
            return window[name].split("x")[number] if name in window else default

        products *= _products(
            x.sizes[labels[0].index(label)],
            kernel.sizes[labels[1].index(label)],
            y.sizes[labels[2].index(label)],
            stride=int(of("stride", "1")),
            before=int(of("pad", "0_0").partition("_")[0]),
            apart=int(of("lhs_dilate", "1")),
            kernel_apart=int(of("rhs_dilate", "1")),
        )
    return 2 * products


def _is_depthwise(instruction: Instruction, features: int, inputs: int, batch: int) -> bool:
    """Whether each group has one input and one output; a filter gradient's inputs are its batch."""
    groups = int(instruction.attribute("feature_group_count") or 1)
    if groups == 1:
        groups = int(instruction.attribute("batch_group_count") or 1)
        inputs = batch // groups
    return groups > 1 and features == groups and inputs == 1


@functools.cache
def _products(
    size: int, kernel: int, out: int, *, stride: int, before: int, apart: int, kernel_apart: int
) -> int:
    """Products along one dimension that are not with zeros of padding or dilation.

    Args:
      size: of the input.
      kernel: its size.
      out: size of the output.
      stride: by how much the window moves.
      before: padding; negative: so much is cut off.
      apart: distance of the input's elements, zeros in between.
      kernel_apart: distance of the kernel's elements.
    """
    last = (size - 1) * apart
    return sum(
        position % apart == 0 and 0 <= position <= last
        for y in range(out)
        for k in range(kernel)
        for position in [y * stride + k * kernel_apart - before]
    )
