"""PyTorch, torchvision and timm as independent implementations to compare with.

torchvision's wheels carry operators only for CUDA builds of torch; beside a CPU build its import
fails until these two operators have a schema. Tests say `from oracles import torch, timm`.
"""

import torch

_library = torch.library.Library("torchvision", "DEF")  # Its schemas live as long as it does.
_library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm  # noqa: E402
import timm.loss  # noqa: E402
import timm.optim  # noqa: E402
import torchvision  # noqa: E402

torch.set_num_threads(1)  # Test processes run side by side.

__all__ = ["timm", "torch", "torchvision"]
