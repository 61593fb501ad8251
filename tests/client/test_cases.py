"""Datasets, conversations and named positions as callers write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sonde
from sonde import _signatures
from sonde._ask.cases import as_cases
from sonde._ask.named import positions
from sonde.v1 import inspection_pb2 as pb

FACT = "The Eiffel Tower is in the city of"


def asked(cases: Any, **options: Any) -> Any:
    return _signatures.trace(cases, **options).asking.request(None)


def names(site: sonde.Site) -> list[tuple[str, int]]:
    sent = asked("a", method=sonde.Activations(site)).activations.sites[0].named_positions
    return [(name.span, name.part) for name in sent]


# ---------------------------------------------------------------------- positions


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("subject", [("subject", 0)]),
        ("subject.last", [("subject", pb.SPAN_PART_LAST)]),
        ("end", [("", pb.SPAN_PART_LAST)]),
        ("user[0].next", [("user[0]", pb.SPAN_PART_NEXT)]),
        ("a.b", [("a.b", 0)]),
        (sonde.span("first"), [("first", 0)]),
        (sonde.span("s", "middle"), [("s", pb.SPAN_PART_MIDDLE)]),
        (["first", "s.further"], [("", pb.SPAN_PART_FIRST), ("s", pb.SPAN_PART_FURTHER)]),
    ],
)
def test_positions_by_name(given: Any, expected: Any) -> None:
    assert names(sonde.residual(position=given)) == expected


def test_the_ends_of_the_prompt_can_stand_among_numbers() -> None:
    assert positions([2, "first", "end"], "positions") == (2, 0, -1)
    with pytest.raises(sonde.InvalidRequest, match="numbers and the name 'subject'"):
        positions([2, "subject"], "positions")
    with pytest.raises(sonde.InvalidRequest, match="one of first, middle, last, next, further"):
        sonde.span("subject", "end")  # type: ignore[arg-type]
    with pytest.raises(sonde.InvalidRequest, match="at least one"):
        positions([], "positions")


def test_a_plain_subject_is_a_span_where_the_prompt_has_one_of_this_name() -> None:
    tracing = sonde.CausalTracing(subject="subject")
    case = sonde.Case(FACT, spans={"subject": "The Eiffel Tower"})
    assert asked([case], method=tracing).causal_tracing.named_subject.span == "subject"
    assert asked(sonde.Prompt(FACT, spans={"subject": [0]}), method=tracing).causal_tracing.named_subject.span
    assert asked(FACT, method=tracing).causal_tracing.subject_text == "subject"
    chat = sonde.Chat([("user", "hi")])
    assert asked(chat, method=sonde.CausalTracing("user[0]")).causal_tracing.named_subject.span == "user[0]"
    last = sonde.CausalTracing(subject="subject.last")
    assert asked([case], method=last).causal_tracing.named_subject.part == pb.SPAN_PART_LAST


def test_the_source_of_each_case_can_be_what_is_compared_with() -> None:
    case = sonde.Case("a", sources=["b"])
    tracing = asked([case], method=sonde.CausalTracing(counterfactual=True)).causal_tracing
    assert tracing.HasField("counterfactual")
    assert tracing.counterfactual == pb.Prompt()
    patching = asked([case], method=sonde.AttributionPatching(components="mlp_out")).attribution_patching
    assert patching.HasField("source")
    assert patching.source == pb.Prompt()
    with pytest.raises(sonde.InvalidRequest, match="the prompt to patch from"):
        asked("a", method=sonde.AttributionPatching(components="mlp_out"))


def test_patches_name_the_sources_of_the_cases_by_index() -> None:
    plan = sonde.patch(sonde.head(layer=1), "a prompt of its own")
    assert _signatures.intervene(["a", "b"], plan).asking.request(None) is not None
    with pytest.raises(sonde.InvalidRequest, match="by index"):
        _signatures.intervene([sonde.Case("a", sources=["b"])], plan)


# ---------------------------------------------------------------------- what is a dataset


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ("a text", None),
        ([1, 2, 3], None),
        ((1, 2), None),
        (range(3), None),
        (np.array([1, 2]), None),
        (np.array([[1, 2]]), None),
        ([[1, 2]], None),
        (sonde.Prompt("a"), None),
        (sonde.Chat([("user", "a")]), None),
        (["a text"], 1),
        (["a", "b"], 2),
        (("a", "b"), 2),
        ([[1, 2], [3]], 2),
        (np.array([[1, 2], [3, 4]]), 2),
        ([sonde.Chat([("user", "a")])], 1),
        ([sonde.Case("a"), "b"], 2),
        (sonde.Case("a"), 1),
        (sonde.Cases([[1, 2]]), 1),
        ((word for word in ("a", "b")), 2),
    ],
)
def test_what_is_a_dataset(given: Any, count: int | None) -> None:
    found = as_cases(given)
    assert (None if found is None else len(found)) == count


def test_a_column_of_pandas_is_a_dataset() -> None:
    pandas = pytest.importorskip("pandas")
    assert [case.prompt for case in as_cases(pandas.Series(["a", "b"])) or ()] == ["a", "b"]


def test_no_cases_are_refused() -> None:
    with pytest.raises(sonde.InvalidRequest, match="at least one case"):
        sonde.Cases([])
    with pytest.raises(sonde.InvalidRequest, match="several cases to reduce, got one prompt"):
        asked("a", reduce="mean")
    with pytest.raises(sonde.InvalidRequest, match="expected reduce='mean' with it"):
        asked(["a"], largest=3)
    with pytest.raises(sonde.InvalidRequest, match=r"cases\[1\]: prompt"):
        asked(["a", sonde.Case([1.5])])  # type: ignore[list-item]


def test_a_slice_of_a_dataset_is_a_dataset() -> None:
    cases = sonde.Cases([sonde.Case("a", group="x"), "b", "c"])
    assert isinstance(cases[1:], sonde.Cases)
    assert [case.prompt for case in cases[1:]] == ["b", "c"]
    assert cases.groups == ("x", "")
    assert repr(cases) == "Cases(3 cases, 2 groups)"


# ---------------------------------------------------------------------- tables and files


def test_a_dataset_is_read_by_the_names_of_its_columns() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "sentence": [FACT, "The Colosseum is in the city of"],
            "capital": [" Paris", " Rome"],
            "other": [" Rome", " Paris"],
            "thing": ["The Eiffel Tower", "The Colosseum"],
            "flipped": ["The Louvre is in", None],
            "era": ["new", float("nan")],
        }
    )
    cases = sonde.Cases.from_dataframe(
        frame,
        prompt="sentence",
        targets="capital",
        contrast="other",
        sources="flipped",
        group="era",
        spans={"subject": "thing"},
    )
    sent = asked(cases).cases
    assert [case.prompt.text for case in sent] == list(frame["sentence"])
    assert [(case.targets[0].text, case.targets[0].contrast_text) for case in sent] == [
        (" Paris", " Rome"),
        (" Rome", " Paris"),
    ]
    assert [[source.text for source in case.sources] for case in sent] == [["The Louvre is in"], []]
    assert [case.group for case in sent] == ["new", ""]
    assert [case.prompt.spans[0].text for case in sent] == ["The Eiffel Tower", "The Colosseum"]
    with pytest.raises(sonde.InvalidRequest, match=r"cases\[0\].*expected a column of this name, got sentence"):
        sonde.Cases.from_dataframe(frame, prompt="prompt")


def test_a_dataset_of_conversations_is_read() -> None:
    class Dataset:
        """What Hugging Face's datasets have in common with a list: they are iterated for rows."""

        def __iter__(self) -> Any:
            yield {"messages": [{"role": "user", "content": "hi"}], "label": 1}

    (case,) = asked(sonde.Cases.from_dataset(Dataset(), group="label", add_generation_prompt=True)).cases
    assert case.prompt.chat.messages[0] == pb.ChatMessage(role="user", content="hi")
    assert case.prompt.chat.add_generation_prompt
    assert case.group == "1"


def test_a_dataset_comes_back_from_a_file(tmp_path: Path) -> None:
    cases = sonde.Cases(
        [
            FACT,
            sonde.Case(
                FACT,
                sources=[sonde.Prompt("The Louvre"), sonde.Prompt([3, 4], spans={"x": [0]})],
                targets=[" Paris", (" Rome", 7), 5],
                spans={"subject": "The Eiffel Tower", "the": ("the", -1), "some": [0, -1]},
                group="new",
            ),
            sonde.Case([1, 2, 3], targets=" Paris"),
            sonde.Case(sonde.Prompt("seen", image=b"\x89PNG")),
            sonde.Case(sonde.Chat([("system", "be kind"), ("user", "hi")], add_generation_prompt=True)),
            sonde.Case(sonde.Chat([("user", "a"), ("assistant", "b")], continue_final_message=True)),
        ]
    )
    path = tmp_path / "cases.jsonl"
    cases.to_jsonl(path)
    assert len(path.read_text().splitlines()) == 6
    assert json.loads(path.read_text().splitlines()[0]) == {"prompt": FACT}
    assert asked(sonde.Cases.from_jsonl(path)) == asked(cases)


def test_a_line_that_is_no_case_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(sonde.InvalidRequest, match=r"cases\.jsonl:2: expected an object of JSON"):
        sonde.Cases.from_jsonl(path)
    path.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    with pytest.raises(sonde.InvalidRequest, match=r"cases\[1\]: prompt: expected the column of the prompt"):
        sonde.Cases.from_jsonl(path)
    path.write_text("[1, 2]\n")
    with pytest.raises(sonde.InvalidRequest, match=r"cases\[0\]: expected a row with named columns"):
        sonde.Cases.from_jsonl(path)


@pytest.mark.parametrize("messages", [[], "text", [("user",)], [("user", 3)], [{"role": "user"}]])
def test_what_is_no_conversation_is_refused(messages: Any) -> None:
    with pytest.raises(sonde.InvalidRequest, match="messages: expected at least one message"):
        sonde.Chat(messages)


@pytest.mark.parametrize("spans", ["text", {1: "a"}, {"a": ("b", 1, 2)}, {"a": [0.5]}, {"a": []}])
def test_what_is_no_span_is_refused(spans: Any) -> None:
    with pytest.raises(sonde.InvalidRequest, match="spans"):
        sonde.Prompt("a", spans=spans)


def test_types_of_activations_belong_to_activations() -> None:
    read = sonde.Activations(sonde.residual())
    assert asked("a", method=read, data_type="float16").activations.data_type == pb.DATA_TYPE_FLOAT16
    with pytest.raises(sonde.InvalidRequest, match=r"data_type: expected method=sonde\.Activations"):
        asked("a", method=sonde.TokenProbability(), data_type="float16")
    with pytest.raises(sonde.InvalidRequest, match="expected one of float32, bfloat16, float16"):
        asked("a", method=read, data_type="int32")
    with pytest.raises(sonde.InvalidRequest, match="expected one of mean, max"):
        asked("a", method=read, pooling="sum")
