"""The cost that is announced is the work that is done, counted by the blocks themselves."""

import itertools

import pytest
from sonde.v1 import inspection_pb2 as pb

from tests.conftest import Host
from tests.support import wire
from tests.support.oracle import Edit, Patch, Scale, Site, Sweep, Target

_fresh = itertools.count(3)
TARGET = [Target(5)]


def fresh(length: int) -> list[int]:
    """A prompt that no base run is kept of."""
    number = next(_fresh)
    return [number, *range(number + 1, number + length)]


def counted(host: Host) -> int:
    return host.server.scheduler.engine.work.token_layers


def traced(ids: list[int], **method: object) -> pb.TraceRequest:
    return pb.TraceRequest(prompt=wire.prompt(ids), targets=[wire.target(one) for one in TARGET], **method)  # type: ignore[arg-type]


TRACES = {
    "prediction": {},
    "token_probability": {"token_probability": pb.TokenProbability(gradient_norms=True)},
    "activations": {
        "activations": pb.Activations(
            sites=[
                pb.Site(component=pb.COMPONENT_RESIDUAL_POST),
                pb.Site(component=pb.COMPONENT_NEURON, layers=[1], positions=[3]),
                pb.Site(component=pb.COMPONENT_ATTENTION_PATTERN, layers=[2]),
                pb.Site(component=pb.COMPONENT_LOGITS, positions=[-1]),
            ]
        )
    },
    **{
        f"attribution_patching {name}": {
            "attribution_patching": pb.AttributionPatching(
                components=[wire.component(one) for one in components],
                **fields,  # type: ignore[arg-type]
            )
        }
        for name, (components, fields) in {
            "of the stream": (["RESIDUAL_POST"], {}),
            "of the end": (["FINAL_NORM"], {}),
            "of everything": (["TOKEN_EMBEDDING", "RESIDUAL_PRE", "NEURON", "ATTENTION_PATTERN", "LOGITS"], {}),
            "recomputed": (["KEY"], {"recompute_softmax": True}),
            "integrated": (["HEAD_OUT"], {"integration_steps": 3}),
            "dropped": (["MLP_OUT"], {"drop_layers": True}),
            "edges": ([], {"edges": pb.AttributionPatching.Edges(top=5), "integration_steps": 2}),
        }.items()
    },
    "causal_tracing": {
        "causal_tracing": pb.CausalTracing(
            gaussian=pb.CausalTracing.Gaussian(samples=3), subject_positions=pb.PositionList(positions=[2, 3]), window=2
        )
    },
}


@pytest.mark.parametrize("method", TRACES)
def test_a_trace_does_what_it_announced(host: Host, method: str) -> None:
    request = traced(fresh(7), **TRACES[method])
    if request.HasField("attribution_patching"):
        request.attribution_patching.source.CopyFrom(wire.prompt(fresh(7)))
    request.dry_run = True
    announced = host.trace(request).context.cost
    before = counted(host)
    request.dry_run = False
    assert host.trace(request).context.cost == announced
    assert counted(host) - before == announced.token_layers
    assert announced.token_layers <= announced.full_token_layers


def test_interventions_do_what_they_announced(host: Host) -> None:
    ids, other = fresh(7), fresh(9)
    plans: list[list[list[Edit]] | Sweep] = [
        [
            [Edit(Site("NEURON", (2,), (5,), (-1,)), Scale(0.0))],
            [Edit(Site("RESIDUAL_POST", (1,), (), (4,)), Patch((0,)))],
        ],
        Sweep(Edit(Site("HEAD_OUT", (0, 3), (), (2, 6)), Scale(0.0))),
        Sweep(Edit(Site("MLP_OUT", (), (), (5,)), Patch((0,)))),
    ]
    for plan in plans:
        request = wire.intervene(ids, plan, TARGET, [other])
        before = counted(host)
        cost = host.intervene(request).context.cost
        spent = counted(host) - before
        # Both prompts are kept after the first question, and cost nothing then.
        kept = 0 if plan is plans[0] else (len(ids) + len(other)) * host.oracle.layers
        assert spent == cost.token_layers - kept


def test_a_run_restarts_at_its_edit(host: Host) -> None:
    """Only blocks from the edited one, positions from the edited one to the one read, in the last block that alone."""
    ids, layers = fresh(8), host.oracle.layers
    host.intervene(wire.intervene(ids, [[Edit(Site("LOGITS"), Scale(1.0))]], TARGET))
    costs = {
        Edit(Site("NEURON", (layers - 1,), (5,), (-1,)), Scale(0.0)): 1,
        Edit(Site("NEURON", (1,), (5,), (-1,)), Scale(0.0)): layers - 1,
        Edit(Site("RESIDUAL_POST", (1,), (), (3,)), Scale(0.0)): (layers - 3) * 5 + 1,
        Edit(Site("RESIDUAL_POST", (layers - 1,), (), (7,)), Scale(0.0)): 0,
        Edit(Site("HEAD_OUT", (0,), (1,)), Scale(0.0)): (layers - 1) * 8 + 1,
    }
    for edit, expected in costs.items():
        before = counted(host)
        host.intervene(wire.intervene(ids, [[edit]], TARGET))
        assert counted(host) - before == expected, edit


def test_restorations_that_change_nothing_are_not_run(host: Host) -> None:
    ids, layers = fresh(6), host.oracle.layers
    method = pb.CausalTracing(
        gaussian=pb.CausalTracing.Gaussian(samples=2),
        subject_positions=pb.PositionList(positions=[4]),
        components=[pb.COMPONENT_RESIDUAL_POST],
        positions=[0, 1, 2, 3],
    )
    before = counted(host)
    answer = host.trace(traced(ids, causal_tracing=method))
    # The clean run, and two corrupted runs from the subject on; no cell.
    assert counted(host) - before == len(ids) * layers + 2 * 2 * layers
    assert answer.context.cost.token_layers == counted(host) - before


def test_attributions_are_announced_for_the_position_that_is_read(host: Host) -> None:
    ids, source, layers = fresh(7), fresh(7), host.oracle.layers
    source = [*ids[:2], *source[2:]]
    method = pb.AttributionPatching(source=wire.prompt(source), components=[pb.COMPONENT_QUERY], integration_steps=2)
    request = traced(ids, attribution_patching=method, position=4)
    before = counted(host)
    cost = host.trace(request).context.cost
    # Two prompts; the values of both; then each step's run from the third token on, and each block there and back.
    expected = (2 * 7 + 2 * 5 + 2 * (5 + 2 * 5)) * layers
    assert counted(host) - before == cost.token_layers == expected


def test_what_is_verified_takes_no_more_than_announced(host: Host) -> None:
    components = [pb.COMPONENT_RESIDUAL_PRE, pb.COMPONENT_NEURON, pb.COMPONENT_ATTENTION_PATTERN]
    method = pb.AttributionPatching(source=wire.prompt(fresh(7)), components=components, verify_top=9)
    before = counted(host)
    cost = host.trace(traced(fresh(7), attribution_patching=method)).context.cost
    assert counted(host) - before <= cost.token_layers <= cost.full_token_layers
