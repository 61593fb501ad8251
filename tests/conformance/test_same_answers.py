"""Whatever is asked, the answer is the same whichever client asks, and the refusal too."""

from typing import Any

import pytest
import sonde

from tests.conformance.conftest import Asker, Askers
from tests.support.questions import QUESTIONS, Question
from tests.support.same import assert_same

LONG_IDS = list(range(5, 45))


def outcome(asker: Asker, question: Question) -> Any:
    """What comes back, or what is raised."""
    name, given, options = question
    try:
        return asker.ask(name, *given, **options)
    except sonde.SondeError as error:
        violations = getattr(error, "violations", ())
        return type(error), str(error), error.reason, error.metadata, violations


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_client_gives_what_the_first_gives(askers: Askers, kind: str, name: str) -> None:
    assert_same(outcome(askers[kind], QUESTIONS[name]), outcome(askers["remote"], QUESTIONS[name]))


def test_most_questions_are_answered(askers: Askers) -> None:
    """The comparison above would hold of refusals alone."""
    answered = {
        name
        for name, question in QUESTIONS.items()
        if isinstance(outcome(askers["remote"], question), sonde.TraceResult | sonde.InterventionResult | sonde.CasesResult)
    }
    assert {name for name in QUESTIONS if name not in answered} <= {
        "attribution patching",
        "generation",
        "a layer that is not there",
        "three mistakes",
        "no change at all",
        "a subject that is not there",
        "an empty prompt",
        "too long a prompt",
    }


def test_every_client_describes_the_same_model(asker: Asker, askers: Askers) -> None:
    assert_same(asker.model(), askers["remote"].model())
    assert asker.serving(10.0) == asker.model()


@pytest.mark.parametrize("name", ["a causal trace", "the logit lens", "a prediction"])
def test_a_streamed_trace_ends_with_the_whole(asker: Asker, askers: Askers, name: str) -> None:
    _, given, options = QUESTIONS[name]
    parts = asker.stream("stream_trace", *given, **options)
    assert_same(parts[-1], outcome(askers["remote"], QUESTIONS[name]))


LONG: Question = (
    "intervene",
    (LONG_IDS, sonde.sweep(sonde.scale(sonde.neuron(), 0.0), layers=[3, 4], positions=range(26))),
    {"top_k": 20},
)
"""More runs than are computed for one part of an answer, in the two highest of five layers."""


@pytest.fixture(scope="module")
def whole(askers: Askers) -> Any:
    return outcome(askers["remote"], LONG)


def test_a_streamed_sweep_comes_in_parts_and_ends_with_the_whole(asker: Asker, whole: Any) -> None:
    parts = asker.stream("stream_intervene", *LONG[1], **LONG[2])
    assert len(parts) > 1
    assert parts[-1].complete
    assert_same(parts[-1], whole)
