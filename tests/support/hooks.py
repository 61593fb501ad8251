"""Shows every component's value of a plain transformers model to whoever wants to see or change it.

`attach(model, visit)` puts hooks on an unchanged Hugging Face model, so that `visit(component, layer, tensor)` is
called with every component's value, batch first, and what it returns takes that value's place. A component without
layers comes with layer 0. Nothing here is clever or fast: it is what the server is compared with.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from tests.support.attentions import Visit, show
from tests.support.modules import modules_of

__all__ = ["Visit", "attach", "modules_of"]


def _first(output: Any) -> Tensor:
    value: Tensor = output[0] if isinstance(output, tuple) else output
    return value


def _with_first(output: Any, value: Tensor) -> Any:
    return (value, *output[1:]) if isinstance(output, tuple) else value


def _on_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """Changes what a module gives; returns how to take the hook away."""

    def hook(_: nn.Module, __: Any, result: Any) -> Any:
        return _with_first(result, change(_first(result)))

    return module.register_forward_hook(hook).remove


def _on_input(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """Changes the hidden states that a module takes; returns how to take the hook away."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return module.register_forward_pre_hook(hook, with_kwargs=True).remove


def _on_embeddings(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """Changes the token embeddings that a model takes in the place of tokens; returns how to take the hook away."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "inputs_embeds": change(kwargs["inputs_embeds"])}

    return module.register_forward_pre_hook(hook, with_kwargs=True).remove


@contextmanager
def attach(model: Any, visit: Visit) -> Iterator[None]:
    """Shows every component's value to `visit` until the block is left."""
    parts = modules_of(model)
    heads = model.config.get_text_config().num_attention_heads
    sizes: list[tuple[int, int]] = []

    def embedded(value: Tensor) -> Tensor:
        sizes[:] = [(value.shape[0], value.shape[1])]
        return visit("TOKEN_EMBEDDING", 0, value)

    def shown(component: str, layer: int, value: Tensor, factor: float = 1.0) -> Tensor:
        # Some modules are given all rows of the batch as one.
        whole = value if value.ndim == 3 else value.view(*sizes[0], -1)
        changed = visit(component, layer, whole if factor == 1.0 else whole * factor)
        return (changed if factor == 1.0 else changed / factor).view(value.shape)

    def middle(layer: int, value: Tensor) -> Tensor:
        # In place: the block holds the same tensor as the residual stream that the MLP is added to.
        return value if value.requires_grad else value.copy_(shown("RESIDUAL_MID", layer, value))

    def by_head(layer: int, value: Tensor) -> Tensor:
        return visit("HEAD_OUT", layer, value.view(*value.shape[:-1], heads, -1)).flatten(-2)

    def predicted(_: nn.Module, __: Any, output: Any) -> Any:
        output.logits = visit("LOGITS", 0, output.logits)
        return output

    with ExitStack() as stack:
        if parts.entered is None:
            stack.callback(_on_output(parts.embedding, embedded))
        else:
            stack.callback(_on_embeddings(parts.entered, embedded))
        for layer, block in enumerate(parts.blocks):
            stack.callback(_on_input(block, partial(visit, "RESIDUAL_PRE", layer)))
            stack.callback(_on_output(block, partial(visit, "RESIDUAL_POST", layer)))
        for hook, modules, change in (
            (_on_input, parts.attention_projection, by_head),
            (_on_output, parts.attention_out, partial(shown, "ATTENTION_OUT", factor=parts.factor)),
            (_on_input, parts.mlp_norm, middle),
            (_on_input, parts.mlp_projection, partial(shown, "NEURON")),
            (_on_output, parts.mlp_out, partial(shown, "MLP_OUT", factor=parts.factor)),
        ):
            for layer, module in enumerate(modules):
                stack.callback(hook(module, partial(change, layer)))
        stack.callback(_on_output(parts.final_norm, partial(visit, "FINAL_NORM", 0)))
        stack.callback(model.register_forward_hook(predicted).remove)
        show(model, parts.attention, visit, stack)
        yield
