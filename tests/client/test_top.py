"""How many of the most probable tokens are asked for: a person decides, and a small vocabulary sets the bound."""

import asyncio
from typing import Any

import pytest
import sonde
from sonde import questions
from sonde.v1 import inspection_pb2 as pb

EDIT = sonde.scale(sonde.neuron(layer=0, unit=1), 0.0)
SMALL = 3


@pytest.fixture
def small(answers: Any) -> pb.GetModelResponse:
    """A model whose vocabulary is smaller than what is asked for by default."""
    described = pb.GetModelResponse()
    described.CopyFrom(answers.model())
    described.vocabulary_size = SMALL
    return described


CALLS: dict[str, Any] = {
    "trace": lambda client, **how: client.trace("a", **how),
    "intervene": lambda client, **how: client.intervene("a", EDIT, **how),
    "trace_token_probability": lambda client, **how: client.trace_token_probability([1], 7, **how),
    "intervene_on_neuron": lambda client, **how: client.intervene_on_neuron([1], 0, 5, **how),
}


def asked(peer: Any) -> int:
    request = peer.requests[-1]
    return int(request.top_k if isinstance(request, pb.TraceRequest) else request.readout.top_k)


def steps_for(name: str, answers: Any) -> list[Any]:
    if name == "trace_token_probability":
        return [answers.lens(4)]
    if name == "trace":
        return [pb.TraceResponse(context=answers.context())]
    return [pb.InterveneResponse(context=answers.context(), readings=answers.readings(0, [[-1.0]]))]


@pytest.mark.parametrize("name", CALLS)
def test_every_call_lets_its_caller_say_how_many(peer: Any, answers: Any, name: str) -> None:
    peer.steps = steps_for(name, answers)
    with sonde.Client(peer.address) as client:
        for given, expected in (({}, 10), ({"top_k": 2}, 2), ({"top_k": 0}, 0)):
            CALLS[name](client, **given)
            assert asked(peer) == expected


@pytest.mark.parametrize("name", CALLS)
def test_no_more_are_asked_for_than_a_known_model_has(peer: Any, answers: Any, small: Any, name: str) -> None:
    with sonde.Client(peer.address) as client:
        peer.steps = [small]
        assert client.model.vocabulary_size == SMALL
        peer.steps = steps_for(name, answers)
        for given, expected in (({}, SMALL), ({"top_k": 2}, 2), ({"top_k": 0}, 0)):
            CALLS[name](client, **given)
            assert asked(peer) == expected


def test_the_asynchronous_client_asks_for_no_more_either(peer: Any, answers: Any, small: Any) -> None:
    async def main() -> None:
        async with sonde.AsyncClient(peer.address) as client:
            peer.steps = [small]
            await client.model
            for name, call in CALLS.items():
                peer.steps = steps_for(name, answers)
                await call(client)
                assert asked(peer) == SMALL

    asyncio.run(main())


def test_patchscopes_lets_its_caller_say_how_many(peer: Any, answers: Any) -> None:
    said = [pb.Generated(run=run, finish_reason=pb.Generated.FINISH_REASON_LENGTH) for run in (-1, 0)]
    readings = answers.readings(0, [[-1.0]])
    peer.steps = [pb.InterveneResponse(context=answers.context(), readings=readings, generated=said)]
    with sonde.Client(peer.address) as client:
        questions.patchscopes(client, "a", layers=[0], top_k=2)
    assert asked(peer) == 2


def test_what_is_listed_by_default_is_what_there_is(peer: Any, answers: Any) -> None:
    peer.steps = steps_for("trace", answers)
    with sonde.Client(peer.address) as client:
        result = client.trace("a")
        assert [token.text for token in result.top()] == [" Paris", " Rome"]
        with pytest.raises(ValueError, match="the answer has only the top 2 tokens; request more with top_k=3"):
            result.top(3)
        peer.steps[0].context.clean.ClearField("top_tokens")
        peer.steps[0].context.clean.ClearField("top_log_probabilities")
        with pytest.raises(ValueError, match="request more with top_k=5"):
            client.trace("a", top_k=0).top()
