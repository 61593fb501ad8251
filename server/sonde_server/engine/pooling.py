"""What is captured, as it leaves the device: pooled where that is asked for, in float32 on the CPU."""

import torch
from torch import Tensor

from ..questions.activations import Pooling
from .runs import Capture


def leaving(values: Tensor, capture: Capture) -> Tensor:
    """Captured values [positions, ...] as they are answered; if they are pooled, [rows, ...].

    Pooling is done on the device, in float32, so that only what is read leaves it. A row without positions is 0.
    """
    if capture.pooling is not Pooling.NONE:
        values = torch.stack([_pooled(row, capture.pooling) for row in values.float().split(list(capture.rows))])
    return values.float().cpu()


def _pooled(row: Tensor, pooling: Pooling) -> Tensor:
    if not len(row):
        return row.new_zeros(row.shape[1:])
    if pooling is Pooling.MEAN:
        return row.mean(0)
    # A number that is not finite must not hide behind a larger one.
    return torch.where(row.isfinite().all(0), row.amax(0), torch.nan)
