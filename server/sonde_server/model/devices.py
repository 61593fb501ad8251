"""The devices that modules compute on, also where their weights are stored elsewhere between calls."""

from collections.abc import Iterator

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn


def device_of(module: nn.Module) -> torch.device:
    """The device that a module computes on: the one accelerate moves its weights to, else the one that has them."""
    for part in module.modules():
        for hook in _hooks(part):
            device = getattr(hook, "execution_device", None)
            if device is not None:
                return torch.device(device)
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def _hooks(module: nn.Module) -> Iterator[object]:
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))


def parameter_of(module: nn.Module, name: str) -> Tensor:
    """A copy of a module's own parameter, on its device, for computing with it outside the module."""
    with align_module_device(module):
        parameter: Tensor = getattr(module, name)
        return parameter.detach().to(device_of(module), copy=True)
