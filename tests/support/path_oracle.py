"""Edits along paths in their additive form, slowly: a full pass of plain transformers (oracle.py) for every read.

`CircuitOracle.path_patch` freezes all that is not on a path, and so needs receivers that do not feed each other. Here
nothing is frozen: one run goes up block by block. Each receiver reads the run's stream plus the change that came to it,
and what it makes of that is in the run for everything above (the edge patch of Conmy et al. 2023, arXiv 2304.14997).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.support.circuit_oracle import Values, set_to
from tests.support.oracle import Edit, Oracle, Site

READ_BY_HEADS = ("QUERY", "KEY", "VALUE")


@dataclass(frozen=True)
class Path:
    """Receivers, and the sites of HEAD_OUT and MLP_OUT between; no layers or units: all."""

    receivers: tuple[Site, ...]
    through: tuple[Site, ...] = ()


@dataclass(frozen=True)
class Reached:
    """A run with paths. `stream` [T, D] is what the logits read."""

    values: Values
    stream: Tensor

    @property
    def logits(self) -> Tensor:
        """[T, V]."""
        return self.values["LOGITS", 0]


def along_paths(
    oracle: Oracle, ids: Sequence[int], sent: Iterable[tuple[Edit, Path]], plain: Sequence[Edit] = ()
) -> Reached:
    """Runs a prompt with edits that go along paths, and `plain` ones that everything sees. None is a patch.

    A node that is gone through hands on what it makes of its read in this run plus the change, less what it makes of
    that read; the read has what it receives itself.
    """
    columns: dict[Path, list[Edit]] = {}
    for edit, path in sent:
        columns.setdefault(path, []).append(edit)
    return _Climb(oracle, ids, columns, plain).run()


class _Climb:
    """One run from the embedding up. `deltas`: by path, the change of the stream [T, D] that goes along it."""

    def __init__(
        self, oracle: Oracle, ids: Sequence[int], columns: dict[Path, list[Edit]], plain: Sequence[Edit]
    ) -> None:
        self.oracle, self.ids, self.columns, self.plain = oracle, ids, columns, list(plain)
        self.parallel = "RESIDUAL_MID" not in oracle.components
        self.values: dict[tuple[str, int], Tensor] = {}
        self.deltas: dict[Path, Tensor] = {}

    def run(self) -> Reached:
        entered = self._pass(*self.plain)
        stream = entered["RESIDUAL_PRE", 0]
        self.deltas = {path: torch.zeros_like(stream) for path in self.columns}
        for path, changed in self._changed("TOKEN_EMBEDDING", 0, entered["TOKEN_EMBEDDING", 0]):
            before, after = (
                self._given("TOKEN_EMBEDDING", 0, one)["RESIDUAL_PRE", 0]
                for one in (entered["TOKEN_EMBEDDING", 0], changed)
            )
            self.deltas[path] = after - before
        for layer in range(self.oracle.layers):
            stream = self._block(layer, stream)
        top = self.oracle.layers - 1
        read = stream + self._seen("LOGITS", 0, 0, self.deltas)
        last = self._pass(*self.plain, set_to(Site("RESIDUAL_POST", (top,)), read))
        for place in (("FINAL_NORM", 0), ("LOGITS", 0)):
            self.values[place] = last[place]
        return Reached(self.values, read)

    def _block(self, layer: int, stream: Tensor) -> Tensor:
        """From the stream that enters a block to the one that leaves it; the deltas come to be those above it."""
        enters = set_to(Site("RESIDUAL_PRE", (layer,)), stream)
        own = self._pass(enters, *self.plain)
        stream = own["RESIDUAL_PRE", layer]
        self._send("RESIDUAL_PRE", layer, stream)
        beside = dict(self.deltas)
        given = self._received_by_heads(layer, stream, self.plain, torch.zeros_like(stream))
        own = self._pass(enters, *self.plain, *given)
        self._heads_write(layer, stream, own)
        self._send("ATTENTION_OUT", layer, own["ATTENTION_OUT", layer])
        if not self.parallel:
            self._send("RESIDUAL_MID", layer, own["RESIDUAL_MID", layer])
            beside = dict(self.deltas)
        read = "RESIDUAL_PRE" if self.parallel else "RESIDUAL_MID"
        seen = self._seen("MLP_OUT", layer, 0, beside)
        if seen.any():
            reads = set_to(Site(read, (layer,)), own[read, layer] + seen)
            received = self._pass(enters, *self.plain, *given, reads)
            given.append(set_to(Site("MLP_OUT", (layer,)), received["MLP_OUT", layer]))
            neurons = {place: value for place, value in received.items() if place == ("NEURON", layer)}
            own = {**self._pass(enters, *self.plain, *given), **neurons}
        self._mlp_writes(layer, read, own, beside, seen)
        self._send("RESIDUAL_POST", layer, own["RESIDUAL_POST", layer])
        self.values |= {place: value for place, value in own.items() if place[1] == layer}
        return own["RESIDUAL_POST", layer]

    # ------------------------------------------------------------ receivers

    def _received_by_heads(self, layer: int, stream: Tensor, plain: Sequence[Edit], more: Tensor) -> list[Edit]:
        """What each head's query, key and value is, from the stream that it alone reads, and `more` that all read."""
        given = []
        common: Values = self._pass(*plain, set_to(Site("RESIDUAL_PRE", (layer,)), stream + more))
        for name in READ_BY_HEADS:
            for unit in range(self.oracle.units(name)):
                made = common
                if (seen := self._seen(name, layer, unit, self.deltas)).any():
                    made = self._pass(*plain, set_to(Site("RESIDUAL_PRE", (layer,)), stream + seen + more))
                given.append(set_to(Site(name, (layer,), (unit,)), made[name, layer]))
        return given

    def _seen(self, component: str, layer: int, unit: int, deltas: dict[Path, Tensor]) -> Tensor:
        """What a receiver reads beside the stream: the changes of all paths that end there, at its positions."""
        total = torch.zeros_like(self.oracle.run(self.ids).values["RESIDUAL_PRE", 0])
        for path, delta in deltas.items():
            there = {
                position
                for site in path.receivers
                if site.component == component and _names(site, layer, unit)
                for position in self.oracle.positions(site, len(self.ids))
            }
            total[sorted(there)] += delta[sorted(there)]
        return total

    # ------------------------------------------------------------ what goes along

    def _heads_write(self, layer: int, stream: Tensor, own: Values) -> None:
        """Adds what heads that send or are gone through would write to what goes along, less what they write."""
        mixed = own["HEAD_OUT", layer]
        moves: dict[Path, Tensor] = {}
        for path, delta in self.deltas.items():
            units = [unit for unit in range(self.oracle.heads) if _through(path, "HEAD_OUT", layer, unit)]
            if units and delta.any():
                enters = set_to(Site("RESIDUAL_PRE", (layer,)), stream)
                before, after = (
                    self._pass(enters, *self._received_by_heads(layer, stream, (), more))["HEAD_OUT", layer]
                    for more in (torch.zeros_like(stream), delta)
                )
                moves[path] = torch.zeros_like(mixed)
                moves[path][:, units] = (after - before)[:, units]
        for path, changed in self._changed("HEAD_OUT", layer, mixed):
            moves[path] = moves.get(path, torch.zeros_like(mixed)) + changed - mixed
        for path, move in moves.items():
            # All heads together: where a norm follows, what one of them writes depends on the others.
            written = [self._given("HEAD_OUT", layer, one)["ATTENTION_OUT", layer] for one in (mixed, mixed + move)]
            self.deltas[path] = self.deltas[path] + written[1] - written[0]

    def _mlp_writes(self, layer: int, read: str, own: Values, beside: dict[Path, Tensor], seen: Tensor) -> None:
        """Likewise of an MLP, whose neurons send too; `seen` is what it receives."""
        for path, delta in beside.items():
            if _through(path, "MLP_OUT", layer, 0) and delta.any():
                reads = own[read, layer] + seen, own[read, layer] + seen + delta
                before, after = (self._given(read, layer, one)["MLP_OUT", layer] for one in reads)
                self.deltas[path] = self.deltas[path] + after - before
        if ("NEURON", layer) in own:
            for path, changed in self._changed("NEURON", layer, own["NEURON", layer]):
                values = own["NEURON", layer], changed
                before, after = (self._given("NEURON", layer, one)["MLP_OUT", layer] for one in values)
                self.deltas[path] = self.deltas[path] + after - before
        self._send("MLP_OUT", layer, own["MLP_OUT", layer])

    def _send(self, component: str, layer: int, value: Tensor) -> None:
        """Adds what the edits of a place that is part of the stream, or a whole write to it, change."""
        for path, changed in self._changed(component, layer, value):
            self.deltas[path] = self.deltas[path] + changed - value

    def _changed(self, component: str, layer: int, value: Tensor) -> list[tuple[Path, Tensor]]:
        """A place's value after the edits of each path that has any there."""
        found = []
        for path, edits in self.columns.items():
            here = [one for one in edits if one.site.component == component and layer in (one.site.layers or (0,))]
            changed = value
            for edit in here:
                changed, _ = self.oracle._edited(edit, layer, changed, {})
            if here:
                found.append((path, changed))
        return found

    # ------------------------------------------------------------ passes

    def _pass(self, *edits: Edit) -> Values:
        return self.oracle.run(self.ids, edits).values

    def _given(self, component: str, layer: int, value: Tensor) -> Values:
        """What follows from a place's value, without any other edit."""
        return self._pass(set_to(Site(component, (layer,)), value))


def _names(site: Site, layer: int, unit: int) -> bool:
    """Whether a site has this layer and unit."""
    return (not site.layers or layer in site.layers) and (not site.units or unit in site.units)


def _through(path: Path, component: str, layer: int, unit: int) -> bool:
    return any(site.component == component and _names(site, layer, unit) for site in path.through)
