"""PyTorch, torchvision and timm as independent implementations to compare with.

PyPI's wheels of torchvision are for CUDA builds of torch; beside a CPU build its import fails until
two operators have a schema, and its compiled operations are not there. Tests say `from oracles
import torch, timm`.
"""

import sys

import torch

try:
    import torchvision
except RuntimeError:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "DEF")  # its schemas live as long as it does
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

import timm  # noqa: E402
import timm.loss  # noqa: E402
import timm.optim  # noqa: E402

torch.set_num_threads(1)  # Test processes run side by side.

__all__ = ["timm", "torch", "torchvision"]
