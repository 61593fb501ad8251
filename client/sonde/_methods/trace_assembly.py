"""Joins the streams of traces; one assembler, and one way to build the result per method."""

from typing import Final, TypeAlias

import numpy as np

from sonde._answers.captured import Captured
from sonde._answers.edges import Edges, no_edges
from sonde._answers.predictions import Prediction, Token
from sonde._answers.results import Cost, Provenance
from sonde._arrays import Booleans, Floats, Integers
from sonde._ask.names import COMPONENT_NAMES, WITHOUT_LAYER, ComponentName
from sonde._ask.sites import Site
from sonde._methods.methods import Activations, Method
from sonde._methods.traces import (
    ActivationsResult,
    AttributionPatchingResult,
    CausalTracingResult,
    TokenProbabilityResult,
    TraceResult,
    VerifiedEffect,
)
from sonde._wire.assembly import Stream
from sonde._wire.context import Context
from sonde._wire.parts import CLEAN, Grid, Values, missing
from sonde._wire.tensors import floats, integers
from sonde.errors import ProtocolError
from sonde.v1 import inspection_pb2 as pb

_Common: TypeAlias = tuple[tuple[Token, ...], tuple[Token, ...], int, Cost, Provenance, bool, Prediction | None]
_NO_LAYER: Final = -1
_LENS: Final = (
    "log_probabilities",
    "logits",
    "ranks",
    "kl_divergences",
    "top_token_ids",
    "top_log_probabilities",
)
_RESTORATION: Final = ("probabilities", "deviations", "logits", "sample_probabilities")


class TraceAssembler(Stream):
    """Joins the answer to one TraceRequest."""

    def __init__(self, request: pb.TraceRequest, method: Method[TraceResult] | None) -> None:
        super().__init__(dry_run=request.dry_run)
        self._request = request
        self._values = Values(method.sites if isinstance(method, Activations) else ())
        self._lens: dict[str, Grid] = {}
        self._texts: dict[int, str] = {}
        self._corruption: pb.Corruption | None = None
        self._grids: dict[ComponentName, dict[str, Grid]] = {}
        self._attributions: dict[ComponentName, Grid] = {}
        self._edges: list[pb.EdgeAttributions] = []
        self._verified: list[VerifiedEffect] = []

    def feed(self, message: pb.TraceResponse) -> None:
        """Take the next message."""
        first = self._context is None
        context = self._start(message)
        if first:
            self._texts = context.texts()
        if message.HasField("layers"):
            self._take_layers(message.layers)
        if message.HasField("corruption"):
            self._corruption = message.corruption
        for grid in message.grids:
            self._take_grid(context, grid)
        for estimates in message.attributions:
            self._take_attributions(estimates)
        self._edges.extend(message.edges)
        for part in message.activations:
            self._values.add(part)
        self._verified.extend(map(_verified, message.verified))

    def partial(self) -> TraceResult | None:
        """What is known so far; None while it is too little for a result of the method."""
        if self._context is None:
            return None
        ready = {
            "token_probability": bool(self._lens),
            "causal_tracing": self._corruption is not None and bool(self._grids),
            "attribution_patching": bool(self._attributions or self._edges),
        }
        method = self._request.WhichOneof("method") or ""
        return self._build(self._context) if self._dry_run or ready.get(method, True) else None

    def result(self) -> TraceResult:
        """The whole answer."""
        context = self._require()
        if not self._dry_run:
            match self._request.WhichOneof("method"):
                case "token_probability":
                    self._check_lens()
                case "causal_tracing":
                    self._check_grids(context)
                case "attribution_patching":
                    self._check_attributions()
                case "activations":
                    self._values.check([CLEAN])
        return self._build(context)

    # ------------------------------------------------------------------ taking parts

    def _take_layers(self, layers: pb.LayerReadings) -> None:
        depths = list(layers.depths)
        for name in _LENS:
            if layers.HasField(name):
                self._lens.setdefault(name, Grid(name, [None])).add([depths], getattr(layers, name))
        if layers.HasField("gradient_norms"):
            grid = self._lens.setdefault("gradient_norms", Grid("gradient_norms", [None, None]))
            grid.add([depths, list(layers.positions)], layers.gradient_norms)
        self._texts.update(layers.token_texts)

    def _take_grid(self, context: Context, part: pb.RestorationGrid) -> None:
        name = _known(part.component)
        asked = self._request.causal_tracing
        layers = None if name in WITHOUT_LAYER else tuple(dict.fromkeys(asked.layers)) or None
        orders = [context.positions(asked.positions), layers]
        grids = self._grids.setdefault(name, {field: Grid(f"{name} {field}", orders) for field in _RESTORATION})
        labels = [list(part.positions), list(part.layers) or [_NO_LAYER]]
        for field in _RESTORATION:
            if part.HasField(field):
                grids[field].add(labels, getattr(part, field))

    def _take_attributions(self, part: pb.Attributions) -> None:
        name = _known(part.component)
        grid = self._attributions.setdefault(name, Grid(f"{name} estimates", [None, None]))
        grid.add([list(part.layers) or [_NO_LAYER], list(part.positions)], part.estimates)

    # ------------------------------------------------------------------ checks of the whole

    def _check_lens(self) -> None:
        wanted = {"log_probabilities", "logits", "ranks", "kl_divergences"}
        if self._request.token_probability.gradient_norms:
            wanted.add("gradient_norms")
        lacking = sorted(wanted - {name for name, grid in self._lens.items() if grid})
        if lacking:
            raise missing(f"no {' or '.join(lacking)} came")
        depths = {self._lens[name].join()[0][0] for name in self._lens}
        whole = all(self._lens[name].join()[2].all() for name in self._lens)
        (first, *others) = depths
        if others or not whole or first != tuple(range(len(first))):
            raise missing("some depths did not come")

    def _check_grids(self, context: Context) -> None:
        if self._corruption is None:
            raise missing("the corrupted runs did not come")
        asked = self._request.causal_tracing
        wanted = {_known(component) for component in asked.components}
        lacking = sorted(wanted - set(self._grids)) if wanted else [] if self._grids else ["any component"]
        if lacking:
            raise missing(f"no grid of {', '.join(lacking)} came")
        fields = _RESTORATION if asked.per_sample else _RESTORATION[:3]
        for name, grids in self._grids.items():
            for field in fields:
                if not grids[field]:
                    raise missing(f"no {field} of {name} came")
                (positions, layers), _, arrived = grids[field].join()
                expected = context.positions(asked.positions) or tuple(range(len(context.tokens)))
                gaps = layers != (_NO_LAYER,) and not asked.layers and layers != tuple(range(len(layers)))
                if positions != expected or gaps or not arrived.all():
                    raise missing(f"{int(arrived.sum())} cells of {name} came")

    def _check_attributions(self) -> None:
        asked = self._request.attribution_patching
        if {_known(component) for component in asked.components} - set(self._attributions):
            raise missing("some components' estimates did not come")
        if asked.HasField("edges") and not self._edges:
            raise missing("the edges did not come")
        for name, grid in self._attributions.items():
            if not grid.join()[2].all():
                raise missing(f"some estimates of {name} did not come")

    # ------------------------------------------------------------------ results

    def _build(self, context: Context) -> TraceResult:
        base = context.result(Captured((), ()))
        common = base.common
        match self._request.WhichOneof("method"):
            case "token_probability":
                return self._lens_result(common)
            case "causal_tracing":
                return self._causal_result(context, common)
            case "attribution_patching":
                return self._attribution_result(context, common)
            case "activations":
                return ActivationsResult(*common, activations=self._values.captured(CLEAN))
            case _:
                return TraceResult(*common)

    def _lens_result(self, common: _Common) -> TokenProbabilityResult:
        targets = len(common[1])
        gradient = self._lens.get("gradient_norms")
        positions: tuple[int, ...] = ()
        if gradient:
            (_, positions), _, _ = gradient.join()
        return TokenProbabilityResult(
            *common,
            depths=self._lens["log_probabilities"].join()[0][0] if "log_probabilities" in self._lens else (),
            log_probabilities=self._floats("log_probabilities", (0, targets)),
            logits=self._floats("logits", (0, targets)),
            ranks=self._integers("ranks", (0, targets)),
            kl_divergences=self._floats("kl_divergences", (0,)),
            gradient_norms=gradient.join()[1].astype(np.float32, copy=False) if gradient else None,
            top_token_ids=self._integers("top_token_ids", (0, 0)),
            top_log_probabilities=self._floats("top_log_probabilities", (0, 0)),
            gradient_positions=positions,
            _texts=self._texts,
        )

    def _floats(self, name: str, empty: tuple[int, ...]) -> Floats:
        grid = self._lens.get(name)
        return np.empty(empty, np.float32) if grid is None else grid.join()[1].astype(np.float32, copy=False)

    def _integers(self, name: str, empty: tuple[int, ...]) -> Integers:
        grid = self._lens.get(name)
        return np.empty(empty, np.int64) if grid is None else grid.join()[1].astype(np.int64)

    def _causal_result(self, context: Context, common: _Common) -> CausalTracingResult:
        corruption = self._corruption or pb.Corruption()
        fields: dict[str, dict[ComponentName, Floats]] = {field: {} for field in _RESTORATION}
        axes: dict[ComponentName, dict[str, tuple[int | str | None, ...]]] = {}
        arrived: dict[ComponentName, Booleans] = {}
        texts = tuple(target.text for target in context.targets)
        for name, grids in self._grids.items():
            for field in _RESTORATION:
                if not grids[field]:
                    continue
                (positions, layers), values, came = grids[field].join()
                if values.shape[2:3] != (len(texts),):
                    raise ProtocolError(f"the answer has a grid of {name} that does not fit its {len(texts)} targets")
                fields[field][name] = values.astype(np.float32, copy=False)
                arrived[name] = came
                labels = tuple(None if layer == _NO_LAYER else layer for layer in layers)
                axes[name] = {"position": positions, "layer": labels, "target": texts}
        asked = self._request.causal_tracing
        return CausalTracingResult(
            *common,
            axes=axes,
            corrupted=np.array(corruption.probabilities, np.float32),
            corrupted_deviations=np.array(corruption.deviations, np.float32),
            corrupted_logits=np.array(corruption.logits, np.float32),
            corrupted_positions=tuple(corruption.positions),
            corrupted_samples=floats(corruption.sample_probabilities)
            if corruption.HasField("sample_probabilities")
            else None,
            noise_deviation=corruption.noise_deviation,
            restored=fields["probabilities"],
            deviations=fields["deviations"],
            logits=fields["logits"],
            samples=fields["sample_probabilities"],
            window=asked.window if asked.HasField("window") else 10,
            arrived=arrived,
        )

    def _attribution_result(self, context: Context, common: _Common) -> AttributionPatchingResult:
        axes: dict[ComponentName, dict[str, tuple[int | str | None, ...]]] = {}
        estimates: dict[ComponentName, Floats] = {}
        for name, grid in self._attributions.items():
            (layers, positions), values, _ = grid.join()
            labels = tuple(None if layer == _NO_LAYER else layer for layer in layers)
            units = {"unit": tuple(range(values.shape[2]))} if values.ndim == 4 else {}
            targets = tuple(target.text for target in context.targets)
            axes[name] = {"layer": labels, "position": positions, **units, "target": targets}
            estimates[name] = values.astype(np.float32, copy=False)
        edges = self._joined_edges(len(context.targets))
        return AttributionPatchingResult(
            *common,
            axes=axes,
            estimates=estimates,
            edges=edges,
            verified=tuple(self._verified),
            sizes=self._request.attribution_patching.drop_layers,
        )

    def _joined_edges(self, targets: int) -> Edges:
        if not self._edges:
            return no_edges(targets)
        parts = sorted(self._edges, key=lambda part: part.offset)
        estimates = [floats(part.estimates) for part in parts]
        ends = [[integers(getattr(part, name)) for part in parts] for name in ("senders", "receivers")]
        following = 0
        for part, values, *rows in zip(parts, estimates, *ends, strict=True):
            fits = values.shape == (len(values), targets) and all(one.shape == (len(values), 3) for one in rows)
            if part.offset != following or not fits:
                raise ProtocolError(f"the answer has edges that do not follow upon each other, at {part.offset}")
            following += len(values)
        return Edges(np.concatenate(ends[0]), np.concatenate(ends[1]), np.concatenate(estimates))


def _known(component: pb.Component.ValueType) -> ComponentName:
    name = COMPONENT_NAMES.get(component)
    if name is None:
        raise ProtocolError(f"the answer has component {component}, which this client does not know")
    return name


def _verified(message: pb.VerifiedEffect) -> VerifiedEffect:
    site = message.site
    place = Site(_known(site.component), tuple(site.layers), tuple(site.units), tuple(site.positions))
    return VerifiedEffect(place, np.array(message.estimated, np.float32), np.array(message.measured, np.float32))
