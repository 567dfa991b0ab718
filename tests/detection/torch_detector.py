"""mmdetection 2.11's Mask R-CNN and Cascade Mask R-CNN over ConvNeXt, said again in plain PyTorch.

For images upright, each padded to the size of all of them. Nothing is drawn at random: all
candidates take part in the losses. State dicts have the names and layouts of the published
checkpoints. RoIAlign, NMS and matching are loops, as the CPU build here has no operators of
torchvision's.
"""

import dataclasses
import math

import numpy as np
from oracles import torch
from torch import nn
from torch.nn import functional

RATIOS, SCALE, STRIDES = (0.5, 1.0, 2.0), 8, (4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Settings:
    cascade: bool
    num_classes: int = 5
    depths: tuple = (1, 1, 1, 1)
    dims: tuple = (12, 16, 20, 24)
    kernel: int = 3  # of blocks; XLA takes long to compile 7x7 filters' gradients
    channels: int = 8
    features: int = 32
    before: int = 60  # of a level
    after: int = 40
    detections: int = 30
    score_threshold: float = 0.05
    nms_threshold: float = 0.5

    @property
    def stages(self):
        """IoU threshold, stds, weight of losses."""
        if not self.cascade:
            return [(0.5, (0.1, 0.1, 0.2, 0.2), 1.0)]
        return [
            (0.5, (0.1, 0.1, 0.2, 0.2), 1.0),
            (0.6, (0.05, 0.05, 0.1, 0.1), 0.5),
            (0.7, (0.033, 0.033, 0.067, 0.067), 0.25),
        ]


# How near 0 inputs of ReLUs came, each time one was applied; and how near 0.5 bitmaps' means, of
# which rounding, of places of a hundred pixels, is ten times as large.
margins = []


def relu(x):
    margins.append(float(x.detach().abs().min()) if x.numel() else math.inf)
    return x.relu()


class ChannelsFirstNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    def __init__(self, dim, kernel):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(functional.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class Backbone(nn.Module):
    def __init__(self, depths, dims, kernel):
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), ChannelsFirstNorm(dims[0], eps=1e-6))
        self.downsample_layers = nn.ModuleList([stem])
        for before, after in zip(dims[:-1], dims[1:], strict=True):
            norm = ChannelsFirstNorm(before, eps=1e-6)
            self.downsample_layers.append(nn.Sequential(norm, nn.Conv2d(before, after, 2, 2)))
        self.stages = nn.ModuleList(
            [
                nn.Sequential(*(Block(dim, kernel) for _ in range(depth)))
                for depth, dim in zip(depths, dims, strict=True)
            ]
        )
        for i, dim in enumerate(dims):
            setattr(self, f"norm{i}", ChannelsFirstNorm(dim, eps=1e-6))

    def forward(self, x):
        maps = []
        for i, (down, stage) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            x = stage(down(x))
            maps.append(getattr(self, f"norm{i}")(x))
        return maps


class ConvModule(nn.Module):
    def __init__(self, before, after, size, norm=False):
        super().__init__()
        self.conv = nn.Conv2d(before, after, size, padding=size // 2, bias=not norm)
        if norm:
            self.bn = nn.BatchNorm2d(after)

    def forward(self, x):
        return self.bn(self.conv(x)) if hasattr(self, "bn") else self.conv(x)


class FPN(nn.Module):
    def __init__(self, dims, channels):
        super().__init__()
        self.lateral_convs = nn.ModuleList([ConvModule(dim, channels, 1) for dim in dims])
        self.fpn_convs = nn.ModuleList([ConvModule(channels, channels, 3) for _ in dims])

    def forward(self, maps):
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for i in (3, 2, 1):
            size = laterals[i - 1].shape[2:]
            laterals[i - 1] = laterals[i - 1] + functional.interpolate(laterals[i], size=size)
        levels = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=True)]
        return [*levels, functional.max_pool2d(levels[-1], 1, stride=2)]


class RPNHead(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, 3, 1)
        self.rpn_reg = nn.Conv2d(channels, 12, 1)

    def forward(self, levels):
        """Logits [N, A] and deltas [N, A, 4] of each level."""
        found = []
        for x in levels:
            x = relu(self.rpn_conv(x))
            n = len(x)
            logits = self.rpn_cls(x).permute(0, 2, 3, 1).reshape(n, -1)
            found.append((logits, self.rpn_reg(x).permute(0, 2, 3, 1).reshape(n, -1, 4)))
        return found


class BoxHead(nn.Module):
    def __init__(self, s):
        super().__init__()
        convs = 4 if s.cascade else 0
        modules = [ConvModule(s.channels, s.channels, 3, norm=True) for _ in range(convs)]
        self.shared_convs = nn.ModuleList(modules)
        fcs = [nn.Linear(s.channels * 49, s.features)]
        if not s.cascade:
            fcs.append(nn.Linear(s.features, s.features))
        self.shared_fcs = nn.ModuleList(fcs)
        self.fc_cls = nn.Linear(s.features, s.num_classes + 1)
        self.fc_reg = nn.Linear(s.features, 4 * s.num_classes)

    def forward(self, x):
        for conv in self.shared_convs:
            x = relu(conv(x))
        x = x.flatten(1)
        for fc in self.shared_fcs:
            x = relu(fc(x))
        return self.fc_cls(x), self.fc_reg(x).reshape(len(x), -1, 4)


class MaskHead(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.convs = nn.ModuleList([ConvModule(s.channels, s.channels, 3) for _ in range(4)])
        self.upsample = nn.ConvTranspose2d(s.channels, s.channels, 2, 2)
        self.conv_logits = nn.Conv2d(s.channels, s.num_classes, 1)

    def forward(self, x):
        for conv in self.convs:
            x = relu(conv(x))
        return self.conv_logits(relu(self.upsample(x)))


class RoIHead(nn.Module):
    def __init__(self, s):
        super().__init__()
        if s.cascade:
            self.bbox_head = nn.ModuleList([BoxHead(s) for _ in s.stages])
            self.mask_head = nn.ModuleList([MaskHead(s) for _ in s.stages])
        else:
            self.bbox_head, self.mask_head = BoxHead(s), MaskHead(s)


class Detector(nn.Module):
    def __init__(self, settings, seed=0):
        super().__init__()
        self.settings = s = settings
        self.backbone = Backbone(s.depths, s.dims, s.kernel)
        self.neck = FPN(s.dims, s.channels)
        self.rpn_head = RPNHead(s.channels)
        self.roi_head = RoIHead(s)
        randomise(self, seed)
        self.double()

    @property
    def heads(self):
        roi = self.roi_head
        both = (roi.bbox_head, roi.mask_head)
        return list(zip(*both, strict=True)) if self.settings.cascade else [both]

    def pyramid(self, images):
        """Of images [N, 3, H, W]: the five levels."""
        return self.neck(self.backbone(images))

    def proposals(self, outputs, image, padded, size):
        """Boxes [P, 4] of one image in descending order."""
        places = anchors(padded)
        found, scores = [], []
        for (logits, deltas), level in zip(outputs, places, strict=True):
            score, index = logits[image].detach().sigmoid().sort(descending=True, stable=True)
            index = index[: self.settings.before]
            moved = decode(level[index], deltas[image].detach()[index], (1,) * 4)
            moved = clip(moved, size)
            keep = nms(moved, 0.7)
            found.append(moved[keep])
            scores.append(score[: len(index)][keep])
        order = torch.cat(scores).argsort(descending=True, stable=True)
        return torch.cat(found)[order[: self.settings.after]]

    def losses(self, images, sizes, boxes, labels, masks):
        """Losses by name.

        Args:
          images: [N, 3, H, W].
          sizes: for each image height and width before it was padded.
          boxes: for each image [G, 4].
          labels: for each image [G].
          masks: for each image [G, H', W'], 0 and 1, padded at least as far.
        """
        s = self.settings
        levels = self.pyramid(images)
        outputs = self.rpn_head(levels)
        losses = self._rpn_losses(outputs, boxes, tuple(images.shape[2:]), sizes)
        regions = [
            self.proposals(outputs, i, images.shape[2:], size) for i, size in enumerate(sizes)
        ]
        self.positives = []
        for number, (threshold, stds, weight) in enumerate(s.stages):
            box_head, mask_head = self.heads[number]
            assigned = [
                assign(r, b, threshold, threshold, threshold, not s.cascade)
                for r, b in zip(regions, boxes, strict=True)
            ]
            rois, objects, given = [], [], []
            for r, a, b in zip(regions, assigned, boxes, strict=True):
                rois.append(torch.cat([b, r]))
                objects.append(torch.cat([torch.arange(len(b)), a]))
                given.append(torch.arange(len(rois[-1])) < len(b))
            image = torch.cat([torch.full((len(r),), i) for i, r in enumerate(rois)])
            own = torch.cat(objects)
            positive = own >= 0
            self.positives.append(int((positive & ~torch.cat(given)).sum()))
            label = torch.full(own.shape, s.num_classes)
            target = torch.zeros((len(own), 4), dtype=torch.float64)
            for i in range(len(images)):
                mine = positive & (image == i)
                label[mine], target[mine] = labels[i][own[mine]], boxes[i][own[mine]]
            places = torch.cat(rois)
            logits, deltas = box_head(roi_features(levels, places, image, 7))
            found = {"loss_cls": functional.cross_entropy(logits, label)}
            chosen = deltas[positive, label[positive]]
            if s.cascade:
                moved = decode(places[positive], chosen, stds)
                off = 10 * giou_loss(moved, target[positive])
            else:
                off = (chosen - encode(places[positive], target[positive], stds)).abs()
            found["loss_bbox"] = off.sum() / len(own)
            if positive.any():
                x = roi_features(levels, places[positive], image[positive], 14)
                of_masks = mask_head(x)[torch.arange(len(x)), label[positive]]
                wanted = torch.stack(
                    [
                        mask_target(masks[i][o].double(), box)
                        for i, o, box in zip(
                            image[positive], own[positive], places[positive], strict=True
                        )
                    ]
                )
                found["loss_mask"] = functional.binary_cross_entropy_with_logits(of_masks, wanted)
            else:
                found["loss_mask"] = logits.sum() * 0
            name = f"s{number}_" if s.cascade else ""
            losses |= {name + k: weight * v for k, v in found.items()}
            with torch.no_grad():
                best = torch.where(positive, label, logits[:, :-1].argmax(1))
                moved = decode(places, deltas[torch.arange(len(best)), best], stds)
                new = ~torch.cat(given)
                regions = [clip(moved[new & (image == i)], size) for i, size in enumerate(sizes)]
        return losses

    def _rpn_losses(self, outputs, boxes, padded, sizes):
        place = torch.cat(anchors(padded))
        cascade = self.settings.cascade
        total, of_class, of_box = 0, 0.0, 0.0
        for i, (objects, size) in enumerate(zip(boxes, sizes, strict=True)):
            usable = torch.ones(len(place), dtype=torch.bool)
            if cascade:
                usable = within(place, size)
            own = assign(place[usable], objects, 0.7, 0.3, 0.3, True)
            logits = torch.cat([x[i] for x, _ in outputs])[usable]
            deltas = torch.cat([x[i] for _, x in outputs])[usable]
            drawn, positive = own > -2, own >= 0
            total += int(drawn.sum())
            of_class = of_class + functional.binary_cross_entropy_with_logits(
                logits[drawn], positive[drawn].double(), reduction="sum"
            )
            wanted = encode(place[usable][positive], objects[own[positive]], (1,) * 4)
            if cascade:
                off = functional.smooth_l1_loss(
                    deltas[positive], wanted, beta=1 / 9, reduction="sum"
                )
            else:
                off = (deltas[positive] - wanted).abs().sum()
            of_box = of_box + off
        return {"loss_rpn_cls": of_class / total, "loss_rpn_bbox": of_box / total}

    @torch.no_grad()
    def detect(self, images, sizes):
        """For each image boxes [D, 4], scores [D], labels [D] and masks [D, 28, 28]."""
        s = self.settings
        levels = self.pyramid(images)
        outputs = self.rpn_head(levels)
        results = []
        for i, size in enumerate(sizes):
            places = self.proposals(outputs, i, images.shape[2:], size)
            image = torch.full((len(places),), i)
            total = 0
            for number, (_, stds, _) in enumerate(s.stages):
                logits, deltas = self.heads[number][0](roi_features(levels, places, image, 7))
                total = total + logits
                if number < len(s.stages) - 1:
                    best = logits[:, :-1].argmax(1)
                    chosen = deltas[torch.arange(len(best)), best]
                    places = clip(decode(places, chosen, stds), size)
            scores = (total / len(s.stages)).softmax(1)[:, :-1]
            moved = clip(decode(places[:, None], deltas, stds), size)
            region, label = torch.nonzero(scores > s.score_threshold, as_tuple=True)
            order = scores[region, label].argsort(descending=True, stable=True)
            region, label = region[order], label[order]
            kept = torch.zeros(len(order), dtype=torch.bool)
            for of_class in range(s.num_classes):
                mine = torch.nonzero(label == of_class)[:, 0]
                kept[mine[nms(moved[region[mine], of_class], s.nms_threshold)]] = True
            region, label = (x[kept][: s.detections] for x in (region, label))
            boxes = moved[region, label]
            x = roi_features(levels, boxes, torch.full((len(boxes),), i), 14)
            masks = [head(x)[torch.arange(len(x)), label].sigmoid() for _, head in self.heads]
            results.append((boxes, scores[region, label], label, sum(masks) / len(masks)))
        return results


def anchors(size):
    """Of each level [A, 4]: rows, columns, ratios."""
    found = []
    for stride in STRIDES:
        rows, columns = (math.ceil(side / stride) for side in size)
        level = []
        for y in range(rows):
            for x in range(columns):
                for ratio in RATIOS:
                    half_w = stride * SCALE / math.sqrt(ratio) / 2
                    half_h = stride * SCALE * math.sqrt(ratio) / 2
                    cx, cy = x * stride, y * stride
                    level.append((cx - half_w, cy - half_h, cx + half_w, cy + half_h))
        found.append(torch.tensor(level, dtype=torch.float64))
    return found


def within(boxes, size):
    """Which boxes do not cross the border of an image."""
    lower, upper = boxes[:, :2], boxes[:, 2:]
    return (lower >= 0).all(1) & (upper < torch.tensor(size[::-1])).all(1)


def decode(places, deltas, stds):
    deltas = deltas * torch.tensor(stds, dtype=torch.float64)
    limit = abs(math.log(16 / 1000))
    w, h = places[..., 2] - places[..., 0], places[..., 3] - places[..., 1]
    cx, cy = (places[..., 0] + places[..., 2]) / 2, (places[..., 1] + places[..., 3]) / 2
    cx, cy = cx + w * deltas[..., 0], cy + h * deltas[..., 1]
    w, h = (
        w * deltas[..., 2].clamp(-limit, limit).exp(),
        h * deltas[..., 3].clamp(-limit, limit).exp(),
    )
    return torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1)


def encode(places, boxes, stds):
    (pw, ph), (w, h) = ((b[:, 2] - b[:, 0], b[:, 3] - b[:, 1]) for b in (places, boxes))
    (px, py), (x, y) = ((b[:, :2] + b[:, 2:]).unbind(1) for b in (places / 2, boxes / 2))
    deltas = torch.stack([(x - px) / pw, (y - py) / ph, (w / pw).log(), (h / ph).log()], -1)
    return deltas / torch.tensor(stds, dtype=torch.float64)


def clip(boxes, size):
    x, y = boxes[..., 0::2].clamp(0, size[1]), boxes[..., 1::2].clamp(0, size[0])
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)


def ious(a, b):
    """[len(a), len(b)]."""
    upper = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = (upper - torch.maximum(a[:, None, :2], b[None, :, :2])).clamp(min=0)
    both = sides.prod(-1)
    areas = [(x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b)]
    return both / (areas[0][:, None] + areas[1][None] - both).clamp(min=1e-6)


def nms(boxes, threshold):
    """Which boxes stay, of a descending list."""
    found = ious(boxes, boxes) if len(boxes) else torch.zeros(0, 0)
    keep = []
    for i in range(len(boxes)):
        if not any(found[i, j] > threshold for j in keep):
            keep.append(i)
    return torch.tensor(keep, dtype=torch.long)


def assign(places, objects, positive, negative, minimum, low_quality):
    """mmdet's MaxIoUAssigner: the object's index, -1 for negatives, -2 for neither."""
    own = torch.full((len(places),), -2)
    if not len(objects):
        return torch.full_like(own, -1)
    found = ious(objects, places)
    best, which = found.max(0)
    own[best < negative] = -1
    own[best >= positive] = which[best >= positive]
    if low_quality and len(places):
        for i, row in enumerate(found):
            if row.max() >= minimum:
                own[row == row.max()] = i
    return own


def giou_loss(a, b):
    upper, lower = torch.minimum(a[:, 2:], b[:, 2:]), torch.maximum(a[:, :2], b[:, :2])
    both = (upper - lower).clamp(min=0).prod(-1)
    union = sum((x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b)) - both
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(-1)
    union, hull = union.clamp(min=1e-6), hull.clamp(min=1e-6)
    return 1 - (both / union - (hull - union) / hull)


def axis_weights(start, end, size, out):
    """How much of each of `size` cells the bins see: [out, size]."""
    weights = np.zeros((out, size))
    length = end - start
    samples = math.ceil(length / out)
    for i in range(out):
        for j in range(samples):
            place = start + i * length / out + (j + 0.5) * length / out / samples
            if not -1 <= place <= size:
                continue
            place = min(max(place, 0), size - 1)
            low = min(int(place), size - 1)
            high = min(low + 1, size - 1)
            weights[i, low] += (1 - (place - low)) / samples
            weights[i, high] += (place - low) / samples
    return torch.tensor(weights)


def roi_align(x, box, stride, out):
    """Of a map [C, H, W] and one box: [C, out, out]."""
    x1, y1, x2, y2 = (float(c) / stride - 0.5 for c in box)
    rows = axis_weights(y1, y2, x.shape[1], out)
    columns = axis_weights(x1, x2, x.shape[2], out)
    return rows @ x @ columns.T


def roi_features(levels, boxes, image, out):
    if not len(boxes):
        return torch.zeros((0, levels[0].shape[1], out, out), dtype=torch.float64)
    found = []
    for box, i in zip(boxes, image, strict=True):
        side = math.sqrt(float((box[2] - box[0]) * (box[3] - box[1])))
        level = int(min(max(math.floor(math.log2(side / 56 + 1e-6)), 0), 3))
        found.append(roi_align(levels[level][i], box, STRIDES[level], out))
    return torch.stack(found)


def mask_target(mask, box):
    mean = roi_align(mask[None], box, 1, 28)[0]
    margins.append(float((mean - 0.5).abs().min()) / 10)
    return (mean >= 0.5).double()


def randomise(model, seed):
    """Weights of order 1, at which every parameter matters and boxes stay near where they were."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "num_batches" in name:
                continue
            drawn = torch.randn(value.shape, generator=generator)
            if "running_var" in name:
                drawn = 0.5 + drawn.abs()
            elif "running_mean" in name or name.endswith("bias"):
                drawn = 0.3 * drawn
            elif name.endswith("gamma"):
                drawn = 0.6 + 0.2 * drawn
            elif value.ndim == 1:
                drawn = 1 + 0.3 * drawn
            elif "upsample" in name:
                drawn = drawn / len(value) ** 0.5
            else:
                drawn = drawn / value[0].numel() ** 0.5
            if "rpn_reg" in name:
                drawn = 0.3 * drawn
            value.copy_(drawn)


def renamed(state, channels):
    """Their tensors by our names, in our layouts: parameters, and batch statistics."""
    params, stats = {}, {}
    for name, value in state.items():
        if "num_batches" in name:
            continue
        *parts, leaf = name.split(".")
        value = value.detach().numpy().astype(np.float32)
        if leaf.startswith("running_"):
            stats["/".join([*parts, leaf.removeprefix("running_")])] = value
            continue
        if leaf == "weight":
            leaf = "kernel" if value.ndim > 1 else "scale"
        if "shared_fcs.0" in name and value.ndim == 2:
            value = value.reshape(-1, channels, 7, 7).transpose(2, 3, 1, 0)
            value = value.reshape(-1, value.shape[-1])
        elif parts[-1] == "upsample" and value.ndim == 4:
            value = value.transpose(2, 3, 0, 1)
        elif value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
        elif value.ndim == 2:
            value = value.T
        params["/".join([*parts, leaf])] = np.ascontiguousarray(value)
    return params, stats
