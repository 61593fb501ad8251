"""Paths and circuits: who writes to what, and how few edges carry a prediction.

Path patching: Wang et al. 2022 (arXiv 2211.00593). Edge attribution patching: Syed et al. 2023 (arXiv 2310.10348),
Hanna et al. 2024 (arXiv 2403.17806). ACDC: Conmy et al. 2023 (arXiv 2304.14997).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import SupportsIndex, get_args

from sonde._answers.edges import Edges
from sonde._answers.findings import PathPatching
from sonde._answers.found_circuit import FoundCircuit, Method
from sonde._ask.cases import Cases, CasesLike, as_cases
from sonde._ask.circuits import circuits
from sonde._ask.edits import along, patch
from sonde._ask.given import refusal, several
from sonde._ask.indices import Indices, index
from sonde._ask.named import PositionsLike
from sonde._ask.names import check_name
from sonde._ask.plans import sweep
from sonde._ask.sites import Site, head
from sonde._connection.progress import Progress
from sonde._methods.attribution_patching import AttributionPatching
from sonde._methods.circuit_discovery import CircuitDiscovery
from sonde.client import Client
from sonde.errors import InvalidRequest

_STEPS = 5
"""Gradients of EAP-IG, as in Hanna et al. 2024."""


def path_patching(
    client: Client,
    pairs: CasesLike,
    receivers: Site | Iterable[Site],
    *,
    through: Site | Iterable[Site] = (),
    layers: Indices = None,
    positions: PositionsLike = None,
    progress: Progress = False,
) -> PathPatching:
    """Patch each head along the paths to `receivers`: the mean change of the logit difference over pairs of prompts.

    Args:
        client: the client to use.
        pairs: the prompts, each with the one that is patched from as its only source, and one target (answer, wrong):
            `sonde.Case(prompt, sources=[other], targets=[(" Mary", " John")])`.
        receivers: what reads the change, as in `sonde.along`: `sonde.site("logits")` for direct effects.
        through: what hands it on; `sonde.site("mlp_out")` is what Wang et al. call direct.
        layers: the layers of the heads; the default is all, or those up to the highest receiver where all receivers
            name their layers. An MLP also reads the heads of its own block, but not in models whose blocks are
            parallel: name the layers there.
        positions: where the heads are patched, together; the default is everywhere.
        progress: True for a line on standard error, or a function that is called with (done, total).

    Raises:
        InvalidRequest: if a pair has no source or no target.
    """
    cases = _pairs(pairs)
    edit = along(patch(head(position=positions), 0), receivers, through)
    assert edit.path is not None
    chosen = layers if layers is not None else _below(edit.path.receivers)
    plan = sweep(edit, layers=chosen, together="position")
    result = client.intervene(cases, plan, reduce="mean", progress=progress).mean
    effects = result.logits[:, :, 0, 0] - result.clean.logits[0]
    axes = {name: result.axes[name] for name in ("layer", "unit")}
    return PathPatching(effects, axes, float(result.clean.logits[0]), result)


def find_circuit(
    client: Client,
    pairs: CasesLike,
    *,
    method: Method = "eap-ig",
    threshold: float = 0.01,
    edges: int | None = None,
    sizes: Iterable[SupportsIndex] | None = None,
    progress: Progress = False,
) -> FoundCircuit:
    """Order edges by what they do to the logit difference over pairs of prompts, and measure how faithful they are.

    Args:
        client: the client to use.
        pairs: the prompts, each with the one that is patched from as its only source, and one target (answer, wrong).
        method: "eap" or "eap-ig" estimate every edge by gradients; "acdc" tries edges one by one.
        threshold: of "acdc": an edge stays if the divergence grows by this much without it, in nats.
        edges: of "acdc": only this many edges are tried, the first ones by "eap-ig"; the default is all.
        sizes: the sizes of the circuits that are run, with 0, which the others are compared with; the default is 0, 1,
            3, 10, 30 and so on, and all.
        progress: True for a line on standard error, or a function that is called with (done, total).

    Raises:
        InvalidRequest: if a pair has no source or no target, the method is not known, or `edges` is given without
            "acdc".
    """
    check_name(method, get_args(Method), "method")
    if method != "acdc" and edges is not None:
        raise refusal("edges", 'none without method="acdc", as all edges are estimated', edges)
    cases = _pairs(pairs)
    run = None if sizes is None else sorted({0, *(index(size, "sizes") for size in several(sizes, "sizes", "numbers"))})
    found: Edges | None = None
    if method != "acdc" or edges is not None:
        steps = None if method == "eap" else _STEPS
        patching = AttributionPatching(edges="all", integration_steps=steps)
        found = client.trace(cases, method=patching, reduce="mean", progress=progress).mean.edges
    if method == "acdc":
        start = None if found is None else found[:edges]
        discovery = CircuitDiscovery(threshold=threshold, edges=start)
        found = client.trace(cases, method=discovery, reduce="mean", progress=progress).mean.edges
    assert found is not None
    plan = circuits(found, sizes=run, patch=0)
    return FoundCircuit(found, client.intervene(cases, plan, reduce="mean", progress=progress).mean)


def _pairs(pairs: CasesLike) -> Cases:
    cases = as_cases(pairs)
    assert cases is not None
    for number, case in enumerate(cases):
        if len(case.prompts_from) != 1 or case.targets is None:
            raise InvalidRequest.at(f"cases[{number}]", "expected one source and a target (answer, wrong)")
    return Cases(replace(case, group="") for case in cases)


def _below(receivers: Sequence[Site]) -> Sequence[int] | None:
    """The layers of the heads that the highest receiver reads, where all receivers name their layers.

    Raises:
        InvalidRequest: if no head comes before a receiver.
    """
    if any(not site.layers or min(site.layers) < 0 for site in receivers):
        return None
    # An MLP comes after the heads of its own block.
    count = max((max(site.layers) + (site.component == "mlp_out") for site in receivers), default=None)
    if count == 0:
        raise InvalidRequest.at("receivers", "expected one that reads after a head, got heads of layer 0 alone")
    return None if count is None else range(count)
