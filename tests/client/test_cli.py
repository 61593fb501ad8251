"""The `sonde` command against a scripted peer."""

import json
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from sonde.cli import main
from sonde.v1 import inspection_pb2 as pb


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, peer: Any) -> None:
    monkeypatch.setenv("SONDE_ADDRESS", peer.address)
    monkeypatch.delenv("SONDE_TOKEN", raising=False)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(arguments)
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_model(peer: Any, answers: Any, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("SONDE_TOKEN", "secret")
    peer.steps = [answers.model()]
    status, out, err = run(capsys, "model")
    assert (status, err) == (0, "")
    assert "residual_mid (parallel)" in out
    assert peer.metadata[0]["authorization"] == "Bearer secret"
    described = json.loads(run(capsys, "model", "--json")[1])
    assert (described["layers"], described["components"]["residual_mid"]["available"]) == (2, False)


def test_trace_with_a_figure(peer: Any, answers: Any, capsys: Any, tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    peer.steps = answers.causal()
    picture = tmp_path / "trace.png"
    arguments = ("trace", "The Eiffel Tower is in the city of", "--subject", "The Eiffel Tower", "--target", " Paris")
    more = (
        "--plot",
        str(picture),
        "--seed",
        "3",
        "--samples",
        "4",
        "--noise",
        "2",
        "--window",
        "6",
        "--layers",
        "0-11",
    )
    status, out, err = run(capsys, *arguments, *more, "--layers", "0-11")
    assert status == 0
    assert err == f"wrote {picture}\n"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "Tower*" in out
    assert "residual_post restored" in out
    asked = peer.requests[0].causal_tracing
    assert (asked.subject_text, asked.gaussian.seed, asked.gaussian.samples) == ("The Eiffel Tower", 3, 4)
    assert (asked.gaussian.deviations, asked.window, list(asked.layers)) == (2.0, 6, list(range(12)))


def test_trace_as_json(peer: Any, answers: Any, capsys: Any) -> None:
    peer.steps = answers.causal()
    described = json.loads(run(capsys, "trace", "x", "--subject", "x", "--json")[1])
    assert np.array(described["restored"]["mlp_out"]).shape == (8, 12, 1)
    assert described["corrupted"] == [pytest.approx(0.03)]
    assert described["clean"]["top_tokens"][0]["probability"] == pytest.approx(0.9)


def test_lens(peer: Any, answers: Any, capsys: Any) -> None:
    peer.steps = [answers.lens(4)]
    status, out, _ = run(capsys, "trace", "x", "--lens", "--gradients")
    assert status == 0
    assert "after block" in out
    assert peer.requests[0].token_probability.gradient_norms


def test_attributions(peer: Any, answers: Any, capsys: Any) -> None:
    part = pb.Attributions(
        component=pb.COMPONENT_HEAD_OUT,
        layers=[0, 1],
        positions=range(8),
        estimates=answers.tensor(np.arange(48, dtype=np.float32).reshape(2, 8, 3, 1)),
    )
    edges = pb.EdgeAttributions(
        senders=answers.tensor(np.array([[pb.COMPONENT_TOKEN_EMBEDDING, 0, 0]]), "int32"),
        receivers=answers.tensor(np.array([[pb.COMPONENT_QUERY, 3, 1]]), "int32"),
        estimates=answers.tensor(np.array([[0.5]])),
    )
    site = pb.Site(component=pb.COMPONENT_HEAD_OUT, layers=[1], units=[2], positions=[7])
    verified = pb.VerifiedEffect(site=site, estimated=[47.0], measured=[3.0])
    message = pb.TraceResponse(context=answers.context(), attributions=[part], edges=[edges], verified=[verified])
    peer.steps = [message]
    arguments = ("trace", "x", "--attribute-from", "y", "--component", "head_out", "--edges", "1", "--verify", "1")
    status, out, _ = run(capsys, *arguments, "--steps", "4", "--metric", "probability")
    assert status == 0
    assert "token embedding  query 3.1" in out
    assert "head_out layer 1 unit 2 position 7" in out
    asked = peer.requests[0].attribution_patching
    assert (asked.source.text, list(asked.components)) == ("y", [pb.COMPONENT_HEAD_OUT])
    assert (asked.integration_steps, asked.metric, asked.verify_top) == (4, pb.METRIC_PROBABILITY, 1)
    assert asked.edges.top == 1
    described = json.loads(run(capsys, *arguments, "--json")[1])
    assert described["edges"]["estimates"] == [[0.5]]
    assert run(capsys, "trace", "x", "--attribute-from", "y", "--lens")[0] == 2
    assert run(capsys, *arguments, "--integration", "ends")[0] == 0
    assert peer.requests[-1].attribution_patching.integration == pb.INTEGRATION_ENDS


def test_a_prediction_alone(peer: Any, answers: Any, capsys: Any) -> None:
    peer.steps = [pb.TraceResponse(context=answers.context())]
    assert "' Paris'     0.9" in run(capsys, "trace", "x", "--top", "2")[1]
    assert peer.requests[0].top_k == 2
    assert peer.requests[0].WhichOneof("method") is None


def test_a_prediction_alone_has_its_targets(peer: Any, answers: Any, capsys: Any) -> None:
    seattle = pb.Token(id=9, text=" Seattle")
    context = answers.context(seattle, answers.PARIS)
    context.clean.log_probabilities[:] = [np.log(0.25), np.log(0.9)]
    context.clean.logits[:] = [-3.5, 12.0]
    peer.steps = [pb.TraceResponse(context=context)]
    _, out, _ = run(capsys, "trace", "x", "--target", " Seattle", "--target", " Paris", "--contrast", " Rome")
    rows = [line.split() for line in out.splitlines()]
    assert ["'", "Seattle'", "0.25", "-3.5"] in rows
    assert ["'", "Paris'", "0.9", "12"] in rows
    assert "minus any contrast's" in out


def one_run(answers: Any) -> pb.InterveneResponse:
    return pb.InterveneResponse(context=answers.context(), readings=answers.readings(0, [[-1.0]]))


def test_places_are_edited_together(peer: Any, answers: Any, capsys: Any) -> None:
    peer.steps = [one_run(answers)]
    arguments = ("intervene", "x", "--neuron", "3:17", "--head", "0-1:2,4", "--residual", "5", "--scale", "0.5")
    status, out, _ = run(capsys, *arguments, "--position", "-1")
    assert status == 0
    assert "unchanged" in out
    (intervention,) = peer.requests[0].list.interventions
    assert [(e.site.component, list(e.site.layers), list(e.site.units), e.scale) for e in intervention.edits] == [
        (pb.COMPONENT_NEURON, [3], [17], 0.5),
        (pb.COMPONENT_HEAD_OUT, [0, 1], [2, 4], 0.5),
        (pb.COMPONENT_RESIDUAL_POST, [5], [], 0.5),
    ]
    assert all(list(e.site.positions) == [-1] for e in intervention.edits)


def test_layers_and_positions_count_from_the_end(peer: Any, answers: Any, capsys: Any) -> None:
    peer.steps = [one_run(answers)]
    arguments = ("--neuron", "-1:17", "--head=-2:4", "--mlp", "-1,-2", "--positions", "-1,-3")
    assert run(capsys, "intervene", "-1 + 2", *arguments)[0] == 0
    assert peer.requests[0].prompt.text == "-1 + 2"
    (intervention,) = peer.requests[0].list.interventions
    assert [(list(edit.site.layers), list(edit.site.units)) for edit in intervention.edits] == [
        ([-1], [17]),
        ([-2], [4]),
        ([-1, -2], []),
    ]
    assert all(list(edit.site.positions) == [-1, -3] for edit in intervention.edits)


def test_places_one_by_one(peer: Any, answers: Any, capsys: Any) -> None:
    peer.steps = [pb.InterveneResponse(context=answers.context(), readings=answers.readings(0, [[-1.0], [-2.0]]))]
    status, out, _ = run(capsys, "intervene", "x", "--neuron", "3:17", "--neuron", "3:18", "--separately")
    assert (status, len(peer.requests[0].list.interventions)) == (0, 2)
    assert "2 runs, the 2 largest changes first" in out


def test_a_sweep(peer: Any, answers: Any, capsys: Any) -> None:
    context = answers.context(axes=pb.Axes(layers=[3], units=[0, 1], positions=[7]))
    peer.steps = [pb.InterveneResponse(context=context, readings=answers.readings(0, [[-1.0], [-2.0]]))]
    arguments = ("intervene", "x", "--sweep", "head", "--layer", "3", "--position", "-1")
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    assert "layer  unit  position" in out
    site = peer.requests[0].sweep.edit.site
    assert (site.component, list(site.layers), list(site.positions)) == (pb.COMPONENT_HEAD_OUT, [3], [-1])
    described = json.loads(run(capsys, *arguments, "--json")[1])
    assert described["axes"]["unit"] == [0, 1]
    assert np.array(described["log_probabilities"]).shape == (1, 2, 1, 1)


def test_operations(peer: Any, answers: Any, capsys: Any, tmp_path: Any) -> None:
    peer.steps = [one_run(answers)]
    np.save(tmp_path / "v.npy", np.ones(3, np.float32))
    for arguments, operation in (
        (("--set", str(tmp_path / "v.npy")), "set"),
        (("--add", str(tmp_path / "v.npy")), "add"),
        (("--noise", "0.1"), "noise"),
        (("--patch-from", "another"), "patch"),
        ((), "scale"),
    ):
        assert run(capsys, "intervene", "x", "--mlp", "1", *arguments)[0] == 0
        assert peer.requests[-1].list.interventions[0].edits[0].WhichOneof("operation") == operation
    assert [source.text for source in peer.requests[-2].sources] == ["another"]


def test_a_dry_run(peer: Any, answers: Any, capsys: Any) -> None:
    peer.steps = [pb.InterveneResponse(context=answers.context(clean=False))]
    status, out, _ = run(capsys, "intervene", "x", "--mlp", "1", "--dry-run")
    assert (status, out) == (0, "5 runs, 40 token-layers, of 160 in full; an answer of 1,000 bytes\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("intervene", "x"), "--neuron 3:17"),
        (("intervene", "x", "--neuron", "a:1"), "'a'"),
        (("intervene", "x", "--neuron", "3-1:1"), "at least one number"),
        (("intervene", "x", "--neuron", "1:1", "--layers", "2"), "--sweep"),
        (("intervene", "x", "--sweep", "head", "--neuron", "1:1"), "--layers"),
        (("intervene", "x", "--sweep", "brain"), "brain"),
        (("intervene", "x", "--sweep", "mpl"), "got 'mpl'; did you mean mlp?"),
        (("trace", "x", "--subject", "x", "--component", "mlp"), "got 'mlp'; did you mean mlp_out?"),
        (("intervene", "x", "--residual", "3:99"), "--residual: expected layers alone, such as 3 or 0-2, got '3:99'"),
        (("generate", "x", "--mlp", "-1:"), "--mlp: expected layers alone, such as 3 or 0-2, got '-1:'"),
        (("intervene", "x", "--mlp", "1", "--add", "/nowhere.npy"), "/nowhere.npy"),
        (
            ("trace", "x", "--lens", "--subject", "x"),
            "sonde: --lens and --subject cannot be combined: choose one method",
        ),
        (
            ("trace", "x", "--counterfactual", "y", "--attribute-from", "y"),
            "sonde: --counterfactual and --attribute-from cannot be combined: choose one method",
        ),
        (
            ("trace", "x", "--plot", "x.png"),
            "sonde: --plot: nothing to draw; add --subject, --lens or --attribute-from",
        ),
        (
            ("trace", "x", "--lens", "--plot", "x.xyz"),
            "sonde: --plot: expected a file that ends in .png, .pdf or .svg, got 'x.xyz'",
        ),
        (("trace", "x", "--contrast", " Rome"), "--target"),
        (("trace",), "prompt"),
        (("model", "--address", "gpu.example.org", "--token", "secret"), "unencrypted"),
    ],
)
def test_usage_errors_are_one_line_and_status_2(capsys: Any, arguments: tuple[str, ...], words: str) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err


_TRACING = "--subject or --counterfactual"
_PLACES = "--neuron, --head, --residual, --mlp or --attention"


@pytest.mark.parametrize(
    ("arguments", "option", "needed"),
    [
        (("trace", "--samples", "3"), "--samples", _TRACING),
        (("trace", "--noise", "2"), "--noise", _TRACING),
        (("trace", "--seed", "5"), "--seed", _TRACING),
        (("trace", "--seed", "0"), "--seed", _TRACING),
        (("trace", "--window", "3"), "--window", _TRACING),
        (("trace", "--layers", "0-5"), "--layers", _TRACING),
        (("trace", "--positions", "-1"), "--positions", _TRACING),
        (("trace", "--lens", "--layers", "99"), "--layers", _TRACING),
        (("trace", "--component", "mlp_out"), "--component", "--subject, --counterfactual or --attribute-from"),
        (("trace", "--steps", "5"), "--steps", "--attribute-from"),
        (("trace", "--metric", "probability"), "--metric", "--attribute-from"),
        (("trace", "--edges", "3"), "--edges", "--attribute-from"),
        (("trace", "--verify", "5"), "--verify", "--attribute-from"),
        (("trace", "--verify", "0"), "--verify", "--attribute-from"),
        (("trace", "--subject", "x", "--verify", "5"), "--verify", "--attribute-from"),
        (("trace", "--attribute-from", "y", "--samples", "3"), "--samples", _TRACING),
        (("trace", "--gradients"), "--gradients", "--lens"),
        (("trace", "--subject", "x", "--gradients"), "--gradients", "--lens"),
        (("intervene", "--separately", "--sweep", "head"), "--separately", _PLACES),
        (("intervene", "--mlp", "1", "--seed", "5"), "--seed", "--noise"),
        (("generate", "--scale", "0"), "--scale", _PLACES),
        (("generate", "--set", "v.npy"), "--set", _PLACES),
        (("generate", "--add", "v.npy"), "--add", _PLACES),
        (("generate", "--from-position", "0"), "--from-position", _PLACES),
    ],
)
def test_an_option_without_the_one_it_needs_is_refused(
    peer: Any, capsys: Any, arguments: tuple[str, ...], option: str, needed: str
) -> None:
    command, *options = arguments
    assert run(capsys, command, "x", *options) == (2, "", f"sonde: {option}: expected {needed} with it\n")
    assert not peer.requests


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 2),
        (grpc.StatusCode.UNIMPLEMENTED, 2),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 3),
        (grpc.StatusCode.UNAUTHENTICATED, 4),
        (grpc.StatusCode.INTERNAL, 1),
    ],
)
def test_failures_have_their_status(peer: Any, fail: Any, capsys: Any, code: Any, status: int) -> None:
    info = error_details_pb2.ErrorInfo(reason="WHY", metadata={"request_id": "abc"})
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=2))
    peer.steps = [fail(code, "first line\nsecond line", info, retry)]
    got, out, err = run(capsys, "trace", "x")
    assert (got, out) == (status, "")
    assert err.startswith("sonde: first line second line")
    assert err.count("\n") == 1
    assert "(request abc)" in err
    assert ("try again in 2 s" in err) is (status == 3)


def test_nobody_there(capsys: Any) -> None:
    status, _, err = run(capsys, "model", "--address", "127.0.0.1:1")
    assert status == 3
    assert err.startswith("sonde: no server answers at 127.0.0.1:1")


def test_help_tells_the_exit_status(capsys: Any) -> None:
    for arguments in (["--help"], ["trace", "--help"]):
        status, out, _ = run(capsys, *arguments)
        assert status == 0
        assert "SONDE_ADDRESS" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("--address", "{}", "model"),
        ("--address={}", "model"),
        ("model", "--address", "{}"),
        ("--address", "127.0.0.1:1", "model", "--address", "{}"),
        ("--timeout", "20", "--json", "--address", "{}", "model"),
    ],
)
def test_the_connection_is_named_before_the_command_or_after_it(
    peer: Any, answers: Any, capsys: Any, monkeypatch: Any, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("SONDE_ADDRESS", "127.0.0.1:1")
    peer.steps = [answers.model()]
    status, out, err = run(capsys, *(argument.format(peer.address) for argument in arguments))
    assert (status, err) == (0, "")
    assert out.startswith("{") is ("--json" in arguments)


def test_options_before_the_command_and_after_it_add_up(peer: Any, answers: Any, capsys: Any) -> None:
    remaining: list[float] = []
    peer.steps = [lambda context: remaining.append(context.time_remaining()), answers.model()]
    status, out, _ = run(capsys, "--timeout", "100", "--token", "secret", "model", "--json")
    assert (status, json.loads(out)["layers"]) == (0, 2)
    assert 50 < remaining[0] < 110
    assert peer.metadata[0]["authorization"] == "Bearer secret"


@pytest.mark.parametrize("option", ["--lens", "--top=3", "--neuron", "--temperature", "--dry-run"])
def test_an_option_of_a_command_that_comes_before_it_is_told_where_it_goes(capsys: Any, option: str) -> None:
    status, out, err = run(capsys, option, "3", "trace", "x")
    name = option.partition("=")[0]
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == (
        f"sonde: error: argument {name}: expected after the command, as in sonde COMMAND {name} ..."
    )


def test_an_option_that_nobody_knows_is_named(capsys: Any) -> None:
    for arguments in (("--colour", "model"), ("model", "--colour")):
        status, _, err = run(capsys, *arguments)
        assert status == 2
        assert "unrecognized arguments: --colour" in err


def cases_file(tmp_path: Any) -> str:
    path = tmp_path / "cases.jsonl"
    lines = [
        {"prompt": "The Eiffel Tower is in", "targets": [" Paris"], "spans": {"subject": "The Eiffel Tower"}},
        {"prompt": "The Colosseum is in", "target": " Rome", "source": "The Louvre is in", "group": "old"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_cases_of_a_file_are_asked_in_one_request(peer: Any, answers: Any, capsys: Any, tmp_path: Any) -> None:
    begun = answers.context(clean=False)
    begun.cost.cases, begun.cost.tokens = 2, 15
    peer.steps = [pb.TraceResponse(context=begun)]
    arguments = ("trace", "--cases", cases_file(tmp_path), "--subject", "subject", "--reduce", "mean", "--dry-run")
    status, out, err = run(capsys, *arguments, "--positions", "subject.last,end")
    assert (status, err) == (0, "")
    assert out.startswith("2 cases of 15 tokens in all, 5 runs")
    (asked,) = peer.requests
    assert asked.causal_tracing.named_subject == pb.NamedPositions(span="subject")
    assert [str(name.span) for name in asked.causal_tracing.named_positions] == ["subject", ""]
    assert asked.HasField("reduction")
    assert [case.prompt.text for case in asked.cases] == ["The Eiffel Tower is in", "The Colosseum is in"]
    assert asked.cases[0].prompt.spans[0].text == "The Eiffel Tower"
    assert (asked.cases[1].sources[0].text, asked.cases[1].group) == ("The Louvre is in", "old")
    assert [case.targets[0].text for case in asked.cases] == [" Paris", " Rome"]


def test_each_case_is_continued(peer: Any, answers: Any, capsys: Any, tmp_path: Any) -> None:
    def case(number: int) -> pb.InterveneResponse:
        ended = pb.Generated.FINISH_REASON_LENGTH
        said = [
            pb.Generated(run=run, tokens=[answers.PARIS], text=f" {number}", finish_reason=ended) for run in (-1, 0)
        ]
        begun = answers.context()
        return pb.InterveneResponse(
            case_index=number, context=begun, readings=answers.readings(0, [[-1.0]]), generated=said
        )

    peer.steps = [case(0), case(1)]
    status, out, _ = run(capsys, "generate", "--cases", cases_file(tmp_path), "--tokens", "1")
    assert (status, out) == (0, "case 0:  0\ncase 1:  1\n")


def test_a_chat_is_what_the_user_says(peer: Any, answers: Any, capsys: Any) -> None:
    peer.steps = [pb.TraceResponse(context=answers.context())]
    assert run(capsys, "trace", "--chat", "How do I bake bread?", "--system", "Be brief.", "--read-at", "user")[0] == 0
    chat = peer.requests[0].prompt.chat
    assert [(message.role, message.content) for message in chat.messages] == [
        ("system", "Be brief."),
        ("user", "How do I bake bread?"),
    ]
    assert chat.add_generation_prompt
    assert peer.requests[0].named_position.span == "user"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("trace",), "expected a prompt, or --cases FILE"),
        (("trace", "a", "--cases", "x.jsonl"), "either a prompt or --cases"),
        (("trace", "a", "--reduce", "mean"), "expected --cases with it"),
        (("generate", "a", "--system", "b"), "expected --chat with it"),
        (("trace", "--cases", "x.jsonl", "--lens", "--plot", "a.png"), "expected --reduce mean with it"),
    ],
)
def test_what_is_run_is_one_thing(capsys: Any, arguments: tuple[str, ...], said: str) -> None:
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert said in err
