"""The cost that is announced is the work that is done, counted by the blocks themselves."""

import itertools
import logging
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub
from sonde_server.config import Settings
from sonde_server.serving.server import Server
from sonde_server.serving.tokens import make_token

from tests.conftest import DEADLINE, Host, Hosts
from tests.support import wire
from tests.support.models import save_model
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


EDGES = pb.AttributionPatching.Edges(top=5)
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
            "edges": ([], {"edges": EDGES, "integration_steps": 2}),
            "edges by activations": (
                [],
                {"edges": EDGES, "integration": pb.INTEGRATION_ACTIVATIONS, "integration_steps": 2},
            ),
            "both ends": (["HEAD_OUT"], {"edges": EDGES, "integration": pb.INTEGRATION_ENDS}),
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


def test_a_run_that_is_not_kept_is_not_run_twice(tmp_path: Path) -> None:
    """Without a cache: the clean run of a causal trace, and that of a source which is the prompt itself."""
    ids = fresh(7)
    patching = pb.AttributionPatching(source=wire.prompt(ids), components=[pb.COMPONENT_MLP_OUT])
    settings = Settings(model=str(save_model("gpt2", tmp_path / "gpt2")), port=0, device="cpu", cache_bytes=0)
    with Server(settings) as server, grpc.insecure_channel(server.address) as channel:
        stub, work = InspectionServiceStub(channel), server.scheduler.engine.work
        for fields in (TRACES["causal_tracing"], {"attribution_patching": patching}):
            before = work.token_layers
            answer = wire.join_trace(stub.Trace(traced(ids, **fields), timeout=DEADLINE))
            assert work.token_layers - before == answer.context.cost.token_layers


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


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_senders_take_turns_above_themselves(hosts: Hosts, family: str) -> None:
    host = hosts[family]
    ids, source, layers = fresh(7), fresh(7), host.oracle.layers
    source = [*ids[:2], *source[2:]]
    method = pb.AttributionPatching(
        source=wire.prompt(source), edges=EDGES, integration=pb.INTEGRATION_ACTIVATIONS, integration_steps=3
    )
    before = counted(host)
    cost = host.trace(traced(ids, attribution_patching=method, position=4)).context.cost
    blocks = layers + 2 * sum(range(layers))
    # Two prompts, and the values of both. Each step's run is from the third token on, that of the embeddings to the
    # end; then each block is run there and back. The MLP that reads a turn's heads is run once more, there and back.
    runs = 5 * layers + 3 * 2 * sum(range(layers))
    mlps = 0 if family == "gptj" else layers * 3 * 3
    expected = (2 * 7 + 2 * 5) * layers + 3 * (runs + 5 * 2 * blocks + mlps)
    assert counted(host) - before == cost.token_layers == expected
    assert cost.runs == 4 + 3 * (1 + 2 * layers) * 3


def test_what_is_verified_takes_no_more_than_announced(host: Host) -> None:
    components = [pb.COMPONENT_RESIDUAL_PRE, pb.COMPONENT_NEURON, pb.COMPONENT_ATTENTION_PATTERN]
    method = pb.AttributionPatching(source=wire.prompt(fresh(7)), components=components, verify_top=9)
    before = counted(host)
    cost = host.trace(traced(fresh(7), attribution_patching=method)).context.cost
    assert counted(host) - before <= cost.token_layers <= cost.full_token_layers


# ------------------------------------------------------------------ one number of runs


def questions() -> dict[str, pb.TraceRequest | pb.InterveneRequest]:
    """One request of every kind, with what once was counted in different ways."""
    ids, other = fresh(7), fresh(7)
    plan = [[Edit(Site("RESIDUAL_POST", (1,), (), (4,)), Patch((0,)))], [Edit(Site("LOGITS"), Scale(2.0))]]
    with_tokens = wire.intervene(ids, plan, TARGET, [other])
    with_tokens.readout.generation.CopyFrom(pb.Generation(max_new_tokens=2))
    asked: dict[str, pb.TraceRequest | pb.InterveneRequest] = {
        "interventions": wire.intervene(ids, plan, TARGET, [other]),
        "sweep": wire.intervene(ids, Sweep(Edit(Site("HEAD_OUT", (0, 3), (), (2, 6)), Scale(0.0))), TARGET),
        "generation": with_tokens,
    }
    for name, method in TRACES.items():
        request = traced(ids, **method)
        if request.HasField("attribution_patching"):
            request.attribution_patching.source.CopyFrom(wire.prompt(other))
        asked[name] = request
    # A component without layers has one column of cells, not one for each layer.
    components = [pb.COMPONENT_TOKEN_EMBEDDING, pb.COMPONENT_MLP_OUT, pb.COMPONENT_LOGITS]
    samples, subject = pb.CausalTracing.Gaussian(samples=2), pb.PositionList(positions=[2])
    several = pb.CausalTracing(gaussian=samples, subject_positions=subject, components=components)
    asked["causal_tracing of components without layers"] = traced(ids, causal_tracing=several)
    asked["causal_tracing of a counterfactual"] = traced(
        ids, causal_tracing=pb.CausalTracing(counterfactual=wire.prompt(other), layers=[0])
    )
    return asked


QUESTIONS = questions()
# So low that a caller is in debt after one run, and stays there.
RUNS_PER_SECOND = 0.01


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    """A server that counts, and the token of one caller for every question."""
    directory = tmp_path_factory.mktemp("counting")
    made = {name: make_token(f"caller{number}") for number, name in enumerate(QUESTIONS)}
    tokens = directory / "tokens"
    tokens.write_text("".join(f"{line}\n" for _, line in made.values()))
    settings = Settings(
        model=str(save_model("llama", directory / "llama")), port=0, device="cpu", metrics_port=0,
        tokens=str(tokens), max_runs_per_second=RUNS_PER_SECOND,
    )  # fmt: skip
    with Server(settings) as server:
        yield server, {name: token for name, (token, _) in made.items()}


def metered(address: str, caller: str) -> float:
    """What the metrics say of a caller's runs."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = (sample for family in families for sample in family.samples)
    return sum(one.value for one in samples if one.name == "sonde_runs_total" and one.labels["caller"] == caller)


@pytest.mark.parametrize("name", QUESTIONS)
def test_runs_are_one_number_everywhere(
    counting: tuple[Server, dict[str, str]], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The quota, the log, the metrics and the answer of a request have the same number of runs."""
    (server, tokens), request = counting, QUESTIONS[name]
    caller = f"caller{list(QUESTIONS).index(name)}"
    metadata = [("authorization", f"Bearer {tokens[name]}")]
    with grpc.insecure_channel(server.address) as channel, caplog.at_level(logging.INFO):
        stub = InspectionServiceStub(channel)
        method: Any = stub.Trace if isinstance(request, pb.TraceRequest) else stub.Intervene
        first, *_ = method(request, metadata=metadata, timeout=DEADLINE)
        runs = first.context.cost.runs
        with pytest.raises(grpc.RpcError) as refused:
            list(method(request, metadata=metadata, timeout=DEADLINE))
    exceeded = re.search(r"by (\d+) runs", refused.value.details())
    assert exceeded is not None
    # A full bucket held less than a run, which does not show in a whole number.
    assert int(exceeded[1]) == runs > 0
    logged = [getattr(record, "fields", {}) for record in caplog.records]
    # The request that was refused is counted for none.
    assert [fields["runs"] for fields in logged if fields.get("caller") == caller] == [runs, 0]
    assert metered(server.metrics_address, caller) == runs
