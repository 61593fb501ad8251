"""What the ready-made questions found: drawn, tabulated, saved and loaded; and tables of tokens and attention."""

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sonde
from sonde import questions
from sonde._answers.results import Cost, Provenance
from sonde._methods.trace import TraceAssembler, trace_request
from sonde._show.palette import MARKERS, SERIES
from sonde.v1 import inspection_pb2 as pb

from tests.support.same import assert_same

MADE = Provenance("atlas", "abc", "float32", "cpu", "sdpa", "0.1.0")
PARIS, ROME = sonde.Token(7, " Paris"), sonde.Token(8, " Rome")
PROMPT = tuple(sonde.Token(i, word) for i, word in enumerate(("The", " Eiffel", " Tower", " is")))


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def changed(axes: dict[str, tuple[Any, ...]], *targets: sonde.Token) -> sonde.InterventionResult:
    named = targets or (PARIS,)
    clean = sonde.Prediction(named, np.full(len(named), -0.5, np.float32), np.zeros(len(named), np.float32))
    shape = (*map(len, axes.values()), len(named))
    values = -np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return sonde.InterventionResult(
        PROMPT, named, 3, Cost(1, 2, 3, 4), MADE, False, clean,
        axes=axes | {"target": tuple(token.text for token in named)},
        log_probabilities=values, logits=values, kl_divergences=None, edit_norms=None,
        top_token_ids=np.zeros((*shape[:-1], 0), np.int64),
        top_log_probabilities=np.zeros((*shape[:-1], 0), np.float32),
        arrived=np.ones(shape[:-1], np.bool_), _texts={}, _activations=(), _continuations=(),
    )  # fmt: skip


def lens(depths: int = 3, positions: int = 4, text: str = " word") -> questions.LensTable:
    cells = tuple(
        tuple(sonde.TokenPrediction(i, f"{text}{depth}.{i}", -float(i)) for i in range(positions))
        for depth in range(depths)
    )
    tokens = tuple(sonde.Token(i, f" t{i}") for i in range(positions))
    return questions.LensTable(tokens, tuple(range(positions)), tuple(range(depths)), cells, MADE)


def everything() -> list[Any]:
    by_layer = changed({"layer": (0, 1, 2), "unit": (None,), "position": (0, 1, 2, 3)})
    by_run = changed({"run": (0, 1, 2)}, PARIS, ROME)
    scores = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 1, 4)
    axes = {name: labels for name, labels in by_layer.axes.items() if name != "target"}
    return [
        questions.LogitAttribution(("embedding", "mlp 0"), np.array([1.5, -0.5], np.float32), 0.25, 1.25),
        questions.AttentionKnockout((0, 1, 2), np.array([-3.0, -2.0, 0.5], np.float32), by_layer),
        questions.ActivationPatching(scores, axes, 3.0, -1.0, by_layer),
        questions.SteeringStrengths((2.0, -1.0, 0.0), by_run.effect, by_run),
        lens(),
    ]  # fmt: skip


@pytest.mark.parametrize("found", everything(), ids=lambda found: type(found).__name__)
def test_findings_are_saved_tabulated_and_drawn(found: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for ending in ("npz", "safetensors"):
        found.save(tmp_path / f"found.{ending}")
        assert_same(sonde.load(tmp_path / f"found.{ending}"), found, exactly=True)
    axes, array = found.labelled()
    assert tuple(map(len, axes.values())) == array.shape
    table = found.to_dataframe()
    assert len(table) == array.size
    number = next(name for name in table.columns[::-1] if table[name].dtype.kind == "f" and name != "deviation")
    column = "effect" if "effect" in table else number
    assert np.allclose(table[column].to_numpy(float), array.reshape(-1).astype(float), equal_nan=True)
    figure = found.plot(tmp_path / "found.png")
    assert (tmp_path / "found.png").stat().st_size > 1000
    assert figure.get_suptitle()
    assert found._repr_html_().count("<tr") > 1


def test_a_direction_is_drawn_by_its_strength() -> None:
    pytest.importorskip("matplotlib")
    found = next(one for one in everything() if isinstance(one, questions.SteeringStrengths))
    assert repr(found) == "SteeringStrengths(strengths 2, -1, 0; effects on ' Paris', ' Rome')"
    figure = found.plot()
    (axes,) = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Paris", "Rome"]
    paris, rome, _ = axes.lines
    assert np.array_equal(paris.get_xdata(), [-1.0, 0.0, 2.0]), "in ascending order"
    assert np.allclose(paris.get_ydata(), found.effects[[1, 2, 0], 0])
    assert np.allclose(rome.get_ydata(), found.effects[[1, 2, 0], 1])


def test_a_lens_table_has_each_token_in_its_cell() -> None:
    pytest.importorskip("matplotlib")
    table = lens()
    (axes, *_) = table.plot().axes
    texts = [text.get_text() for text in axes.texts]
    assert texts == [f"word{depth}.{i}" for depth in (2, 1, 0) for i in range(4)], "the last depth is on top"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["2", "1", "0"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["t0", "t1", "t2", "t3"]
    drawn = axes.collections[0].get_array()
    assert drawn is not None
    assert np.allclose(drawn, table.probabilities[::-1])
    assert axes.texts[0].get_color() == "white", "on a dark cell"
    assert axes.texts[3].get_color() != "white"


def test_a_large_lens_table_says_what_it_leaves_out() -> None:
    pytest.importorskip("matplotlib")
    figure = lens(depths=81, positions=50, text=" a very long token").plot()
    title = " ".join(figure.get_suptitle().split())
    assert "every 3 blocks" in title
    assert "the last 24 positions" in title
    assert max(len(text.get_text()) for text in figure.axes[0].texts) <= 12
    figure.draw_without_rendering()
    cell = figure.axes[0].transData.transform([(0, 0), (1, 1)])
    width = cell[1][0] - cell[0][0]
    assert max(text.get_window_extent().width for text in figure.axes[0].texts) < width


def test_no_text_of_a_lens_figure_lies_on_another(answers: Any) -> None:
    pytest.importorskip("matplotlib")
    figure = asked(sonde.TokenProbability(gradient_norms=True), [answers.lens(30)]).plot()
    figure.draw_without_rendering()
    boxes = sorted(
        (text.get_window_extent() for text in figure.axes[0].texts if text.get_text()), key=lambda box: float(box.y0)
    )
    assert len(boxes) == 32
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in itertools.pairwise(boxes))
    assert all(box.x1 < figure.axes[1].get_window_extent().x0 for box in boxes)


# ---------------------------------------------------------------------- methods


def asked(method: Any, messages: Any, **others: Any) -> Any:
    request = trace_request("x", method, **{"targets": None, "position": None, "top_k": 2, "dry_run": False} | others)
    assembler = TraceAssembler(request, method)
    for message in messages:
        assembler.feed(message)
    return assembler.result()


def read(answers: Any, *sites: tuple[sonde.Site, Any]) -> sonde.ActivationsResult:
    parts = [
        pb.ActivationSlice(run=-1, site=number, layer=layer, shape=values.shape, values=answers.tensor(values.ravel()))
        for number, (_, layers) in enumerate(sites)
        for layer, values in layers.items()
    ]
    message = pb.TraceResponse(context=answers.context(), activations=parts)
    result: sonde.ActivationsResult = asked(sonde.Activations(*(site for site, _ in sites)), [message])
    return result


def pattern(seed: int) -> Any:
    values = np.tril(np.random.RandomState(seed).rand(3, 8, 8))
    return values / values.sum(-1, keepdims=True)


def test_attention_goes_from_queries_to_keys(answers: Any) -> None:
    pytest.importorskip("matplotlib")
    values = {layer: pattern(layer) for layer in range(2)}
    result = read(answers, (sonde.residual(), {0: np.ones((8, 4))}), (sonde.site("attention_pattern"), values))
    figure = result.plot(layers=1, heads=[0, 2])
    first, second, bar = figure.axes
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["1.0", "1.2"]
    for axes, head in ((first, 0), (second, 2)):
        drawn = axes.collections[0].get_array()
        assert drawn is not None
        assert np.allclose(drawn, values[1][head], atol=1e-6), "queries go down, keys across"
    words = [word.strip() for word in answers.WORDS]
    assert [label.get_text() for label in first.get_yticklabels()] == words
    assert [label.get_text() for label in first.get_xticklabels()] == words
    assert first.collections[0].get_clim() == (0.0, 1.0)
    assert bar.get_title(loc="left") == "weight"
    figure = result.plot(layers=0, heads=1)
    assert figure.get_suptitle() == "Where attention goes in head 0.1"
    assert len(result.plot().axes) == 7
    with pytest.raises(ValueError, match="expected layers that were read, 0, 1; got 5"):
        result.plot(layers=5)


def test_many_heads_are_small_and_named_only(answers: Any) -> None:
    pytest.importorskip("matplotlib")
    site = sonde.site("attention_pattern", positions=[-1, 2])
    values = {layer: pattern(layer)[:, [7, 2]] for layer in range(4)}
    result = read(answers, (site, values))
    figure = result.plot()
    *panels, _ = figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == [f"{i}.{j}" for i in range(4) for j in range(3)]
    assert all(not axes.get_yticklabels() for axes in panels)
    labels = [label.get_text() for label in result.plot(layers=0, heads=0).axes[0].get_yticklabels()]
    assert labels == ["of", "Tower"], "queries are the positions of the site"


def test_other_activations_are_drawn_by_their_norm(answers: Any) -> None:
    pytest.importorskip("matplotlib")
    values = {layer: np.random.RandomState(layer).randn(8, 5) for layer in (1, 3)}
    whole = np.random.RandomState(9).randn(8, 5)
    result = read(answers, (sonde.residual(layer=[1, 3]), values), (sonde.site("final_norm"), {-1: whole}))
    (panel, _) = result.plot().axes
    drawn = panel.collections[0].get_array()
    assert drawn is not None
    assert np.allclose(drawn.T, [np.linalg.norm(values[layer], axis=-1) for layer in (1, 3)], atol=1e-5)
    assert [label.get_text() for label in panel.get_xticklabels()] == ["1", "3"]
    (panel, _) = result.plot(site="final_norm").axes
    drawn = panel.collections[0].get_array()
    assert drawn is not None
    assert np.allclose(drawn[:, 0], np.linalg.norm(whole, axis=-1), atol=1e-5)


def test_a_prediction_alone_is_drawn(answers: Any) -> None:
    pytest.importorskip("matplotlib")
    result = asked(None, [pb.TraceResponse(context=answers.context())])
    figure = result.plot()
    assert figure.get_suptitle() == "What comes next, after “of”"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["' Paris'", "' Rome'"]
    bare = replace(result, _clean=replace(result.prediction, top_tokens=()))
    assert [label.get_text() for label in bare.plot().axes[0].get_yticklabels()] == ["' Paris'"]


def test_the_lens_at_all_positions_is_one_request_and_a_table(answers: Any) -> None:
    pytest.importorskip("matplotlib")
    method = sonde.TokenProbability(positions="all")
    request = trace_request("x", method, targets=None, position=None, top_k=2, dry_run=False)
    assert list(request.token_probability.named_positions) == [pb.NamedPositions()]
    messages = []
    for position in range(3):
        message = answers.lens(4, gradients=False)
        message.layers.position = position
        if position:
            message.ClearField("context")
        messages.append(message)
    result = asked(method, messages)
    axes, array = result.labelled()
    assert (list(axes), array.shape) == (["position", "depth", "target"], (3, 5, 1))
    assert axes["position"] == (0, 1, 2)
    assert result.table.rows()[0] == ["4", " Paris", " Paris", " Paris"]
    frame = result.to_dataframe()
    assert list(frame.columns[:2]) == ["position", "depth"]
    assert np.allclose(frame["log_probability"], array.reshape(-1))
    assert [text.get_text() for text in result.plot().axes[0].texts] == ["Paris"] * 15
    assert result.table.request == result.request
    # As text and in a notebook it is this table, not the readings of the first position alone.
    assert str(result.table) in result.to_text()
    assert "after block" in result._repr_html_()
    assert result._repr_html_().count("Paris") >= 15


def test_errors_of_means_are_drawn(answers: Any) -> None:
    pytest.importorskip("matplotlib")
    mean = changed({"run": (0, 1, 2)})
    error = replace(mean, log_probabilities=np.full((3, 1), 0.25, np.float32))
    figure = mean.plot(error=error)
    (axes,) = figure.axes
    (segments,) = [one.get_segments() for one in axes.collections]  # type: ignore[attr-defined]
    ends = np.array(segments)[:, :, 0]
    assert np.allclose(ends, mean.log_probabilities + np.array([-0.25, 0.25]))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["unchanged"]
    lens = asked(sonde.TokenProbability(), [answers.lens(4, gradients=False)])
    spread = replace(lens, _probabilities=np.full((5, 1), 0.1, np.float32))
    (band,) = lens.plot(error=spread).axes[0].collections
    assert np.isclose(band.get_paths()[0].vertices[:, 0], lens.probabilities[2, 0] + 0.1).any()


def test_the_palette_has_a_marker_for_each_colour() -> None:
    assert len(set(SERIES)) == len(set(MARKERS)) == 7
