"""Models as ONNX, written from their modules with the operations that run-times know by name.

Tracing a model instead would take its norms apart into sums of squares, which are beyond what
float16 holds; run-times compute the statistics of LayerNormalization in float32.

Blocks keep their maps as [N, H, W, C], as the model does, and only what convolves sees
[N, C, H, W]: two transpositions a block, as in PyTorch's own models.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from convnext_jax import tree
from convnext_jax.export.graph import Graph, Map
from convnext_jax.models import layers, stems
from convnext_jax.models.backbone import Backbone
from convnext_jax.models.convnext import Block, ConvNeXt
from convnext_jax.models.isotropic import ConvNeXtIsotropic
from convnext_jax.models.spec import ModelSpec
from convnext_jax.segmentation import heads, upernet
from convnext_jax.segmentation.resize import pooling_matrix


def onnx_files(
    spec: ModelSpec, params: Any, batch_stats: Any, size: int, version: str
) -> tuple[dict[str, bytes], tuple[int | str, ...]]:
    """Writes a model for inference, with its weights and for any number of images at once.

    Args:
      spec: the model; its `dtype`, float32 or float16, is that of computation.
      params: its parameters, NumPy arrays.
      batch_stats: its statistics, likewise.
      size: side of images, pixels.
      version: of this package.

    Returns:
      `model.onnx`, and for more than 2 GiB of weights `model.onnx.data`; and the output's shape
      with "n". The model takes `images`, float32 [n, channels, size, size], and gives float32
      `logits` [n, classes], `embeddings` [n, features], or of models that segment `logits`
      [n, classes, size / 4, size / 4].

    Raises:
      InputError: the model takes no images of that size.
    """
    model = spec.abstract()
    assert isinstance(model, ConvNeXt | ConvNeXtIsotropic | upernet.UPerNet), spec.name
    images = jax.ShapeDtypeStruct((1, size, size, model.in_channels), np.float32)
    shapes, _ = jax.eval_shape(spec.function_with_batch_stats(), params, batch_stats, images)
    writer = _Writer(tree.flatten_with_names(params) | tree.flatten_with_names(batch_stats))
    x = Map("images", np.float32, first=True)
    if isinstance(model, upernet.UPerNet):
        output = writer.segmenter(model, x, size)
        _, height, width, classes = shapes.decode.shape
        shape = "n", classes, height, width
    else:
        output = writer.classifier(model, x)
        shape = "n", shapes.shape[1]
    name = "logits" if spec.num_classes else "embeddings"
    files = writer.graph.files(
        "model",
        ("images", ("n", model.in_channels, size, size)),
        (name, output.name, shape),
        ("convnext_jax", version),
    )
    return files, shape


_LINEAR = "kernel", "bias"


class _Writer:
    """Adds modules to a graph; each has a path in the tree of parameters."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.graph = Graph()
        self._arrays = arrays

    def classifier(self, model: ConvNeXt | ConvNeXtIsotropic, images: Map) -> Map:
        """What `layers.pool_and_classify` makes of the last map."""
        x = self.graph.cast(self._maps(model, "", images)[-1], np.float32)
        if isinstance(model, ConvNeXt) and model.norm_pre is not None:
            x = self._layer(model.norm_pre, "norm_pre", x)
        axes = self.graph.constant("pool/axes", [1, 2], np.int64)
        x = self._node("pool", "ReduceMean", x, axes, keepdims=0)
        for name in ("norm", "pre_logits", "head"):
            layer = getattr(model, name, None)
            if layer is not None:
                x = self._layer(layer, name, x)
            if layer is not None and name == "pre_logits":
                x = self._activation("gelu", name, x)
        return x

    def segmenter(self, model: upernet.UPerNet, images: Map, size: int) -> Map:
        """What the decoding head makes of the backbone's maps."""
        backbone = model.backbone
        maps = [
            self._layer(getattr(backbone, f"norm{i}"), f"backbone/norm{i}", x)
            for i, x in enumerate(self._maps(backbone, "backbone/", images))
        ]
        sides = [shape[1] for shape in _shapes(backbone, size)]
        return self._upper_head(model.decode_head, "decode_head/", maps, sides)

    def _maps(self, model: ConvNeXt | ConvNeXtIsotropic, path: str, x: Map) -> list[Map]:
        """The map after each stage, as it is passed on."""
        if isinstance(model, ConvNeXtIsotropic):
            x = self._layer(model.stem, f"{path}stem", x)
            return [self._blocks(model.blocks, f"{path}blocks", x)]
        maps = []
        for stage, (downsample, blocks) in enumerate(
            zip(model.downsample_layers, model.stages, strict=True)
        ):
            for i, layer in enumerate(downsample):
                x = self._layer(layer, f"{path}downsample_layers/{stage}/{i}", x)
            x = self._blocks(blocks, f"{path}stages/{stage}", x)
            maps.append(x)
        return maps

    def _blocks(self, blocks: Any, path: str, x: Map) -> Map:
        for i, block in enumerate(blocks):
            x = self._block(block, f"{path}/{i}", x)
        return x

    def _block(self, block: Block, path: str, x: Map) -> Map:
        y = self._layer(block.dwconv, f"{path}/dwconv", x)
        y = self._layer(block.norm, f"{path}/norm", y)
        y = self._layer(block.pwconv1, f"{path}/pwconv1", y)
        y = self._activation(block.activation, f"{path}/pwconv1", y)
        if block.grn is not None:
            y = self._response_norm(block.grn, f"{path}/grn", y)
        y = self._layer(block.pwconv2, f"{path}/pwconv2", y)
        if block.gamma is not None and not self._is_all(f"{path}/gamma", 1):
            y = self._node(f"{path}/scale", "Mul", y, self._parameter(f"{path}/gamma", y.dtype))
        return self._sum(f"{path}/sum", x, y)

    def _layer(self, layer: Any, path: str, x: Map) -> Map:
        """A layer with parameters, whose result has its dtype."""
        if isinstance(layer, layers.LayerNorm):
            x = self._last(self.graph.cast(x, layer.dtype))
            parts = [self._parameter(f"{path}/{part}", layer.dtype) for part in ("scale", "bias")]
            return self._node(path, "LayerNormalization", x, *parts, axis=-1, epsilon=layer.epsilon)
        if isinstance(layer, layers.SimpleNorm):
            return self._simple_norm(layer, path, x)
        x = self.graph.cast(x, layer.dtype)
        if isinstance(layer, nnx.Linear):
            kernel, bias = (self._parameter(f"{path}/{part}", x.dtype) for part in _LINEAR)
            y = self._node(path, "MatMul", self._last(x), kernel)
            return self._node(f"{path}/sum", "Add", y, bias)
        if isinstance(layer, layers.DepthwiseConv):
            half = self._arrays[f"{path}/kernel"].shape[0] // 2
            return self._conv(path, x, padding=half, group=self._arrays[f"{path}/bias"].size)
        if isinstance(layer, layers.PatchConv):
            return self._conv(path, x, stride=self._arrays[f"{path}/kernel"].shape[0])
        assert isinstance(layer, stems.OverlapConv), layer
        y = self._conv(path, x, stride=2, padding=1)
        return y if layer.activation is None else self._activation(layer.activation, path, y)

    def _conv(
        self,
        path: str,
        x: Map,
        kernel: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        *,
        stride: int = 1,
        padding: int = 0,
        group: int = 1,
    ) -> Map:
        """A convolution of [N, C, H, W], by what is given or by the parameters at its path."""
        kernel = self._arrays[f"{path}/kernel"] if kernel is None else kernel
        bias = self._arrays[f"{path}/bias"] if bias is None else bias
        kernel = kernel.transpose(3, 2, 0, 1)
        inputs = [
            self.graph.constant(f"{path}/kernel", kernel, x.dtype),
            self.graph.constant(f"{path}/bias", bias, x.dtype),
        ]
        return self._node(
            path,
            "Conv",
            self._first(x),
            *inputs,
            kernel_shape=kernel.shape[2:],
            strides=[stride] * 2,
            pads=[padding] * 4,
            group=group,
        )

    def _activation(self, kind: str, path: str, x: Map) -> Map:
        if kind == "silu":
            gate = self._node(f"{path}/sigmoid", "Sigmoid", x)
            return self._node(f"{path}/silu", "Mul", x, gate.name)
        approximate = {"gelu": "none", "gelu_tanh": "tanh"}[kind]
        return self._node(f"{path}/gelu", "Gelu", x, approximate=approximate)

    def _simple_norm(self, norm: layers.SimpleNorm, path: str, x: Map) -> Map:
        """Division by the standard deviation, in float32."""
        x = self._last(self.graph.cast(x, np.float32))
        scale = self._arrays[f"{path}/scale"]
        axis = self.graph.constant(f"{path}/axis", [-1], np.int64)
        mean = self._node(f"{path}/mean", "ReduceMean", x, axis)
        centred = self._node(f"{path}/centred", "Sub", x, mean.name)
        length = self._node(f"{path}/length", "ReduceL2", centred, axis)
        square = self._node(f"{path}/square", "Mul", length, length.name)
        degrees = self._number(f"{path}/degrees", scale.size - 1)
        variance = self._node(f"{path}/variance", "Div", square, degrees)
        epsilon = self._number(f"{path}/epsilon", norm.epsilon)
        variance = self._node(f"{path}/variance_and_epsilon", "Add", variance, epsilon)
        deviation = self._node(f"{path}/deviation", "Sqrt", variance)
        y = self._node(f"{path}/normed", "Div", x, deviation.name)
        y = self._node(path, "Mul", y, self._parameter(f"{path}/scale", np.float32))
        return self.graph.cast(y, norm.dtype)

    def _response_norm(self, norm: layers.GlobalResponseNorm, path: str, x: Map) -> Map:
        """GRN as x (1 + gamma n) + beta, its norms n in float32: one pass over the map less."""
        wide = self.graph.cast(x, np.float32)
        axes = self.graph.constant(f"{path}/axes", [1, 2], np.int64)
        channels = self.graph.constant(f"{path}/channels", [3], np.int64)
        norms = self._node(f"{path}/norms", "ReduceL2", wide, axes)
        mean = self._node(f"{path}/mean", "ReduceMean", norms, channels)
        mean = self._node(f"{path}/mean_up", "Add", mean, self._number(f"{path}/epsilon", 1e-6))
        relative = self._node(f"{path}/relative", "Div", norms, mean.name)
        gamma = self._parameter(f"{path}/gamma", np.float32)
        factor = self._node(f"{path}/gain", "Mul", relative, gamma)
        factor = self._node(f"{path}/factor", "Add", factor, self._number(f"{path}/one", 1))
        y = self._node(path, "Mul", wide, factor.name)
        if not self._is_all(f"{path}/beta", 0):
            beta = self._parameter(f"{path}/beta", np.float32)
            y = self._node(f"{path}/sum", "Add", y, beta)
        return self.graph.cast(y, norm.dtype)

    def _upper_head(
        self, head: heads.UPerHead, path: str, maps: list[Map], sides: list[int]
    ) -> Map:
        """`heads.UPerHead`, channels first; its bottleneck sees the levels side by side."""
        *_, last = maps = [self._first(x) for x in maps]
        top = len(maps) - 1
        joined = [last]
        for i, (bins, module) in enumerate(zip(heads.POOL_SCALES, head.psp_modules, strict=True)):
            x = self._pooled(f"{path}pool{bins}", last, sides[top], bins)
            x = self._conv_module(module, f"{path}psp_modules/{i}", x)
            joined.append(self._resized(f"{path}pool{bins}/resized", x, bins, sides[top]))
        lateral = [
            self._conv_module(module, f"{path}lateral_convs/{i}", x)
            for i, (module, x) in enumerate(zip(head.lateral_convs, maps[:-1], strict=True))
        ]
        x = self._joined(f"{path}pyramid", joined)
        lateral.append(self._conv_module(head.bottleneck, f"{path}bottleneck", x))
        for level in range(top, 0, -1):
            name = f"{path}lateral{level}"
            x = self._resized(name, lateral[level], sides[level], sides[level - 1])
            lateral[level - 1] = self._sum(f"{name}/sum", lateral[level - 1], x)
        levels = [
            self._conv_module(module, f"{path}fpn_convs/{i}", lateral[i])
            for i, module in enumerate(head.fpn_convs)
        ]
        levels.append(lateral[top])
        levels = [
            self._resized(f"{path}level{i}", x, sides[i], sides[0]) for i, x in enumerate(levels)
        ]
        x = self._joined(f"{path}levels", levels)
        x = self._conv_module(head.fpn_bottleneck, f"{path}fpn_bottleneck", x)
        return self._conv(f"{path}conv_seg", self.graph.cast(x, np.float32))

    def _conv_module(self, module: heads.ConvModule, path: str, x: Map) -> Map:
        """Convolution and batch normalisation as one: a variance may be beyond float16."""
        bn = {
            part: self._arrays[f"{path}/bn/{part}"].astype(np.float64)
            for part in ("scale", "bias", "mean", "var")
        }
        factor = bn["scale"] / np.sqrt(bn["var"] + module.bn.eps)
        kernel = self._arrays[f"{path}/conv/kernel"] * factor
        bias = bn["bias"] - bn["mean"] * factor
        y = self._conv(f"{path}/conv", x, kernel, bias, padding=kernel.shape[0] // 2)
        return self._node(f"{path}/relu", "Relu", y)

    def _pooled(self, name: str, x: Map, size: int, bins: int) -> Map:
        """Means of bins x bins parts, which may overlap: [N, C, bins, bins]."""
        matrix = pooling_matrix(size, bins)
        rows = self.graph.constant(f"{name}/rows", matrix, x.dtype)
        columns = self.graph.constant(f"{name}/columns", matrix.T, x.dtype)
        wide = self._node(f"{name}/wide", "MatMul", x, columns)
        y = self.graph.node(name, "MatMul", rows, wide.name)
        return Map(y, x.dtype, first=True)

    def _resized(self, name: str, x: Map, before: int, after: int) -> Map:
        """A map of one side, bilinearly made of another."""
        if before == after:
            return x
        sizes = self.graph.constant(f"{name}/sizes", [after] * 2, np.int64)
        return self._node(
            name,
            "Resize",
            x,
            "",  # no region of interest
            "",  # sizes, not scales
            sizes,
            mode="linear",
            coordinate_transformation_mode="half_pixel",
            axes=[2, 3],
        )

    def _joined(self, name: str, parts: list[Map]) -> Map:
        return self._node(name, "Concat", parts[0], *(x.name for x in parts[1:]), axis=1)

    def _sum(self, name: str, x: Map, y: Map) -> Map:
        if x.first != y.first:
            x, y = self._last(x), self._last(y)
        return self._node(name, "Add", x, y.name)

    def _first(self, x: Map) -> Map:
        return Map(self.graph.channels_first(x), x.dtype, first=True)

    def _last(self, x: Map) -> Map:
        return Map(self.graph.channels_last(x), x.dtype)

    def _node(self, name: str, operation: str, x: Map, *others: str, **attributes: Any) -> Map:
        """An operation whose result is laid out as its first input, and has its dtype."""
        y = self.graph.node(f"{name}/{operation}", operation, x.name, *others, **attributes)
        return Map(y, x.dtype, x.first)

    def _parameter(self, name: str, dtype: Any) -> str:
        return self.graph.constant(name, self._arrays[name], dtype)

    def _number(self, name: str, value: float) -> str:
        return self.graph.constant(name, value, np.float32)

    def _is_all(self, name: str, value: float) -> bool:
        return bool((self._arrays[name] == value).all())


def _shapes(backbone: Backbone, size: int) -> list[tuple[int, ...]]:
    """The shapes of its maps of one image."""
    images = jax.ShapeDtypeStruct((1, size, size, backbone.in_channels), np.float32)
    maps = nnx.eval_shape(lambda model, x: model.features(x), backbone, images)
    return [x.shape for x in maps]
