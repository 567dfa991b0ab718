"""The original libraries' models, small and with random weights, and the files that hold them.

Facebook's repositories are no packages. Their models are timm's here, under Facebook's names: timm
itself reads those names, and each case is checked against its reader.
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np
import pytest
from oracles import timm, torch, torchvision
from timm.models.convnext import ConvNeXtBlock, checkpoint_filter_fn
from torch_weights import randomise
from torchvision.models.convnext import CNBlockConfig

DEPTHS, DIMS, CLASSES = (1, 2, 1, 1), (8, 16, 24, 32), 10
SMALL = {"depths": DEPTHS, "dims": DIMS}


@dataclasses.dataclass
class Original:
    """What a library has.

    Attributes:
      content: what is saved.
      run: images [N, 3, H, W] to logits and the maps of the stages, all tensors.
      format: what the file must be recognised as.
      model: our variant.
      overrides: ours.
    """

    content: dict
    run: Callable
    format: str
    model: str
    overrides: dict


def randomised(model):
    """Random values at which every parameter matters; GRN's are of order 1."""
    model.eval()
    randomise(model, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".grn." in name:
                parameter.copy_(0.5 + 0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def timm_small(name="convnext_tiny", classes=CLASSES, **arguments):
    sizes = {**SMALL, **arguments}
    return randomised(timm.create_model(name, num_classes=classes, **sizes))


def run_timm(model, images):
    maps = model.forward_intermediates(images, intermediates_only=True)
    return model(images), maps


def timm_case(name, classes=CLASSES, **arguments):
    model = timm_small(name, classes, **arguments)
    overrides = {**SMALL, **arguments}
    return Original(model.state_dict(), lambda x: run_timm(model, x), "timm", name, overrides)


def facebook_names(state):
    """A timm state dict under Facebook's names."""
    rules = (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        ("conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"mlp\.grn\.weight", "grn.gamma"),
        (r"mlp\.grn\.bias", "grn.beta"),
        (r"^head\.norm", "norm"),
        (r"^head\.fc", "head"),
    )
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor.reshape(1, 1, 1, -1) if ".grn." in name else tensor
    return renamed


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def facebook_case(name="convnext_tiny", *, classes=CLASSES, extra=None, drop=(), format="facebook"):
    model = timm_small(name, classes)
    state = facebook_names(model.state_dict())
    if drop:
        with torch.no_grad():
            for parameter, value in (("weight", 1.0), ("bias", 0.0)):
                getattr(model.head.norm, parameter).fill_(value)
    state = {n: tensor for n, tensor in state.items() if n not in drop}
    state |= extra(state) if extra else {}
    read_by_timm = checkpoint_filter_fn({"model": state}, model)
    expected = {n: t for n, t in model.state_dict().items() if not (drop and "head.norm" in n)}
    assert same(read_by_timm, expected)
    return Original({"model": state}, lambda x: run_timm(model, x), format, name, SMALL)


def norms_again(state):
    return {"norms.3.weight": state["norm.weight"], "norms.3.bias": state["norm.bias"]}


def projectors_too(state):
    return norms_again(state) | {"projectors.0.weight": torch.randn(5, 32)}


class Isotropic(torch.nn.Module):
    def __init__(self, depth, dim, layer_scale):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, dim, 16, stride=16)
        scale = 1.0 if layer_scale else None
        self.blocks = torch.nn.Sequential(
            *(ConvNeXtBlock(dim, ls_init_value=scale) for _ in range(depth))
        )
        self.norm = torch.nn.LayerNorm(dim, eps=1e-6)
        self.head = torch.nn.Linear(dim, CLASSES)

    def forward(self, x):
        maps = self.blocks(self.stem(x))
        return self.head(self.norm(maps.mean((2, 3)))), [maps]


def isotropic_case(layer_scale):
    model = randomised(Isotropic(2, 24, layer_scale))
    state = {
        name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv"): tensor
        for name, tensor in model.state_dict().items()
    }
    overrides = {"depths": (2,), "dims": (24,)}
    return Original({"model": state}, model, "facebook", "convnext_isotropic_small", overrides)


def torchvision_case():
    following = (*DIMS[1:], None)
    blocks = [CNBlockConfig(*size) for size in zip(DIMS, following, DEPTHS, strict=True)]
    model = torchvision.models.convnext.ConvNeXt(blocks, layer_scale=1.0, num_classes=CLASSES)
    model = randomised(model)

    def run(x):
        maps = []
        for index, layer in enumerate(model.features):
            x = layer(x)
            maps += [x] if index % 2 else []
        return model.classifier(model.avgpool(x)), maps

    return Original(model.state_dict(), run, "torchvision", "convnext_tiny", SMALL)


def hf_model(kind, classes=CLASSES, depths=DEPTHS, dims=DIMS):
    """A transformers model: `kind` is ConvNext, ConvNextV2 or DINOv3ConvNext."""
    transformers = pytest.importorskip("transformers")
    arguments = {"depths": list(depths), "hidden_sizes": list(dims)}
    if classes and kind != "DINOv3ConvNext":
        arguments["num_labels"] = classes
    headed = classes and kind != "DINOv3ConvNext"
    config = getattr(transformers, f"{kind}Config")(**arguments)
    return getattr(transformers, kind + ("ForImageClassification" if headed else "Model"))(config)


def hf_case(kind, model, classes=CLASSES):
    original = randomised(hf_model(kind, classes))
    output = "logits" if hasattr(original, "classifier") else "pooler_output"

    def run(x):
        result = original(x, output_hidden_states=True)
        return getattr(result, output), result.hidden_states[1:]

    format = "hf_dinov3" if kind == "DINOv3ConvNext" else "hf"
    return Original(original.state_dict(), run, format, model, SMALL)


def openclip_case(projection):
    open_clip = pytest.importorskip("open_clip")
    tower = open_clip.timm_model.TimmModel(
        "convnext_tiny", 10, proj=projection, pool="", image_size=64
    )
    tower.trunk = timm.create_model("convnext_tiny", num_classes=0, global_pool="avg", **SMALL)
    if projection == "linear":
        tower.head.proj = torch.nn.Linear(DIMS[-1], 10, bias=False)
    else:
        tower.head.mlp.fc1 = torch.nn.Linear(DIMS[-1], 20)
    randomised(tower)
    state = {f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}
    state |= {
        "logit_scale": torch.tensor(4.6),
        "positional_embedding": torch.zeros(77, 8),
        "token_embedding.weight": torch.zeros(5, 8),
        "text_projection": torch.zeros(8, 8),
        "transformer.resblocks.0.ln_1.weight": torch.zeros(8),
        "ln_final.weight": torch.zeros(8),
        "ln_final.bias": torch.zeros(8),
    }

    def run(x):
        return tower(x), tower.trunk.forward_intermediates(x, intermediates_only=True)

    hidden = {} if projection == "linear" else {"head_hidden_size": 20}
    return Original(state, run, "openclip", "convnext_tiny", {**SMALL, **hidden})


NO_NORM = ("norm.weight", "norm.bias", "head.weight", "head.bias")
CASES = {
    "facebook V1": facebook_case,
    "facebook V2": lambda: facebook_case("convnextv2_tiny"),
    "facebook V2 FCMAE encoder": lambda: facebook_case("convnextv2_tiny", classes=0, drop=NO_NORM),
    "facebook isotropic": lambda: isotropic_case(False),
    "facebook isotropic, layer scale": lambda: isotropic_case(True),
    "dinov3": lambda: facebook_case(classes=0, extra=norms_again, format="dinov3"),
    "dinov3 EUPE": lambda: facebook_case(classes=0, extra=projectors_too, format="dinov3"),
    "timm V1": lambda: timm_case("convnext_tiny"),
    "timm V1 without a head": lambda: timm_case("convnext_tiny", classes=0),
    "timm V2": lambda: timm_case("convnextv2_tiny"),
    "timm V2, 4-D perceptron": lambda: timm_case("convnextv2_atto"),
    "timm V1, 4-D perceptron": lambda: timm_case("convnext_atto"),
    "timm ols": lambda: timm_case("convnext_nano_ols"),
    "timm ols tiered": lambda: timm_case("convnext_atto_ols", dims=(32, 16, 24, 32)),
    "timm rms": lambda: timm_case("convnext_zepto_rms"),
    "timm rms, activation in the stem": lambda: timm_case("convnext_zepto_rms_ols"),
    "timm hnf": lambda: timm_case("convnext_tiny_hnf"),
    "timm hidden layer in the head": lambda: timm_case("convnext_large_mlp", head_hidden_size=20),
    "timm epsilon 1e-5": lambda: timm_case("convnext_xxlarge"),
    "timm SiLU, a kernel size per stage": lambda: timm_case("test_convnext3"),
    "torchvision": torchvision_case,
    "hf V1": lambda: hf_case("ConvNext", "convnext_tiny"),
    "hf V1 without a head": lambda: hf_case("ConvNext", "convnext_tiny", classes=0),
    "hf V2": lambda: hf_case("ConvNextV2", "convnextv2_tiny"),
    "hf DINOv3": lambda: hf_case("DINOv3ConvNext", "convnext_tiny", classes=0),
    "openclip": lambda: openclip_case("linear"),
    "openclip, perceptron": lambda: openclip_case("mlp"),
}


def torch_images(images):
    return torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)
