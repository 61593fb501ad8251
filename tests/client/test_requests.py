"""The request inside a result equals what was asked, and names the runs."""

import hashlib
import pickle
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sonde
from sonde._answers import files
from sonde._answers.interventions import InterventionResult
from sonde._methods.interventions import InterveneAssembler, intervene_request
from sonde._wire.asked import record
from sonde.v1 import inspection_pb2 as pb

HEAD = sonde.scale(sonde.head(layer=9, unit=1), 0.0)
LONG = np.arange(160, dtype=np.float32)


def asked(plan: Any, **others: Any) -> pb.InterveneRequest:
    given: Any = {"targets": [" Paris"], "sources": (), "position": None, "top_k": 3, "kl_divergence": True}
    given |= {"activations": (), "generation": sonde.Generation(4, temperature=0.5, seed=7), "dry_run": False}
    return intervene_request("The Eiffel Tower", plan, **(given | others))


@pytest.fixture
def changed(peer: Any, answers: Any) -> Any:
    def change(plan: Any, runs: int) -> InterventionResult:
        values = np.arange(runs, dtype=np.float32)[:, np.newaxis]
        peer.steps = [pb.InterveneResponse(context=answers.context(), readings=answers.readings(0, -values))]
        with sonde.Client(peer.address) as client:
            return client.intervene("The Eiffel Tower", plan, targets=[" Paris"])

    return change


def test_the_record_equals_what_was_asked() -> None:
    plan = [[HEAD, sonde.patch(sonde.residual(layer=2, position=-1), "The Colosseum", source_layer=3)]]
    kept = record(asked(plan)).content
    assert kept == {
        "prompt": {"text": "The Eiffel Tower"},
        "sources": [{"text": "The Colosseum"}],
        "list": {
            "interventions": [
                {
                    "edits": [
                        {"site": {"component": "head_out", "layers": [9], "units": [1]}, "scale": 0.0},
                        {
                            "site": {"component": "residual_post", "layers": [2], "positions": [-1]},
                            "patch": {"sources": [0], "source_layer": 3},
                        },
                    ]
                }
            ]
        },
        "readout": {
            "targets": [{"text": " Paris"}],
            "top_k": 3,
            "kl_divergence": True,
            "generation": {"max_new_tokens": 4, "temperature": 0.5, "seed": 7},
        },
    }


def test_a_long_array_is_kept_in_short_and_a_short_one_whole() -> None:
    plan = [sonde.add(sonde.residual(layer=1), LONG), sonde.add(sonde.residual(layer=1), LONG[:5].astype(np.float16))]
    long, short = (run["edits"][0]["add"] for run in record(asked(plan)).content["list"]["interventions"])
    digest = hashlib.sha256(LONG.tobytes()).hexdigest()
    norm = pytest.approx(float(np.sqrt((LONG.astype(float) ** 2).sum())))
    assert long == {"shape": [160], "data_type": "float32", "norm": norm, "sha256": digest}
    assert (short["values"], short["data_type"]) == ([0.0, 1.0, 2.0, 3.0, 4.0], "float16")


def test_a_record_is_made_when_somebody_looks_and_survives_pickling() -> None:
    request = asked([HEAD])
    kept = record(request)
    request.readout.top_k = 2
    assert kept.content["readout"]["top_k"] == 2, "as it was sent"
    request.readout.top_k = 1
    assert kept.content["readout"]["top_k"] == 2
    again = pickle.loads(pickle.dumps(kept))  # noqa: S301 - of our own
    assert again == kept
    assert type(again.content) is dict
    assert "cases" not in kept.without_cases().content


def test_an_image_is_kept_by_its_digest() -> None:
    prompt = sonde.Prompt("What is this?", image=b"PNG")
    request = pb.TraceRequest(prompt=pb.Prompt(text=str(prompt.content), image=b"PNG"))
    image = record(request).content["prompt"]["image"]
    assert image == {"bytes": 3, "sha256": hashlib.sha256(b"PNG").hexdigest()}


def test_a_result_knows_when_and_by_whom_it_was_asked(changed: Any) -> None:
    before = datetime.now(UTC)
    result = changed(HEAD, 1)
    when = datetime.fromisoformat(result.asked_at)
    assert abs((when - before).total_seconds()) < 60
    assert when.utcoffset() is not None
    assert result.request.client_version == sonde.__version__
    assert result.request.prompt == "The Eiffel Tower"
    assert (result.request.call, result.request.method) == ("intervene", "list")


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_the_request_is_saved_with_the_result(changed: Any, tmp_path: Path, ending: str) -> None:
    result = changed({"no head": HEAD, "steered": sonde.add(sonde.residual(layer=1), LONG)}, 2)
    result.save(tmp_path / f"r.{ending}")
    loaded = sonde.load(tmp_path / f"r.{ending}")
    assert loaded.request == result.request
    assert loaded.asked_at == result.asked_at
    assert loaded.labels == ("no head", "steered")


def test_a_file_without_a_request_still_loads(changed: Any, tmp_path: Path) -> None:
    result = changed([HEAD, HEAD], 2)
    path = tmp_path / "old.npz"
    result.save(path)
    arrays, header = files._read_npz(path)
    import json

    tree = json.loads(header)
    del tree["result"]["fields"]["request"]
    np.savez(path, __sonde__=np.array(json.dumps(tree)), **arrays)  # type: ignore[arg-type]
    old = sonde.load(path)
    assert (old.request, old.asked_at, old.labels) == (None, "", ("run 0", "run 1"))
    assert old._repr_html_()
    assert np.array_equal(old.log_probabilities, result.log_probabilities)


def test_names_of_runs_are_shown_everywhere(changed: Any) -> None:
    pytest.importorskip("matplotlib")
    names = ["no head 9.1", "twice as much"]
    result = changed(dict(zip(names, [HEAD, [HEAD, HEAD]], strict=True)), 2)
    assert list(result.labels) == names
    assert result["twice as much"].log_probabilities.tolist() == [-1.0]
    assert result.top(0, run="no head 9.1") == []
    assert list(result.to_dataframe()["label"]) == names
    drawn = [label.get_text() for label in result.plot().axes[0].get_yticklabels()]
    assert drawn == names
    for text in (result.to_text(), result._repr_html_(), result.request.describe()):
        assert all(name in text for name in names)
    assert {change.label for change in result.most_changed()} == set(names)


def test_a_label_that_is_not_there_is_told_of(changed: Any) -> None:
    result = changed([HEAD, HEAD], 2)
    with pytest.raises(KeyError, match=r"expected the label of a run: expected head 9\.1 × 0, got 'no head'"):
        result["no head"]
    with pytest.raises(KeyError, match=r"2 runs are labelled 'head 9\.1 × 0'; choose by number: 0, 1"):
        result["head 9.1 × 0"]


def test_the_name_of_a_run_is_text() -> None:
    with pytest.raises(sonde.InvalidRequest, match="expected names of runs as text, got 9"):
        sonde.Client("localhost:1").intervene("a", {9: HEAD})  # type: ignore[dict-item]


PLACE = sonde.residual(layer=[3], position=[0, 1, 2])


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ([HEAD], "head 9.1 × 0"),
        ([sonde.add(PLACE, LONG)], "residual 3 at 0-2 + [160] of norm 1163"),
        ([sonde.replace(PLACE, 0.5)], "residual 3 at 0-2 = 0.5"),
        ([sonde.multiply(sonde.site("mlp_out", layers=1), 2.0)], "MLP out 1 × 2"),
        ([sonde.patch(PLACE, "A long prompt that goes on")], "residual 3 at 0-2 from “A long prompt that goes…”"),
        ([sonde.patch(PLACE, ["a", "b"])], "residual 3 at 0-2 from the mean of 2 sources"),
        ([sonde.noise(sonde.neuron(layer=1, unit=7), 0.25, seed=3)], "neuron 1.7 + noise of 0.25, seed 3"),
        ([sonde.project_out(sonde.residual(layer=1, from_position=4), LONG)],
         "residual 1 from 4 on without [160] of norm 1163"),
        ([sonde.knockout(sonde.site("attention_scores", layers=2, positions=-1), [0, 1])],
         "attention 2 at -1 blocked to position 0,1"),
        ([HEAD] * 4, "head 9.1 × 0, head 9.1 × 0, 2 more"),
        ([], "no edit"),
    ],
)  # fmt: skip
def test_runs_without_names_are_named_by_their_edits(edits: Any, said: str) -> None:
    request = asked([edits])
    assert record(request).run_labels == (said,)
    assert InterveneAssembler(request, ())._asked_request == replace(record(request))


def test_the_description_can_be_read() -> None:
    request = record(asked([HEAD, sonde.add(PLACE, LONG)]), ["off", "steered"])
    text = request.describe()
    first, *lines = text.splitlines()
    assert first.startswith("interventions on “The Eiffel Tower”: 2 runs, 20")
    assert "    0: off: head 9.1 × 0" in lines
    assert "    generation: max new tokens 4, temperature 0.5, seed 7" in lines
    assert lines[-1].endswith(f"Sonde {sonde.__version__}")
    assert max(map(len, lines)) < 120
    assert str(request) == text
    assert repr(request) == f"Request({request.summary()})"


def test_a_notebook_unfolds_the_request(changed: Any) -> None:
    page = changed(HEAD, 1)._repr_html_()
    assert "<details" in page
    assert "head 9.1 × 0" in page
