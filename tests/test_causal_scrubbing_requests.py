"""Requests for causal scrubbing: what is drawn, in parts, too large, too deep, broken off; and S5, by a path."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sonde.v1 import inspection_pb2 as pb
from sonde_server.questions import causal_scrubbing
from sonde_server.questions.hypotheses import Hypothesis, Node

from tests.conftest import Host
from tests.support import wire
from tests.support.oracle import Site
from tests.support.tolerance import assert_close
from tests.test_causal_scrubbing import EACH, EXAMPLES, TARGETS, TREES, Claim, ask, draw, flat, head, scrub


def tensor(values: npt.NDArray[Any]) -> pb.Tensor:
    return pb.Tensor(data_type=pb.DATA_TYPE_INT32, shape=values.shape, data=values.astype("<i4").tobytes())


def chain(nodes: int, samples: int) -> pb.InterveneRequest:
    """A hypothesis as deep as it has nodes."""
    request = scrub(Claim(), samples)
    request.causal_scrubbing.nodes.extend(
        pb.CausalScrubbing.Node(parent=parent, site=wire.site(head(1, 1)), labels=[0, 1, 0, 1, 0])
        for parent in range(nodes)
    )
    return request


def answers(host: Host) -> None:
    """The server still serves."""
    assert sorted(ask(host, scrub(TREES["a leaf"], 1))) == list(EACH)


@pytest.mark.parametrize("name", TREES)
def test_draws_follow_the_contract(name: str) -> None:
    claim = TREES[name]
    hypothesis = Hypothesis(
        tuple(
            Node(parent, None, (), one.direct, tuple(one.labels), tuple(one.other_labels))
            for one, parent in flat(claim)
        )
    )
    for reference, seed in ((0, 0), (4, 2**32 - 1)):
        found = hypothesis.draws(reference, 50, seed, len(EXAMPLES))
        np.testing.assert_array_equal(found, draw(claim, reference, 50, seed))


def test_seeds_begin_again_after_the_last(gpt2: Host) -> None:
    claim = TREES["a leaf"]
    for reference, own in ask(gpt2, scrub(claim, seed=2**32 - 2)).items():
        np.testing.assert_array_equal(own.draws, draw(claim, reference, 4, (2**32 - 2 + reference) % 2**32))


@pytest.mark.parametrize("name", TREES)
def test_some_references_have_the_numbers_that_they_have_among_all(host: Host, name: str) -> None:
    claim = TREES[name]
    whole, some = ask(host, scrub(claim, seed=7)), ask(host, scrub(claim, seed=7, references=[3, 1]))
    assert list(some) == [3, 1]
    for case, own in some.items():
        np.testing.assert_array_equal(own.draws, whole[case].draws)
        assert_close(own.logits, whole[case].logits)


@pytest.mark.parametrize("at_once", [1, 6])
def test_few_references_at_a_time_give_the_same_at_the_cost_that_was_said(
    llama: Host, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = scrub(TREES["direct to a query and a head"], 3, seed=5)
    whole = ask(llama, request)
    monkeypatch.setattr(causal_scrubbing, "DRAWS_AT_ONCE", at_once)
    request.dry_run = True
    (told,) = llama.stub.Intervene(request, timeout=60)
    request.dry_run = False
    engine = llama.server.scheduler.engine
    engine.cache.clear()
    before = engine.work.token_layers
    for case, own in ask(llama, request).items():
        assert_close(own.logits, whole[case].logits)
    assert engine.work.token_layers - before == told.context.cost.token_layers


def test_s5_a_direct_head_of_a_query_is_a_path_patch(host: Host) -> None:
    query = Site("QUERY", (2,), (1,))
    claim = Claim(other_labels=EACH, inputs=[Claim(query, EACH, EACH, inputs=[Claim(head(1, 1), direct=True)])])
    edit = pb.Edit(site=wire.site(head(1, 1)), patch=pb.Patch(sources=[0]), path=pb.Path(receivers=[wire.site(query)]))
    for reference, own in ask(host, scrub(claim, 3)).items():
        for logits, drawn in zip(own.logits, own.draws, strict=True):
            request = pb.InterveneRequest(
                prompt=wire.prompt(EXAMPLES[reference]),
                sources=[wire.prompt(EXAMPLES[drawn[2, 0]])],
                list=pb.InterventionList(interventions=[pb.Intervention(edits=[edit])]),
                readout=pb.Readout(targets=[wire.target(one) for one in TARGETS]),
            )
            patched = [m for m in host.stub.Intervene(request, timeout=60) if m.HasField("readings")]
            assert_close(logits[None], wire.array(patched[0].readings.logits))


def test_hypotheses_may_be_as_deep_as_they_may_be_large(gpt2: Host) -> None:
    request = chain(1023, 1)
    request.causal_scrubbing.references.append(2)
    (own,) = ask(gpt2, request).values()
    assert own.draws.shape == (1, 1024, 2)
    # Every node is the whole of its parent's value, so that the value is the last one's.
    last = scrub(Claim(inputs=[Claim(head(1, 1))]), draws=tensor(own.draws[None, :, [0, -1]]), references=[2])
    assert_close(own.logits, ask(gpt2, last)[2].logits)


def test_more_draws_than_an_answer_may_have_are_refused_undrawn(gpt2: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hypothesis, "draws", lambda *_: pytest.fail("drew"))
    violations = wire.refusal(gpt2.stub.Intervene(chain(1023, 200_000))).violations
    assert "8192000000 bytes; the limit is 268435456" in violations["causal_scrubbing.samples"]


GOOD = np.zeros((len(EXAMPLES), 2, 2, 2), int)
FAULTY = {
    "an example too many": (GOOD + len(EXAMPLES), "data"),
    "a negative example": (GOOD - 1, "data"),
    "few references": (GOOD[:2], "shape"),
    "few nodes": (GOOD[:, :, :1], "shape"),
    "few axes": (GOOD[0], "shape"),
    "no draw": (GOOD[:, :0], "shape"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_draws_are_refused(gpt2: Host, name: str) -> None:
    draws, field = FAULTY[name]
    request = scrub(TREES["a leaf"], draws=tensor(draws))
    assert f"causal_scrubbing.draws.{field}" in wire.refusal(gpt2.stub.Intervene(request)).violations


def test_a_stream_that_is_cancelled_leaves_the_server_serving(gpt2: Host) -> None:
    call = gpt2.stub.Intervene(scrub(TREES["two and what they read"], 2000), timeout=60)
    next(call)
    call.cancel()
    answers(gpt2)
