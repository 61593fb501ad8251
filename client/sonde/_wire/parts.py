"""Joining what a stream sends in parts: arrays, activations and generated tokens."""

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sonde._answers.captured import Captured, captured_axes
from sonde._answers.predictions import Continuation, Token
from sonde._arrays import BFLOAT16, Axes, Booleans, Label
from sonde._ask.names import COMPONENT_NAMES, WITHOUT_LAYER, ComponentName, FinishReason
from sonde._ask.sites import Site
from sonde._wire.tensors import from_tensor, from_tensor_as_sent
from sonde.errors import ProtocolError
from sonde.v1 import inspection_pb2 as pb

CLEAN: Final = -1
"""The number that the contract gives to the unchanged run."""
_NAN_BFLOAT16: Final = 0x7FC0
NO_LAYER: Final = -1
"""The label on the layer axis of a component that has no layers."""


def missing(what: str) -> ProtocolError:
    """Create the error for a stream that ended too early."""
    return ProtocolError(f"the answer ended early: {what}")


def token(message: pb.Token) -> Token:
    """Decode a token."""
    return Token(message.id, message.text)


def known_component(component: pb.Component.ValueType) -> ComponentName:
    """Decode a component.

    Raises:
        ProtocolError: if this client does not know it.
    """
    name = COMPONENT_NAMES.get(component)
    if name is None:
        raise ProtocolError(f"the answer has component {component}, which this client does not know")
    return name


def layer_labels(layers: Sequence[int]) -> tuple[Label, ...]:
    """Convert layers to labels; NO_LAYER becomes None."""
    return tuple(None if layer == NO_LAYER else layer for layer in layers)


def in_order(asked: Sequence[int], found: Collection[int]) -> tuple[int, ...]:
    """Return the labels that were asked for, in that order and counted from 0.

    Labels below 0 count from the end, and the answer does not say where that is: they can be told only once all labels
    have been found. Until then, those that were found are returned in ascending order.
    """
    wanted = tuple(dict.fromkeys(asked))
    from_end = sorted(label for label in wanted if label < 0)
    if not from_end:
        return wanted
    others = sorted(set(found).difference(wanted))
    if len(others) != len(from_end):
        return tuple(sorted(found))
    count = others[0] - from_end[0]
    return tuple(label + count if label < 0 else label for label in wanted)


class Grid:
    """An array with labels on its first axes, joined from parts that each list their labels."""

    def __init__(self, name: str, orders: Sequence[Sequence[int] | None]) -> None:
        """Begin with no parts.

        Args:
            name: the array's name, for error messages.
            orders: for each axis, the labels in the wanted order (see `in_order`); None: all labels that arrive, in
                ascending order.
        """
        self._name = name
        self._orders = orders
        self._parts: list[tuple[tuple[tuple[int, ...], ...], npt.NDArray[np.generic]]] = []

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, labels: Sequence[Sequence[int]], tensor: pb.Tensor) -> None:
        """Add a part.

        Raises:
            ProtocolError: if its shape does not match its labels or the parts before it.
        """
        array = from_tensor(tensor)
        part = tuple(tuple(axis) for axis in labels)
        if array.shape[: len(part)] != tuple(map(len, part)) or (
            self._parts and self._parts[0][1].shape[len(part) :] != array.shape[len(part) :]
        ):
            raise ProtocolError(f"the answer has {self._name} of shape {list(array.shape)} for {list(map(len, part))}")
        self._parts.append((part, array))

    def join(self) -> tuple[tuple[tuple[int, ...], ...], npt.NDArray[np.generic], Booleans]:
        """Return the labels of each axis, the whole array, and which of its cells have arrived."""
        axes: list[tuple[int, ...]] = []
        for i, order in enumerate(self._orders):
            found = sorted({label for part, _ in self._parts for label in part[i]})
            axes.append(tuple(found) if order is None else in_order(order, found))
        sample = self._parts[0][1]
        shape = tuple(map(len, axes))
        whole = np.full(shape + sample.shape[len(axes) :], np.nan if sample.dtype.kind == "f" else -1, sample.dtype)
        arrived = np.zeros(shape, np.bool_)
        places = [{label: i for i, label in enumerate(axis)} for axis in axes]
        for part, array in self._parts:
            try:
                cells = np.ix_(*([place[label] for label in axis] for place, axis in zip(places, part, strict=True)))
            except KeyError as error:
                raise ProtocolError(f"the answer has {self._name} at {error}, which was not requested") from None
            whole[cells] = array
            arrived[cells] = True
        return tuple(axes), whole, arrived


class _Place(NamedTuple):
    run: int
    site: int


class _Flat(NamedTuple):
    """The activations of one layer, flattened."""

    shape: tuple[int, ...]
    values: npt.NDArray[Any]
    arrived: Booleans
    """Which values have arrived."""


def _empty(size: int, dtype: "np.dtype[Any]") -> npt.NDArray[Any]:
    """An array whose values have not arrived: NaN, or -1 among integers."""
    if dtype == BFLOAT16:
        return np.full(size, _NAN_BFLOAT16, np.uint16).view(BFLOAT16)
    return np.full(size, np.nan if dtype.kind == "f" else -1, dtype)


class Values:
    """Activations, joined from slices that each belong to one run, site and layer."""

    def __init__(self, sites: Sequence[Site], *, by_row: bool = False) -> None:
        """Join activations of these sites; `by_row`: their positions are joined in rows, one for each listed entry."""
        self._sites = tuple(sites)
        self._by_row = by_row
        self._known: dict[_Place, dict[int, _Flat]] = {}
        """By run and site, then by layer."""

    def add(self, part: pb.ActivationSlice) -> None:
        """Add a slice.

        Raises:
            ProtocolError: if it lies outside its array, or contradicts the slices before it.
        """
        values, shape = from_tensor_as_sent(part.values).reshape(-1), tuple(part.shape)
        size, end = math.prod(shape), part.offset + len(values)
        if not (0 <= part.site < len(self._sites) and min(shape, default=0) >= 0 <= part.offset and end <= size):
            raise ProtocolError(f"the answer has activations outside site {part.site}, at offset {part.offset}")
        layers = self._known.setdefault(_Place(part.run, part.site), {})
        known = layers.get(part.layer)
        if known is None and len(values) == size:
            layers[part.layer] = _Flat(shape, values, np.ones(size, np.bool_))
            return
        if known is None:
            known = layers[part.layer] = _Flat(shape, _empty(size, values.dtype), np.zeros(size, np.bool_))
        if known.shape != shape or known.values.dtype != values.dtype:
            raise ProtocolError(f"the answer has activations of two shapes or types at site {part.site}")
        known.values[part.offset : end] = values
        known.arrived[part.offset : end] = True

    def captured(self, run: int) -> Captured:
        """Return what has arrived of one run."""
        arrays: list[tuple[Axes, npt.NDArray[Any]]] = []
        for index, site in enumerate(self._sites):
            known = self._known.get(_Place(run, index), {})
            layers = [layer for layer in in_order(site.layers, known) or sorted(known) if layer in known]
            parts = [known[layer] for layer in layers]
            if not parts:
                break
            if len({part.shape for part in parts}) > 1:
                raise ProtocolError(f"the answer has activations whose shape depends on the layer, at site {index}")
            shape = parts[0].shape
            stacked = np.stack([part.values.reshape(shape) for part in parts])
            axes = captured_axes(site, layers, shape, by_row=self._by_row)
            arrays.append((axes, stacked[0] if site.component in WITHOUT_LAYER else stacked))
        return Captured(self._sites, arrays)

    def check(self, runs: Iterable[int]) -> None:
        """Check that the activations of these runs are complete.

        Raises:
            ProtocolError: if they are not; the message names the run and the site.
        """
        for run in runs:
            for index, site in enumerate(self._sites):
                known = self._known.get(_Place(run, index), {})
                wanted = () if site.component in WITHOUT_LAYER else site.layers
                lacking = len(known) < len(set(wanted)) or set(in_order(wanted, known)) - known.keys()
                if not known or lacking or not all(part.arrived.all() for part in known.values()):
                    raise missing(f"activations of run {run} at site {index} ({site.component})")


class _Sample(NamedTuple):
    run: int
    sample: int


class Continuations:
    """Generated tokens, joined from slices that each belong to one sample of one run."""

    _REASONS: Mapping[int, FinishReason] = {
        pb.Generated.FINISH_REASON_LENGTH: "length",
        pb.Generated.FINISH_REASON_END_TOKEN: "end_token",
        pb.Generated.FINISH_REASON_STOP: "stop",
    }

    def __init__(self, request: pb.Generation, sites: Sequence[Site]) -> None:
        """Begin with no slices.

        Args:
            request: what was requested.
            sites: those of its activations.
        """
        self._request = request
        self._samples = max(1, request.samples)
        self._sites = tuple(sites)
        self._parts: dict[_Sample, dict[int, list[pb.Generated]]] = {}

    def add(self, part: pb.Generated) -> None:
        """Add a slice. A slice without tokens, which only ends the run, may share its offset with another one."""
        if not 0 <= part.sample < self._samples:
            raise ProtocolError(f"the answer has sample {part.sample} of run {part.run}, which was not requested")
        known = self._parts.setdefault(_Sample(part.run, part.sample), {}).setdefault(part.offset, [])
        if part.tokens and any(other.tokens for other in known):
            raise ProtocolError(f"the answer has the generated token {part.offset} of run {part.run} twice")
        known.append(part)

    def of(self, run: int, tokens: int) -> tuple[Continuation, ...]:
        """Return what a run has generated after a prompt of this many tokens: its samples, each up to the first gap.

        Samples that follow one that has not begun are left out.
        """
        found = (self._sample(_Sample(run, sample), tokens) for sample in range(self._samples))
        return tuple(itertools.takewhile(lambda said: said is not None, found))  # type: ignore[arg-type]

    def _sample(self, key: _Sample, prompt: int) -> Continuation | None:
        parts = self._parts.get(key)
        if parts is None:
            return None
        tokens: list[Token] = []
        joined: list[pb.Generated] = []
        reason: FinishReason | None = None
        for offset in sorted(parts):
            if offset != len(tokens):
                break
            for part in parts[offset]:
                joined.append(part)
                tokens.extend(map(token, part.tokens))
                if part.finish_reason in self._REASONS:
                    reason = self._REASONS[part.finish_reason]
        return Continuation(
            tuple(tokens),
            "".join(part.text for part in joined),
            reason,
            np.array([value for part in joined for value in part.log_probabilities], np.float32),
            self._captured(key, joined, prompt),
            key.sample,
        )

    def _captured(self, key: _Sample, parts: Sequence[pb.Generated], prompt: int) -> Captured:
        """The activations of a continuation, by site."""
        parts = [part for part in parts if part.activations]
        if not parts or not self._sites:
            return Captured((), ())
        if any(len(part.activations) != len(self._sites) for part in parts):
            raise ProtocolError(f"the answer has activations of other sites in the generated tokens of run {key.run}")
        arrays: list[tuple[Axes, npt.NDArray[np.generic]]] = []
        for index, site in enumerate(self._sites):
            try:
                values = np.concatenate([from_tensor(part.activations[index]) for part in parts], axis=1)
            except ValueError as error:
                raise ProtocolError(f"the answer has activations that do not join at site {index}: {error}") from None
            layers = site.layers or range(len(values))
            axes = captured_axes(site, layers, values.shape[1:])
            places: Axes = {**axes, "position": tuple(range(prompt, prompt + values.shape[1]))}
            arrays.append((places, values[0] if site.component in WITHOUT_LAYER else values))
        return Captured(self._sites, arrays)

    def check(self, runs: Iterable[int]) -> None:
        """Check that all samples of these runs have ended, with all that was requested of their tokens.

        Raises:
            ProtocolError: if one has not; the message names the run.
        """
        for run in runs:
            for sample in range(self._samples):
                said = self._sample(_Sample(run, sample), 0)
                if said is None or said.finish_reason is None:
                    raise missing(f"the generated tokens of run {run}")
                if self._request.log_probabilities and len(said.log_probabilities) != len(said.tokens):
                    raise missing(f"the log-probabilities of the generated tokens of run {run}")
                read = {len(said.activations.axes(site)["position"]) for site in said.activations}
                if len(said.activations) != len(self._sites) or read - {len(said.tokens) - 1}:
                    raise missing(f"the activations of the generated tokens of run {run}")
