"""What people write for arrays, numbers, indices, targets and lists: it is taken as it is plainly meant, or refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sonde
from sonde import _signatures, questions
from sonde._ask.cases import as_cases
from sonde._wire.tensors import from_tensor
from sonde.v1 import inspection_pb2 as pb

torch = pytest.importorskip("torch")
pd = pytest.importorskip("pandas")

PLACE = sonde.residual(layer=1)
ODD = [0.1, -2.7182817, 3.0e38]
"""Numbers whose upper halves, as bfloat16, are known by cutting them off."""


def request(plan: Any = None, **options: Any) -> pb.InterveneRequest:
    asked = _signatures.intervene("a", sonde.scale(PLACE, 0.0) if plan is None else plan, **options).asking.request(
        None
    )
    assert isinstance(asked, pb.InterveneRequest)
    return asked


def traced(prompt: Any = "a", **options: Any) -> pb.TraceRequest:
    asked = _signatures.trace(prompt, **options).asking.request(None)
    assert isinstance(asked, pb.TraceRequest)
    return asked


def added(values: Any) -> Any:
    """What a server is sent to add."""
    return from_tensor(request(sonde.add(PLACE, values)).list.interventions[0].edits[0].add)


ARRAYS: dict[str, tuple[Any, list[Any] | float]] = {
    "no axes": (np.array(2.5), 2.5),
    "a tensor without axes": (torch.tensor(2.5), 2.5),
    "a gradient": (torch.tensor([1.5, 2.5], requires_grad=True), [1.5, 2.5]),
    "part of a graph": (torch.tensor([1.5, 2.5], requires_grad=True) * 2, [3.0, 5.0]),
    "a parameter": (torch.nn.Parameter(torch.ones(2)), [1.0, 1.0]),
    "several with gradients": ([torch.ones(2, requires_grad=True), torch.zeros(2)], [[1.0, 1.0], [0.0, 0.0]]),
    "numbers with gradients": ([torch.tensor(1.0, requires_grad=True), 2.0], [1.0, 2.0]),
    "integers": (torch.arange(3), [0.0, 1.0, 2.0]),
    "a view": (torch.arange(4.0).reshape(2, 2).T, [[0.0, 2.0], [1.0, 3.0]]),
    "eight bits": (torch.tensor([0.5, -1.75]).to(torch.float8_e4m3fn), [0.5, -1.75]),
    "a column": (pd.Series([1.5, 2.5]), [1.5, 2.5]),
    "a column of pandas's own integers": (pd.Series([1, 2], dtype="Int64"), [1.0, 2.0]),
    "a table": (pd.DataFrame({"a": [1, 2], "b": [3, 4]}), [[1.0, 3.0], [2.0, 4.0]]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_every_kind_are_sent(name: str) -> None:
    given, expected = ARRAYS[name]
    assert added(given).tolist() == expected
    assert from_tensor(traced(method=sonde.CausalTracing("a", noise=given)).causal_tracing.noise).tolist() == expected
    steered = request(questions.steer(given, layer=1, coefficient=2)).list.interventions[0].edits[0].add
    assert np.array_equal(from_tensor(steered), 2 * np.array(expected))


def test_masked_entries_are_refused() -> None:
    """They would be sent as whatever lies under the mask."""
    assert added(np.ma.array([1.5, 2.5])).tolist() == [1.5, 2.5]
    with pytest.raises(sonde.InvalidRequest, match="got masked entries"):
        added(np.ma.array([1.5, 2.5], mask=[True, False]))


def test_bfloat16_of_torch_is_sent_exactly() -> None:
    given = torch.tensor(ODD, dtype=torch.bfloat16).requires_grad_()
    bits = given.detach().view(torch.int16).numpy().astype(np.uint16)
    sent = added(given)
    assert sent.dtype == np.float32
    # A bfloat16 is the upper half of a float32.
    assert np.array_equal(sent.view(np.uint32), bits.astype(np.uint32) << 16)
    assert np.array_equal(added([given, given]), [sent, sent])


def test_bfloat16_of_ml_dtypes_is_sent_exactly() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    given = np.array(ODD, np.float32).astype(bfloat16)
    assert np.array_equal(added(given), given.astype(np.float32))
    assert request(sonde.scale(PLACE, given[0])).list.interventions[0].edits[0].scale == np.float32(given[0])


NUMBERS = [
    0.5,
    np.float16(0.5),
    np.float64(0.5),
    np.array(0.5),
    torch.tensor(0.5),
    torch.tensor(0.5, requires_grad=True),
    torch.tensor(0.5, dtype=torch.bfloat16),
]


@pytest.mark.parametrize("given", NUMBERS, ids=repr)
def test_numbers_of_every_kind_are_sent(given: Any) -> None:
    edits = request([sonde.scale(PLACE, given), sonde.noise(PLACE, given)]).list.interventions
    assert (edits[0].edits[0].scale, edits[1].edits[0].noise.standard_deviation) == (0.5, 0.5)
    asked = request(generation=sonde.Generation(3, temperature=given))
    assert asked.readout.generation.temperature == 0.5
    assert traced(method=sonde.CausalTracing("a", deviations=given)).causal_tracing.gaussian.deviations == 0.5
    short = _signatures.intervene_on_neuron([1], 0, 0, given).asking.request(None)
    assert isinstance(short, pb.InterveneRequest)
    assert short.list.interventions[0].edits[0].scale == 0.5


INDICES: dict[str, tuple[Any, list[int]]] = {
    "numpy": (np.int32(3), [3]),
    "no axes": (np.array(3), [3]),
    "a tensor without axes": (torch.tensor(3), [3]),
    "an array": (np.array([3, -1]), [3, -1]),
    "a tensor": (torch.tensor([3, -1]), [3, -1]),
    "a column": (pd.Series([3, -1]), [3, -1]),
    "a generator": ((number for number in (3, -1)), [3, -1]),
    "a range": (range(2), [0, 1]),
}


@pytest.mark.parametrize("name", [name for name in INDICES if name != "a generator"])
def test_indices_of_every_kind_are_sent(name: str) -> None:
    given, expected = INDICES[name]
    site = sonde.site("head_out", layers=given, units=given, positions=given)
    assert [list(site.layers), list(site.units), list(site.positions)] == [expected] * 3
    assert list(traced(method=sonde.CausalTracing(given)).causal_tracing.subject_positions.positions) == expected
    patched = request(sonde.patch(PLACE, given, source_positions=given)).list.interventions[0].edits[0].patch
    assert [list(patched.sources), list(patched.source_positions)] == [expected] * 2
    if len(expected) == 1:
        asked = traced(position=given, top_k=given, method=sonde.AttributionPatching("b", edges=given))
        assert (asked.position, asked.top_k, asked.attribution_patching.edges.top) == (3, 3, 3)


def test_a_generator_of_indices_is_read_once() -> None:
    given, expected = INDICES["a generator"]
    assert list(sonde.neuron(layer=given).layers) == expected


TARGETS: dict[str, tuple[Any, list[pb.Target]]] = {
    "texts of numpy": (np.array([" P", " Q"]), [pb.Target(text=" P"), pb.Target(text=" Q")]),
    "a text of numpy": (np.array(" P"), [pb.Target(text=" P")]),
    "ids of numpy": (np.array([7, 8]), [pb.Target(id=7), pb.Target(id=8)]),
    "an id without axes": (np.array(7), [pb.Target(id=7)]),
    "a tensor": (torch.tensor([7, 8]), [pb.Target(id=7), pb.Target(id=8)]),
    "a tensor without axes": (torch.tensor(7), [pb.Target(id=7)]),
    "a column of texts": (pd.Series([" P", " Q"]), [pb.Target(text=" P"), pb.Target(text=" Q")]),
    "a column of ids": (pd.Series([7, 8]), [pb.Target(id=7), pb.Target(id=8)]),
    "numbers in a target": (sonde.Target(np.array(7), torch.tensor(8)), [pb.Target(id=7, contrast_id=8)]),  # type: ignore[arg-type]
    "a pair without a contrast": ([(" P", None)], [pb.Target(text=" P")]),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_of_every_kind_are_sent(name: str) -> None:
    given, expected = TARGETS[name]
    assert list(traced(targets=given).targets) == expected
    assert list(request(targets=given).readout.targets) == expected


def test_a_generator_of_targets_is_read_once() -> None:
    assert list(traced(targets=(text for text in (" P", 7))).targets) == [pb.Target(text=" P"), pb.Target(id=7)]


@pytest.mark.parametrize(
    "ids", [torch.tensor([1, 2]), torch.tensor([[1, 2]]), pd.Series([1, 2], dtype="Int64"), range(1, 3)], ids=repr
)
def test_prompts_of_every_kind_are_sent(ids: Any) -> None:
    expected = pb.Prompt(token_ids=pb.TokenIds(ids=[1, 2]))
    assert traced(ids).prompt == expected
    assert traced(sonde.Prompt(ids)).prompt == expected
    assert list(request(sources=[ids]).sources) == [expected]
    assert traced(method=sonde.CausalTracing(counterfactual=ids)).causal_tracing.counterfactual == expected


def test_lists_may_be_generators_and_a_site_may_be_alone(peer: Any, answers: Any) -> None:
    edit = sonde.scale(PLACE, 0.0)
    expected = request([edit, [edit, edit]], sources=["b"])
    assert request((one for one in (edit, [edit, edit])), sources=(text for text in ["b"])) == expected
    assert request([(one for one in [edit, edit])]) == request([[edit, edit]])
    assert request(activations=PLACE) == request(activations=[PLACE])
    assert request(activations=(one for one in [PLACE])) == request(activations=[PLACE])
    # What joins the answer knows of them too.
    peer.steps = [pb.InterveneResponse(context=answers.context(), readings=answers.readings(0, [[-1.0]]))]
    with sonde.Client(peer.address) as client, pytest.raises(sonde.ProtocolError, match="activations of run"):
        client.intervene("a", edit, activations=(one for one in [PLACE]))


def test_images_are_bytes_of_any_kind() -> None:
    for image in (b"png", bytearray(b"png"), memoryview(b"png")):
        assert traced(sonde.Prompt("a", image=image)).prompt.image == b"png"  # type: ignore[arg-type]


# ---------------------------------------------------------------------- refusals

OBJECTS: list[Any] = [
    None,
    1.5,
    "words",
    b"bytes",
    Path("/a/file"),
    {"a": 1},
    [None],
    object(),
    np.array([1.5, 2.5]),
    np.array([[1, 2], [3, 4]]),
    np.array(None),
    torch.ones(2, 2),
    torch.ones(2, device="meta"),
    torch.ones(2, dtype=torch.complex64).conj(),
    torch.eye(2).to_sparse(),
    pd.Series(["a", "b"]),
    [[1], [1, 2]],
]

ARGUMENTS: dict[str, tuple[Any, str]] = {
    "prompt": (traced, "prompt"),
    "targets": (lambda given: traced(targets=[given]), "targets"),
    "position": (lambda given: traced(position=[given]), "position"),
    "top_k": (lambda given: traced(top_k=given), "top_k"),
    "dry_run": (lambda given: traced(dry_run=given), "dry_run"),
    "method": (lambda given: traced(method=[given]), "method"),
    "gradient_norms": (lambda given: traced(method=sonde.TokenProbability(given)), "gradient_norms"),
    "replace": (lambda given: traced(method=sonde.CausalTracing("a", replace=given)), "replace"),
    "per_sample": (lambda given: traced(method=sonde.CausalTracing("a", per_sample=given)), "per_sample"),
    "samples": (lambda given: traced(method=sonde.CausalTracing("a", samples=[given])), "samples"),
    "deviations": (lambda given: traced(method=sonde.CausalTracing("a", deviations=[given])), "deviations"),
    "edges": (lambda given: sonde.AttributionPatching("a", edges=[given]), "edges"),
    "drop_layers": (lambda given: traced(method=sonde.AttributionPatching("a", drop_layers=given)), "drop_layers"),
    "interventions": (lambda given: request([given]), "edit"),
    "sources": (lambda given: sonde.patch(PLACE, [[given]]), "sources"),
    "site": (lambda given: request(sonde.scale(given, 0.0)), "site"),
    "scale": (lambda given: request(sonde.scale(PLACE, given)), "scale"),
    "noise": (lambda given: request(sonde.noise(PLACE, given)), "noise"),
    "seed": (lambda given: request(sonde.noise(PLACE, 1.0, seed=[given])), "seed"),
    "generation": (lambda given: request(generation=[given]), "generation"),
    "max_new_tokens": (lambda given: request(generation=sonde.Generation(given)), "max_new_tokens"),
    "kl_divergence": (lambda given: request(kl_divergence=given), "kl_divergence"),
    "activations": (lambda given: request(activations=[given]), "site"),
    "layers": (lambda given: sonde.neuron(layer=[given]), "layers"),
    "component": (sonde.site, "component"),
    "components": (lambda given: sonde.CausalTracing("a", components=[given]), "components"),
    "metric": (lambda given: sonde.TokenProbability(metric=[given]), "metric"),  # type: ignore[arg-type]
    "sweep": (sonde.sweep, "sweep"),
    "together": (lambda given: sonde.sweep(sonde.scale(PLACE, 0.0), together=[given]), "together"),
    "always": (lambda given: request(sonde.sweep(sonde.scale(PLACE, 0.0), always=[given])), "edit"),
    "image": (lambda given: traced(sonde.Prompt("a", image=[given])), "image"),
    "vector": (lambda given: questions.steer([given, {}], layer=1), "vector"),
    "coefficient": (lambda given: questions.steer([1.0], layer=1, coefficient=given), "coefficient"),
    "directional ablation": (lambda given: questions.directional_ablation([1.0], given), "layers"),
}
"""A call with an argument that is never right, and the field that the refusal names."""
RIGHT: dict[str, Any] = {"prompt": "words", "targets": "words", "scale": 1.5, "noise": 1.5, "coefficient": 1.5}
"""Of the objects, what these arguments do take."""


@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_is_not_meant_is_refused_by_the_name_of_its_argument(name: str) -> None:
    ask, field = ARGUMENTS[name]
    for given in OBJECTS:
        if isinstance(given, str | float) and given == RIGHT.get(name):
            assert ask(given)
            continue
        if name == "prompt" and (several := as_cases(given)) is not None:
            assert len(ask(given).cases) == len(several) == 2
            continue
        with pytest.raises(sonde.InvalidRequest, match=r"expected .*, got ") as caught:
            ask(given)
        assert [violation.field for violation in caught.value.violations] == [field], given
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("ask", "field"),
    [
        (lambda given: traced(targets=given), "targets"),
        (lambda given: request(given, sources=()), "interventions"),
        (lambda given: request(sources=given), "sources"),
        (lambda given: request(activations=given), "activations"),
        (lambda given: sonde.sweep(sonde.scale(PLACE, 0.0), together=given), "together"),
        (lambda given: sonde.sweep(sonde.scale(PLACE, 0.0), always=given), "always"),
        (lambda given: sonde.CausalTracing("a", components=given), "components"),
        (lambda given: questions.steering_vector(None, given), "pairs"),  # type: ignore[arg-type]
        (lambda given: questions.mean_activation(None, given, PLACE), "prompts"),  # type: ignore[arg-type]
    ],
)
def test_what_has_no_entries_is_no_list(ask: Any, field: str) -> None:
    for given in (1.5, object(), Path("/a/file"), b"bytes", {"a": 1}, np.array(1.5)):
        with pytest.raises(sonde.InvalidRequest, match=r"expected .*, got ") as caught:
            ask(given)
        # A mapping of interventions names its runs: what is wrong is what it names.
        wrong = "edit" if field == "interventions" and isinstance(given, dict) else field
        assert [violation.field for violation in caught.value.violations] == [wrong], given


@pytest.mark.parametrize("pairs", ["ab", ["ab"], [("a",)], [("a", "b", "c")], []])
def test_pairs_of_prompts_are_pairs(pairs: Any) -> None:
    with pytest.raises(sonde.InvalidRequest, match="pairs: expected at least one pair"):
        questions.steering_vector(None, pairs)  # type: ignore[arg-type]


def test_a_text_is_no_list_of_prompts() -> None:
    with pytest.raises(sonde.InvalidRequest, match="prompts: expected a list of prompts, got 'The Eiffel Tower'"):
        questions.mean_activation(None, "The Eiffel Tower", PLACE)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [True, False, np.True_])
def test_true_is_no_number(given: Any) -> None:
    for ask in (
        lambda: request(sonde.scale(PLACE, given)),
        lambda: sonde.neuron(layer=given),
        lambda: traced(top_k=given),
        lambda: traced(targets=given),
    ):
        with pytest.raises(sonde.InvalidRequest, match=f"got {given!r}"):
            ask()


@pytest.mark.parametrize("given", [None, 1.5, b"host", Path("/a/file"), [b"host"], {"a": 1}, np.array("host")])
def test_an_address_is_text(given: Any) -> None:
    for client in (sonde.Client, sonde.AsyncClient):
        with pytest.raises(sonde.InvalidSettings, match=r"^address: expected host:port"):
            client(given)


@pytest.mark.parametrize("given", [b"secret", Path("secret"), ["secret"], 1])
def test_a_token_is_text_and_no_error_shows_it(given: Any) -> None:
    with pytest.raises(sonde.InvalidSettings, match="token: expected text") as caught:
        sonde.Client(token=given)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("given", ["false", "/a/file", Path("/a/file"), 1, {}])
def test_tls_is_yes_no_or_how(given: Any) -> None:
    with pytest.raises(sonde.InvalidSettings, match=r"tls: expected True, False or sonde\.TLS"):
        sonde.Client(tls=given)


def test_certificates_are_bytes_or_paths(tmp_path: Path) -> None:
    for name in ("root_certificate", "server_name"):
        for given in (1, ["a"], object()):
            with pytest.raises(sonde.InvalidSettings, match=rf"tls\.{name}: expected"):
                sonde.TLS(**{name: given})
    with pytest.raises(sonde.InvalidSettings, match="cannot read"):
        sonde.Client(tls=sonde.TLS(tmp_path / "none.pem"))
