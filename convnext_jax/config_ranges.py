"""The range of each key of a config; their types are checked where it is built."""

import dataclasses
import itertools
import math
from typing import Any

from convnext_jax.errors import InputError


def check_ranges(config: Any) -> None:
    """Raises InputError for the first value of a `config.Config` that is out of its range."""

    def check(key: str, holds: bool, rule: str) -> None:
        if not holds:
            value: Any = config
            for part in key.split("."):
                value = getattr(value, part)
            raise InputError(f"`{key}` (={value!r}) must {rule}")

    for key, value in _numbers(config, ""):
        check(key, math.isfinite(value), "be finite")
    data, optim, model = config.data, config.optim, config.model
    check("seed", 0 <= config.seed < 2**32, "lie in [0, 2**32)")
    check("num_epochs", config.num_epochs > 0, "be positive")
    check("num_steps", config.num_steps is None or config.num_steps > 0, "be positive, or None")
    check("eval_every_epochs", config.eval_every_epochs > 0, "be positive")
    every = config.eval_every_steps
    check("eval_every_steps", every is None or every > 0, "be positive, or None")
    check("log_every_steps", config.log_every_steps > 0, "be positive")
    check("hang_seconds", config.hang_seconds >= 0, "not be negative")
    check("report_examples", config.report_examples >= 0, "not be negative")
    check("profile_steps", config.profile_steps >= 0, "not be negative")
    check("model.dtype", model.dtype in ("float32", "bfloat16"), "be float32 or bfloat16")
    check("model.drop_path", 0 <= model.drop_path < 1, "lie in [0, 1)")
    check("data.global_batch", data.global_batch > 0, "be positive")
    for key in ("per_device_batch", "eval_batch", "image_size"):
        value = getattr(data, key)
        check(f"data.{key}", value is None or value > 0, "be positive, or None")
    check("data.crop", data.crop in ("random_resized", "padded"), "be random_resized or padded")
    check("data.crop_scale", 0 < data.crop_scale <= 1, "lie in (0, 1]")
    check("data.flip", 0 <= data.flip <= 1, "lie in [0, 1]")
    check("data.eval_crop", data.eval_crop is None or 0 < data.eval_crop <= 1, "lie in (0, 1]")
    check("data.workers", data.workers >= -1, "not be negative, except for -1")
    check("data.threads", data.threads > 0, "be positive")
    check("data.on_error", data.on_error in ("stop", "skip"), "be stop or skip")
    check("data.max_skipped", data.max_skipped >= 0, "not be negative")
    segment = config.segmentation
    check("segmentation.scale_min", segment.scale_min > 0, "be positive")
    enough = segment.scale_max >= segment.scale_min
    check("segmentation.scale_max", enough, "be at least segmentation.scale_min")
    check("segmentation.dropout", 0 <= segment.dropout < 1, "lie in [0, 1)")
    check("segmentation.auxiliary_weight", segment.auxiliary_weight >= 0, "not be negative")
    for key in ("decoder_channels", "auxiliary_channels"):
        value = getattr(segment, key)
        check(f"segmentation.{key}", value is None or value > 0, "be positive, or None")
    check("segmentation.first_label", 0 <= segment.first_label <= 255, "lie in 0..255")
    ignored = segment.ignored
    check("segmentation.ignored", ignored is None or 0 <= ignored <= 255, "lie in 0..255, or None")
    detect = config.detection
    for key in ("short_sides", "crop_short_sides"):
        sides = getattr(detect, key)
        check(f"detection.{key}", bool(sides) and min(sides) > 0, "be one or more positive numbers")
    enough = detect.longest_side >= max(detect.short_sides)
    check("detection.longest_side", enough, "be at least the largest of detection.short_sides")
    check("detection.crop_min", detect.crop_min > 0, "be positive")
    enough = detect.crop_max >= detect.crop_min
    check("detection.crop_max", enough, "be at least detection.crop_min")
    check("detection.max_objects", detect.max_objects > 0, "be positive")
    check("optim.lr", optim.lr > 0, "be positive")
    kinds = ("cosine", "poly", "step")
    check("optim.schedule", optim.schedule in kinds, "be cosine, poly or step")
    rising = all(a < b for a, b in itertools.pairwise((0, *optim.milestones)))
    check("optim.milestones", rising, "be rising epochs after the first")
    stepped = not optim.milestones or optim.schedule == "step"
    check("optim.milestones", stepped, "be empty, unless `optim.schedule` is step")
    by = optim.layer_decay_by
    check("optim.layer_decay_by", by in ("blocks", "stages"), "be blocks or stages")
    check("optim.min_lr", 0 <= optim.min_lr <= optim.lr, "lie in [0, optim.lr]")
    check("optim.warmup_epochs", optim.warmup_epochs >= 0, "not be negative")
    warmup = optim.warmup_steps
    check("optim.warmup_steps", warmup is None or warmup >= 0, "not be negative, or None")
    check("optim.weight_decay", optim.weight_decay >= 0, "not be negative")
    end = optim.weight_decay_end
    check("optim.weight_decay_end", end is None or end >= 0, "not be negative, or None")
    check("optim.layer_decay", 0 < optim.layer_decay <= 1, "lie in (0, 1]")
    check("optim.b1", 0 <= optim.b1 < 1, "lie in [0, 1)")
    check("optim.b2", 0 <= optim.b2 < 1, "lie in [0, 1)")
    check("optim.eps", optim.eps > 0, "be positive")
    check("optim.clip_norm", optim.clip_norm >= 0, "not be negative")
    sums = ("float32", model.dtype)
    check("optim.gradient_sum", optim.gradient_sum in sums, "be float32, or `model.dtype`")
    check("optim.label_smoothing", 0 <= optim.label_smoothing < 1, "lie in [0, 1)")
    check("optim.ema_decay", 0 <= optim.ema_decay < 1, "lie in [0, 1)")
    every = config.checkpoint.every_steps
    check("checkpoint.every_steps", every is None or every > 0, "be positive, or None")
    check("checkpoint.keep_last", config.checkpoint.keep_last > 0, "be positive")
    on_damage = config.checkpoint.on_damage
    check("checkpoint.on_damage", on_damage in ("fall_back", "stop"), "be fall_back or stop")


def _numbers(section: Any, prefix: str) -> list[tuple[str, float]]:
    found = []
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            found += _numbers(value, f"{prefix}{field.name}.")
        elif isinstance(value, float):
            found.append((prefix + field.name, value))
    return found
