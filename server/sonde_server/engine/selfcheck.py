"""Checks, when a model is loaded, that the engine computes what transformers computes with the same weights.

Both run a short prompt. If their logits differ by more than rounding, the model is not served. Each block is also
checked alone, on the input that it has in transformers, so that errors do not accumulate: it must add to the stream
what transformers' block adds, and the identities that define the components must hold. A component whose identity fails
is withdrawn, and GetModel says why.

A model that reads images is checked once more, with an image that is made up before the prompt's tokens.

In half precision some models overflow at the token that begins texts. So transformers also runs the prompt after that
token, and a model whose logits are not finite is not served.
"""

import inspect
import logging
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UnsupportedModel
from ..model.configuration import reading
from ..questions.extents import Extent
from ..questions.images import Image
from ..questions.places import PAIRWISE, Component
from .attention import Block, attend
from .engine import Engine
from .execute import Execution, Work
from .layout import Layout, Row
from .runs import Capture, State
from .visits import Visits

# The largest relative difference that rounding may cause, in the logits and in the output of one block. For tiny models
# of every family it is 1e-6 and 4e-7 in float32, 1.5e-2 and 9e-3 in bfloat16.
TOLERANCES = {
    torch.float64: (1e-6, 1e-6),
    torch.float32: (1e-4, 1e-4),
    torch.float16: (1e-2, 5e-3),
    torch.bfloat16: (5e-2, 2e-2),
}
TOKENS = 12
# The prompt is longer than a sliding window of up to this many positions. The logits are compared at its first and last
# positions.
LONGEST_WINDOW = 256
FIRST, LAST = 4, 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plain:
    """What transformers computes: logits [P, V] at the compared positions, each block's input and output [T, D]."""

    logits: Tensor
    before: list[Tensor]
    after: list[Tensor]


@dataclass(slots=True)
class Worst:
    """The layer where an identity has its largest error, and that error."""

    precise: bool
    error: float = 0.0
    layer: int = 0

    def see(self, layer: int, found: Tensor, expected: Tensor, floor: Tensor | float = 0.0) -> None:
        """Compares a layer's values [P, ...]. `floor` [P] is added to the size that errors are relative to."""
        error = summary(distance(found, expected, floor), precise=self.precise)
        if error > self.error:
            self.error, self.layer = error, layer


@dataclass(slots=True)
class Findings:
    """The errors of all identities."""

    sums: Worst
    patterns: Worst
    heads: Worst
    neurons: Worst
    hidden_neurons: str | None = None

    @classmethod
    def none(cls, *, precise: bool) -> "Findings":
        """Before anything was compared."""
        return cls(Worst(precise), Worst(precise), Worst(precise), Worst(precise))


class Check:
    """The check of one model, with a text or with an image."""

    def __init__(self, engine: Engine, *, seeing: bool = False) -> None:
        decoder = self.decoder = engine.decoder
        windows = [one for one in decoder.family.windows or () if one is not None and one <= LONGEST_WINDOW]
        length = min(max(windows) + LAST if windows else TOKENS, decoder.max_positions)
        self.known = min(decoder.vocabulary_size, int(decoder.embedding.weight.shape[0]))
        tokens = np.random.RandomState(0).randint(self.known, size=length)
        self.tokens = tuple(int(token) for token in tokens)
        self.image: Image | None = None
        if seeing and decoder.eye is not None:
            vision, seen = decoder.eye.vision, decoder.eye.example()
            # No other token may look like one of the image's.
            text = [token if token != vision.token else 0 for token in self.tokens]
            self.tokens = (*text[:FIRST], *[vision.token] * seen.spread.positions, *text[FIRST:])
            self.image = decoder.eye.placed(seen, range(FIRST, FIRST + seen.spread.positions))
            length = len(self.tokens)
        self.positions = tuple(sorted({*range(min(FIRST, length)), *range(max(0, length - LAST), length)}))
        self.precise = decoder.dtype.itemsize >= 4
        self.tolerance, self.block_tolerance = TOLERANCES.get(decoder.dtype, TOLERANCES[torch.bfloat16])

    @property
    def begun(self) -> tuple[int, ...]:
        """The prompt with the token that begins texts at its start. Activations are often largest there."""
        begin = getattr(self.decoder.model.config.get_text_config(), "bos_token_id", None)
        if not isinstance(begin, int) or not 0 <= begin < self.known:
            return self.tokens
        return (begin, *self.tokens[1:])

    def plain(self, tokens: tuple[int, ...]) -> Plain:
        """A prompt of that length, run by transformers."""
        before: list[Tensor] = []
        after: list[Tensor] = []

        def entering(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            before.append((args[0] if args else kwargs["hidden_states"])[0].clone())

        def leaving(_: nn.Module, __: Any, output: Any) -> None:
            after.append((output[0] if isinstance(output, tuple) else output)[0].clone())

        with ExitStack() as hooks:
            for block in self.decoder.blocks:
                hooks.callback(block.module.register_forward_pre_hook(entering, with_kwargs=True).remove)
                hooks.callback(block.module.register_forward_hook(leaving).remove)
            ids = torch.tensor([tokens], device=self.decoder.device)
            given = {} if self.image is None else self._given(self.image, ids)
            logits = self.decoder.model(input_ids=ids, use_cache=False, **given).logits
        return Plain(logits[0, list(self.positions)].float().cpu(), before, after)

    def _given(self, image: Image, ids: Tensor) -> dict[str, Tensor]:
        """What transformers takes beside the tokens."""
        there = torch.zeros_like(ids)
        there[0, list(image.arrangement.positions)] = 1
        # Without them some models silently see images as texts, in attention or in rotary angles.
        taken = inspect.signature(self.decoder.model.forward).parameters
        kinds = {name: there for name in ("token_type_ids", "mm_token_type_ids") if name in taken}
        assert self.decoder.eye is not None
        return {name: value.to(ids.device) for name, value in self.decoder.eye.inputs(image).items()} | kinds

    def logits(self) -> Tensor:
        """The engine's logits [P, V] at the compared positions of the prompt."""
        row = self.row((Capture(Component.LOGITS, 0, self.positions),))
        Execution(self.decoder, [row], Work()).run()
        return row.result.captures[0]

    def row(self, captures: tuple[Capture, ...]) -> Row:
        """The prompt as a row of a batch."""
        state = None if self.image is None else State(self.tokens, image=self.image)
        extent = Extent.whole(self.decoder.layers, len(self.tokens))
        return Row(self.tokens, None, extent, captures=captures, state=state)

    def block(self, layer: int, plain: Plain, findings: Findings) -> None:
        """Checks one block on its input in transformers."""
        decoder = self.decoder
        stream = decoder.place(plain.before[layer], layer)
        layout = Layout([self.row(())])
        query, key, value = decoder.project(layer, stream, self._rotations(stream, layout))
        block = Block(layer, decoder.attention_settings(layer), Visits([]))
        mixed = attend(block, layout.only_segment, query, key[None], value[None])
        attention = decoder.attention_output(layer, mixed)
        middle = stream if decoder.family.parallel else stream + attention
        seen: list[Tensor] = []
        mlp = decoder.mlp_output(layer, middle, None if Component.NEURON in decoder.unavailable else _keep(seen))
        self._sum(layer, attention, mlp, plain, findings)
        self._pattern(layer, (query, key, value), mixed, findings)
        self._heads(layer, mixed[-1:], findings)
        if Component.NEURON not in decoder.unavailable:
            self._neurons(layer, seen, mlp, findings)

    def _rotations(self, stream: Tensor, layout: Layout) -> Any:
        return self.decoder.rotation(stream, layout.turns(stream.device), layout.lengths)

    def _sum(self, layer: int, attention: Tensor, mlp: Tensor, plain: Plain, findings: Findings) -> None:
        one, other, before, after = (
            tensor.double().cpu() for tensor in (attention, mlp, plain.before[layer], plain.after[layer])
        )
        # The stream is rounded too, and may be far larger than what a block adds to it; and two parts may cancel.
        rounding = torch.finfo(self.decoder.dtype).eps / self.block_tolerance * after.norm(dim=-1)
        findings.sums.see(layer, one + other, after - before, one.norm(dim=-1) + other.norm(dim=-1) + 2 * rounding)

    def _pattern(self, layer: int, projected: tuple[Tensor, Tensor, Tensor], mixed: Tensor, findings: Findings) -> None:
        asked = self.row((Capture(Component.ATTENTION_PATTERN, layer, tuple(range(len(self.tokens)))),))
        block = Block(layer, self.decoder.attention_settings(layer), Visits([asked]))
        query, key, value = projected
        attend(block, Layout([asked]).only_segment, query, key[None], value[None])
        values = value.repeat_interleave(self.decoder.heads // self.decoder.key_value_heads, dim=1)
        pattern = asked.captured[0].to(values.dtype)
        findings.patterns.see(layer, torch.einsum("hqk,khd->qhd", pattern, values), mixed)

    def _heads(self, layer: int, mixed: Tensor, findings: Findings) -> None:
        alone = torch.diag_embed(mixed[0].T).permute(2, 1, 0)  # [H, H, d]: one head each, the others 0
        several = torch.cat([alone, mixed, torch.zeros_like(mixed)])
        *heads, every, bias = self.decoder.blocks[layer].output_projection(several.flatten(1)).float()
        findings.heads.see(layer, ((torch.stack(heads) - bias).sum(0) + bias)[None], every[None])

    def _neurons(self, layer: int, seen: list[Tensor], mlp: Tensor, findings: Findings) -> None:
        shapes = [tuple(one.shape) for one in seen]
        if shapes != [(len(self.tokens), self.decoder.neurons)]:
            findings.hidden_neurons = f"in layer {layer}, expected {self.decoder.neurons}, got {shapes}"
            return
        made = self.decoder.neurons_output(layer, seen[0])
        if made.shape != mlp.shape:
            findings.hidden_neurons = f"in layer {layer}, the layer after them gives {tuple(made.shape)}"
        else:
            findings.neurons.see(layer, made, mlp)


def verify(engine: Engine) -> None:
    """Compares the engine with the model. Raises UnsupportedModel, with the numbers, where the logits differ."""
    _verify(Check(engine))
    if engine.decoder.eye is not None:
        with reading("this model cannot see an image that its image processor has prepared"):
            _verify(Check(engine, seeing=True))


def _verify(check: Check) -> None:
    findings = Findings.none(precise=check.precise)
    decoder = check.decoder
    with torch.inference_mode():
        for tokens in dict.fromkeys((check.begun, check.tokens)):
            plain = check.plain(tokens)
            _refuse_overflow(check, plain)
        error = summary(distance(_centred(check.logits()), _centred(plain.logits)), precise=check.precise)
        for layer in range(decoder.layers):
            check.block(layer, plain, findings)
    if error > check.tolerance or findings.sums.error > check.block_tolerance:
        worst = findings.sums
        raise UnsupportedModel(
            f"this {decoder.model.config.model_type} model cannot be served: Sonde's results differ from "
            f"transformers'; the logits differ by {error:.2g} of their size (expected at most {check.tolerance:.0e} in "
            f"{str(decoder.dtype).removeprefix('torch.')}), and block {worst.layer}, the worst, by {worst.error:.2g} "
            f"(expected at most {check.block_tolerance:.0e})"
        )
    _withdraw(check, findings)


def _refuse_overflow(check: Check, plain: Plain) -> None:
    """Raises UnsupportedModel if the logits are not finite in transformers: nothing could be compared or answered."""
    if plain.logits.isfinite().all():
        return
    overflown = (layer for layer, after in enumerate(plain.after) if not after.isfinite().all())
    first = next(overflown, None)
    where = "at the unembedding" if first is None else f"from block {first} on"
    wider = "bfloat16 or float32" if check.decoder.dtype is torch.float16 else "float32"
    advice = "" if check.precise else f"; load it with --dtype {wider}"
    raise UnsupportedModel(
        f"this {check.decoder.model.config.model_type} model cannot be served: in "
        f"{str(check.decoder.dtype).removeprefix('torch.')} its activations are infinite or NaN {where}{advice}"
    )


def _withdraw(check: Check, findings: Findings) -> None:
    for worst, components, identity in (
        (findings.patterns, sorted(PAIRWISE), "pattern times values differs from the output of the heads"),
        (findings.heads, (Component.HEAD_OUT,), "the heads' parts and the bias do not add up to attention's output"),
        (findings.neurons, (Component.NEURON,), "the neurons do not give the output of the MLP"),
    ):
        if worst.error > check.block_tolerance:
            expected = f"expected at most {check.block_tolerance:.0e}"
            _refuse(check, components, f"{identity}: by {worst.error:.2g} in layer {worst.layer} ({expected})")
    if findings.hidden_neurons is not None:
        _refuse(check, (Component.NEURON,), f"the neurons were not found: {findings.hidden_neurons}")


def _refuse(check: Check, components: Iterable[Component], reason: str) -> None:
    for component in components:
        check.decoder.unavailable.setdefault(component, f"its check failed when the model was loaded; {reason}")
        _log.warning("%s is not available: %s", component.name, reason)


def _keep(seen: list[Tensor]) -> Any:
    def keep(neurons: Tensor) -> Tensor:
        seen.append(neurons.clone())
        return neurons

    return keep


def summary(errors: Tensor, *, precise: bool) -> float:
    """One number for the positions' errors: the largest, or in half precision the median.

    There, rounding may route a position to another expert, which does not mean that the others are wrong.
    """
    if not errors.isfinite().all():
        return inf
    return float(errors.max() if precise else errors.median())


def distance(found: Tensor, expected: Tensor, floor: Tensor | float = 0.0) -> Tensor:
    """The error of each position, relative to the size of what was expected plus `floor`, [P]."""
    off: Tensor = (found.double() - expected.double()).flatten(1).norm(dim=1).cpu()
    size: Tensor = expected.double().flatten(1).norm(dim=1).cpu() + floor
    return off / size.clamp_min(torch.finfo(torch.float32).tiny)


def _centred(logits: Tensor) -> Tensor:
    # A constant in all logits of a position has no effect, and would make any difference look small.
    return logits - logits.mean(-1, keepdim=True)
