"""An ONNX graph while it is built, and the file that it becomes."""

import dataclasses
from typing import Any

import numpy as np

from convnext_jax.errors import InputError

# Operations of this version of ONNX, the first with Gelu as one of them; from 2023.
OPSET = 20
# Of the file format: the first one that has that opset.
_IR = 9
# A protocol buffer holds less than 2 GiB.
_LARGEST = 2**31 - 2**24


@dataclasses.dataclass(frozen=True)
class Map:
    """A float array in the graph.

    Attributes:
      name: of the value.
      dtype: of its elements.
      first: whether channels come first, [N, C, H, W], as convolutions need them; else
        [N, H, W, C] or [N, C].
    """

    name: str
    dtype: Any
    first: bool = False


class Graph:
    """Nodes and constants, added one after the other.

    Values and constants have names like the parameters that they come from, so that a viewer shows
    where in the model they are.
    """

    def __init__(self) -> None:
        """Starts without any."""
        from onnx import helper

        self._helper = helper
        self._nodes: list[Any] = []
        self._constants: dict[str, np.ndarray] = {}
        self._made: set[str] = set()  # transposed or cast values, each made once

    def constant(self, name: str, array: Any, dtype: Any = None) -> str:
        """Adds a constant, in the dtype if one is given; returns its name.

        Raises:
          InputError: it is beyond what the dtype holds.
        """
        assert name not in self._constants
        # Not `ascontiguousarray`, which gives numbers an axis.
        with np.errstate(over="ignore"):
            constant = np.array(array, dtype, order="C")
        if constant.dtype == np.float16 and not np.isfinite(constant).all():
            raise InputError(f"`{name}` must be within what float16 holds, and is not")
        self._constants[name] = constant
        return name

    def node(self, name: str, operation: str, *inputs: str, **attributes: Any) -> str:
        """Adds an operation with one output; returns the output's name, which is the node's."""
        made = self._helper.make_node(operation, inputs, [name], name, **attributes)
        self._nodes.append(made)
        return name

    def channels_last(self, x: Map) -> str:
        """The name of `x` as [N, H, W, C]."""
        return self._transposed(x.name, "last", (0, 2, 3, 1)) if x.first else x.name

    def channels_first(self, x: Map) -> str:
        """The name of `x` as [N, C, H, W]."""
        return x.name if x.first else self._transposed(x.name, "first", (0, 3, 1, 2))

    def _transposed(self, x: str, place: str, order: tuple[int, ...]) -> str:
        name = f"{x}/channels_{place}"
        if name not in self._made:
            self._made.add(self.node(name, "Transpose", x, perm=order))
        return name

    def cast(self, x: Map, dtype: Any) -> Map:
        """`x` in a dtype; `x` itself if it is of that one."""
        if x.dtype == dtype:
            return x
        kind = self._helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        name = f"{x.name}/{np.dtype(dtype).name}"
        if name not in self._made:
            self._made.add(self.node(name, "Cast", x.name, to=kind))
        return dataclasses.replace(x, name=name, dtype=dtype)

    def files(
        self,
        name: str,
        inputs: tuple[str, tuple[int | str, ...]],
        outputs: tuple[str, str, tuple[int | str, ...]],
        producer: tuple[str, str],
    ) -> dict[str, bytes]:
        """The files of a model with one input and one output, float32.

        Args:
          name: of the graph, and of the file without `.onnx`.
          inputs: the input's name and shape.
          outputs: the output's name, the name of the value that it is, and its shape.
          producer: name and version of who makes it.

        Returns:
          `NAME.onnx`; and beside it, if the weights are larger than a protocol buffer can be,
          `NAME.onnx.data`, which it refers to.
        """
        from onnx import TensorProto, numpy_helper

        output, value, shape = outputs
        self.node(output, "Identity", value)
        size = sum(array.nbytes for array in self._constants.values())
        data = bytearray()
        tensors = []
        for key, array in self._constants.items():
            if size < _LARGEST or array.nbytes < 1024:
                tensors.append(numpy_helper.from_array(array, key))
                continue
            kind = self._helper.np_dtype_to_tensor_dtype(array.dtype)
            tensor = TensorProto(name=key, dims=array.shape, data_type=kind)
            tensor.data_location = TensorProto.EXTERNAL
            data += bytes(-len(data) % 4096)  # run-times map pages of it into memory
            for entry in (
                ("location", f"{name}.onnx.data"),
                ("offset", str(len(data))),
                ("length", str(array.nbytes)),
            ):
                tensor.external_data.add(key=entry[0], value=entry[1])
            tensors.append(tensor)
            data += array.tobytes()
        about = self._helper.make_tensor_value_info
        graph = self._helper.make_graph(
            self._nodes,
            name,
            [about(inputs[0], TensorProto.FLOAT, inputs[1])],
            [about(output, TensorProto.FLOAT, shape)],
            tensors,
        )
        model = self._helper.make_model(
            graph,
            opset_imports=[self._helper.make_opsetid("", OPSET)],
            ir_version=_IR,
            producer_name=producer[0],
            producer_version=producer[1],
        )
        found = {f"{name}.onnx": model.SerializeToString(deterministic=True)}
        return found | ({f"{name}.onnx.data": bytes(data)} if data else {})
