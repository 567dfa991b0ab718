"""Whether each device has so few images that other forms of an operation are faster on TPUs.

XLA's convolutions for TPUs lay images side by side in the lanes or sublanes of a register, which
one or two of them leave empty. An operation sees all images of a step, not how many lie on a
device; that is told here, while the step is traced.
"""

import contextlib
import contextvars
from collections.abc import Iterator

from jax import Array

_DEVICES = contextvars.ContextVar("devices", default=1)


@contextlib.contextmanager
def batch_over(devices: int) -> Iterator[None]:
    """Says over how many devices the images lie of what is traced within this context."""
    token = _DEVICES.set(devices)
    try:
        yield
    finally:
        _DEVICES.reset(token)


def devices_with_few(x: Array, most: int = 2) -> int | None:
    """Over how many devices images [N, ...] lie if each has `most` or fewer; None: it has more."""
    devices = _DEVICES.get()
    images, rest = divmod(x.shape[0], devices)
    return devices if rest == 0 and 0 < images <= most else None
