"""Spans of a prompt, and the positions that a name means in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sonde.v1 import inspection_pb2 as pb
from sonde_server.questions.prompts import Prompt
from sonde_server.wire.names import part_of, read_named, read_one, read_rows
from sonde_server.wire.prompts import read_prompt

from tests.support.reading import VOCABULARY, reader, violations

TEXT = "the cat sat on the mat and the dog"
PARTS = [
    pb.SPAN_PART_UNSPECIFIED, pb.SPAN_PART_FIRST, pb.SPAN_PART_MIDDLE, pb.SPAN_PART_LAST, pb.SPAN_PART_NEXT,
    pb.SPAN_PART_FURTHER,
]  # fmt: skip


def spanned(text: str = TEXT, **spans: "str | list[int] | tuple[str, int]") -> pb.Prompt:
    """A text with spans by name: texts, texts with their occurrence, or positions."""
    prompt = pb.Prompt(text=text)
    for name, where in spans.items():
        match where:
            case str():
                prompt.spans.add(name=name, text=where)
            case tuple((wanted, occurrence)):
                prompt.spans.add(name=name, text=str(wanted), occurrence=int(occurrence))
            case positions:
                prompt.spans.add(name=name, positions=pb.PositionList(positions=[int(one) for one in positions]))
    return prompt


def read(message: pb.Prompt) -> Prompt:
    problems = reader()
    prompt = read_prompt(message, "prompt", problems)
    problems.problems.settle()
    assert prompt is not None
    return prompt


def refused(message: pb.Prompt) -> dict[str, str]:
    problems = reader()
    read_prompt(message, "prompt", problems)
    return violations(problems)


def written(prompt: Prompt, positions: tuple[int, ...]) -> str:
    return "".join(VOCABULARY.text(prompt.tokens[position]) for position in positions).strip()


# ------------------------------------------------------------------ spans


@pytest.mark.parametrize(("occurrence", "after"), [(0, 0), (1, 1), (2, 2), (-1, 2), (-3, 0)])
def test_a_span_is_the_occurrence_that_it_names(occurrence: int, after: int) -> None:
    prompt = read(spanned(one=(" the ", occurrence)))
    ((name, positions),) = prompt.spans
    assert (name, written(prompt, positions)) == ("one", "the")
    before = written(prompt, tuple(range(positions[0])))
    assert before.count("the") == after


def test_a_span_without_occurrence_is_the_first() -> None:
    assert read(spanned(one="the")).spans == read(spanned(one=("the", 0))).spans


def test_positions_of_a_span_count_from_both_ends_and_come_in_order() -> None:
    prompt = read(spanned(ends=[-1, 0, 2]))
    assert prompt.spans == (("ends", (0, 2, len(prompt.tokens) - 1)),)


@pytest.mark.parametrize(
    ("prompt", "field", "words"),
    [
        (spanned(one="Louvre"), "prompt.spans[0].text", "'Louvre'"),
        (spanned(one=""), "prompt.spans[0].text", "empty"),
        (spanned("the whole prompt", one="whol"), "prompt.spans[0].text", "whole tokens"),
        (spanned(one=("the", 3)), "prompt.spans[0].occurrence", "-3 to 2"),
        (spanned(one=("the", -4)), "prompt.spans[0].occurrence", "got -4"),
        (spanned(one=[99]), "prompt.spans[0].positions.positions[0]", "99"),
        (spanned(one=[]), "prompt.spans[0].positions.positions", "at least one"),
        (spanned(one=[1, 1]), "prompt.spans[0].positions.positions[1]", "twice"),
        (spanned(**{"": "the"}), "prompt.spans[0].name", "1 to 64"),
        (spanned(**{"x" * 65: "the"}), "prompt.spans[0].name", "got 65"),
        (pb.Prompt(text=TEXT, spans=[pb.Span(name="a")]), "prompt.spans[0]", "text or positions"),
        (
            pb.Prompt(text=TEXT, spans=[pb.Span(name="a", text="the"), pb.Span(name="a", text="cat")]),
            "prompt.spans[1].name",
            "'a' twice",
        ),
        (
            pb.Prompt(token_ids=pb.TokenIds(ids=[5, 6]), spans=[pb.Span(name="a", text="the")]),
            "prompt.spans[0].text",
            "expected positions",
        ),
        (
            pb.Prompt(text=TEXT, spans=[pb.Span(name="a", positions=pb.PositionList(positions=[1]), occurrence=1)]),
            "prompt.spans[0].occurrence",
            "only a text",
        ),
        (pb.Prompt(text=TEXT, spans=[pb.Span(name=str(i), text="the") for i in range(1025)]), "prompt.spans", "1025"),
    ],
)
def test_a_faulty_span_is_named(prompt: pb.Prompt, field: str, words: str) -> None:
    assert words in refused(prompt)[field]


# ------------------------------------------------------------------ parts


@given(st.integers(1, 8), st.data())
def test_the_parts_of_a_span_and_what_is_before_it_are_the_prompt(tokens: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, tokens - 1))
    stop = data.draw(st.integers(start + 1, tokens))
    span = tuple(range(start, stop))
    whole, first, middle, last, after, further = (part_of(span, part, tokens) for part in PARTS)
    assert whole == span
    assert first == (start,)
    assert last == (stop - 1,)
    assert middle == tuple(range(start + 1, stop - 1))
    assert after == ((stop,) if stop < tokens else ())
    assert further == tuple(range(stop + 1, tokens - 1))
    rest = (tokens - 1,) if stop + 1 < tokens else ()
    assert sorted({*range(start), *first, *middle, *last, *after, *further, *rest}) == list(range(tokens))


def test_the_middle_of_a_span_with_gaps_are_its_own_positions() -> None:
    assert part_of((1, 4, 6), pb.SPAN_PART_MIDDLE, 9) == (4,)


# ------------------------------------------------------------------ names


def test_names_are_looked_up_in_the_prompt() -> None:
    prompt = read(spanned(cat="cat", last=[-1]))
    problems = reader()
    found = dict(prompt.spans)
    named = [
        pb.NamedPositions(span="cat"),
        pb.NamedPositions(part=pb.SPAN_PART_LAST),
        pb.NamedPositions(span="last", part=pb.SPAN_PART_NEXT),
        pb.NamedPositions(),
    ]
    everything = tuple(range(len(prompt.tokens)))
    assert read_rows(named, prompt, "x", problems) == (found["cat"], everything[-1:], (), everything)
    assert read_one(pb.NamedPositions(span="last"), prompt, "x", problems) == everything[-1]
    problems.problems.settle()


def test_a_name_that_a_prompt_lacks_is_told_with_those_that_it_has() -> None:
    problems = reader()
    prompt = read(spanned(cat="cat", dog="dog"))
    assert read_named(pb.NamedPositions(span="bird"), prompt, "list.named_positions[2]", problems) is None
    assert read_named(pb.NamedPositions(span="bird"), prompt, "other", problems, "cases[3].sources[0]") is None
    text = "expected a span 'bird', which {} names, got 'cat', 'dog'"
    assert violations(problems) == {
        "prompt.spans": text.format("list.named_positions[2]"),
        "cases[3].sources[0].spans": text.format("other"),
    }


def test_a_name_in_a_prompt_without_spans_is_told_so() -> None:
    problems = reader()
    assert read_rows([pb.NamedPositions(span="x" * 99)], read(spanned()), "f", problems) is None
    (text,) = violations(problems).values()
    assert text == f"expected a span {'x' * 64 + '...'!r}, which f[0] names, got none"


def test_other_faults_of_names_are_told_at_the_name() -> None:
    problems = reader()
    prompt = read(spanned(cat="cat"))
    unknown = pb.NamedPositions(part=99)  # type: ignore[arg-type]
    assert read_named(unknown, prompt, "unknown", problems) is None
    assert read_rows([pb.NamedPositions(part=pb.SPAN_PART_NEXT)], prompt, "empty", problems, filled=True) is None
    assert read_one(pb.NamedPositions(), prompt, "many", problems) is None
    assert read_rows([pb.NamedPositions()] * 1025, prompt, "long", problems) is None
    told = violations(problems)
    assert told["unknown.part"] == "expected one of FIRST, MIDDLE, LAST, NEXT, FURTHER, got part 99"
    assert told["empty[0]"] == "expected at least one position, got none (NEXT of the whole prompt)"
    assert told["many"].startswith(f"expected a name of one position, got {len(prompt.tokens)} (the whole prompt)")
    assert "1025" in told["long"]


def test_names_in_a_faulty_prompt_are_no_further_fault() -> None:
    problems = reader()
    assert read_rows([pb.NamedPositions(span="cat")], None, "x", problems) is None
    problems.problems.settle()
