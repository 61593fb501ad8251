"""What people look at: figures, notebooks, terminals."""

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any, ClassVar

import numpy as np
import pytest
import sonde
from sonde._methods.interventions import InterveneAssembler, intervene_request
from sonde._methods.trace import TraceAssembler, trace_request
from sonde._show import terminal
from sonde.v1 import inspection_pb2 as pb


class Page(HTMLParser):
    """What a notebook gets of a result, parsed; it must be well formed and complete in itself."""

    EMPTY: ClassVar = {"input", "br", "meta"}

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        source = result._repr_html_()
        assert "<script" not in source
        assert not re.search(r"(src|href|@import|url\()", source), "nothing comes from elsewhere"
        self.feed(source)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    def all(self, tag: str, kind: str | None = None) -> list[dict[str, str | None]]:
        found = [attributes for name, attributes in self.elements if name == tag]
        return [one for one in found if kind is None or kind in (one.get("class") or "").split()]


@pytest.fixture
def grids(answers: Any) -> Any:
    return traced(sonde.CausalTracing(subject="The Eiffel Tower"), answers.causal(12))


@pytest.fixture
def layers(answers: Any) -> Any:
    return traced(sonde.TokenProbability(gradient_norms=True), [answers.lens(4)])


def traced(method: Any, messages: Any) -> Any:
    request = trace_request("x", method, targets=None, position=None, top_k=2, dry_run=False)
    assembler = TraceAssembler(request, method)
    for message in messages:
        assembler.feed(message)
    return assembler.result()


def swept(answers: Any, plan: Any, axes: Any, runs: int) -> sonde.InterventionResult:
    request = intervene_request(
        "x",
        plan,
        targets=None,
        sources=(),
        position=None,
        top_k=0,
        kl_divergence=False,
        activations=(),
        generation=None,
        dry_run=False,
    )
    assembler = InterveneAssembler(request, ())
    values = np.linspace(-3, 0, runs)[:, np.newaxis]
    assembler.feed(pb.InterveneResponse(context=answers.context(axes=axes), readings=answers.readings(0, values)))
    return assembler.result()


def test_a_causal_trace_has_a_panel_per_component(grids: Any, tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    for ending in ("png", "svg", "pdf"):
        figure = grids.plot(tmp_path / f"trace.{ending}")
        assert (tmp_path / f"trace.{ending}").stat().st_size > 1000
    panels = [axes for axes in figure.axes if axes.get_xlabel()]
    assert len(panels) == 3
    assert [label.get_text() for label in panels[0].get_yticklabels()][:4] == ["The*", "Eiffel*", "Tower*", "is"]
    meshes = [axes.collections[0] for axes in panels]
    assert len({mesh.get_cmap().name for mesh in meshes}) == 3
    assert len({mesh.get_clim() for mesh in meshes}) == 1
    assert np.allclose(meshes[1].get_array(), grids.restored["mlp_out"][..., 0])
    assert panels[1].get_xlabel() == "centre of 10 restored layers"
    title = " ".join(figure.get_suptitle().split())
    assert title.endswith("0.900 clean, 0.030 corrupted (* corrupted tokens)")


@pytest.mark.parametrize("only", ["residual_post", "mlp_out"])
def test_the_title_of_a_single_panel_is_no_wider_than_the_figure(grids: Any, only: Any) -> None:
    pytest.importorskip("matplotlib")
    restored = {only: grids.restored[only]}
    figure = replace(grids, restored=restored).plot()
    figure.draw_without_rendering()
    (title,) = figure.texts
    bounds = title.get_window_extent()
    assert bounds.x1 <= figure.bbox.x1
    panel = figure.axes[0].get_tightbbox()
    assert panel is not None
    assert bounds.y0 >= panel.y1


@pytest.mark.parametrize(
    ("plan", "axes", "runs"),
    [
        ([sonde.scale(sonde.neuron(layer=1, unit=1), 0.0)] * 3, None, 3),
        (sonde.sweep(sonde.scale(sonde.neuron(), 0.0)), ([3], range(100), [7]), 100),
        (sonde.sweep(sonde.scale(sonde.head(), 0.0)), (range(4), range(5), [7]), 20),
        (sonde.sweep(sonde.scale(sonde.residual(), 0.0)), (range(4), [], range(8)), 32),
        (sonde.sweep(sonde.scale(sonde.head(), 0.0)), ([1], range(5), range(8)), 40),
        (sonde.sweep(sonde.scale(sonde.head(), 0.0)), (range(2), range(3), range(8)), 48),
    ],
)
def test_interventions_are_drawn_whatever_their_axes(answers: Any, plan: Any, axes: Any, runs: int) -> None:
    pytest.importorskip("matplotlib")
    named = None if axes is None else pb.Axes(layers=axes[0], units=axes[1], positions=axes[2])
    result = swept(answers, plan, named, runs)
    page = Page(result)
    assert len(page.all("tr")) > 1
    figure = result.plot()
    assert "nats" in figure.get_suptitle() + figure.axes[0].get_title(loc="left")


def test_heat_maps_put_every_run_in_its_cell(answers: Any) -> None:
    pytest.importorskip("matplotlib")
    axes = pb.Axes(layers=range(4), positions=range(8))
    result = swept(answers, sonde.sweep(sonde.scale(sonde.residual(), 0.0)), axes, 32)
    (panel, *_) = result.plot().axes
    drawn = panel.collections[0].get_array()
    assert drawn is not None
    assert drawn.shape == (8, 4), "positions go down, layers across"
    assert np.allclose(drawn, result.effect[:, 0, :, 0].T)


@pytest.mark.parametrize(
    ("place", "word"),
    [(sonde.head(), "head"), (sonde.neuron(), "neuron"), (sonde.site("attention_scores"), "head")],
)
def test_the_units_of_a_sweep_have_their_own_name(answers: Any, place: Any, word: str) -> None:
    pytest.importorskip("matplotlib")
    plan = sonde.sweep(sonde.scale(place, 0.0))
    result = swept(answers, plan, pb.Axes(layers=range(4), units=range(5), positions=[7]), 20)
    assert result.plot().axes[0].get_xlabel() == word
    assert word in Page(result).texts["text"]
    bars = swept(answers, plan, pb.Axes(layers=[3], units=range(5), positions=[7]), 5).plot()
    assert [label.get_text() for label in bars.axes[0].get_yticklabels()] == [f"{word} {unit}" for unit in range(5)]


def test_lens_and_attributions_are_drawn(layers: Any, answers: Any) -> None:
    pytest.importorskip("matplotlib")
    figure = layers.plot()
    curve = figure.axes[0]
    (line,) = curve.lines
    assert "“Paris”" in figure.get_suptitle()
    assert curve.get_xlabel() == "p(Paris)"
    assert np.allclose(line.get_xdata(), layers.probabilities[:, 0])
    assert line.get_ydata() is not None
    assert list(line.get_ydata()) == list(layers.depths), "depth goes up"
    assert [text.get_text() for text in curve.texts] == ["top token", *["Paris"] * 5]
    assert {text.get_rotation() for text in curve.texts} == {0.0}
    part = pb.Attributions(
        component=pb.COMPONENT_HEAD_OUT,
        layers=[0, 1],
        positions=range(8),
        estimates=answers.tensor(np.ones((2, 8, 3, 1))),
    )
    message = pb.TraceResponse(context=answers.context(), attributions=[part])
    result = traced(sonde.AttributionPatching("other", "head_out"), [message])
    figure = result.plot()
    panel, bar = figure.axes
    drawn = panel.collections[0].get_array()
    assert drawn is not None
    assert np.allclose(drawn, 3.0)
    assert " ".join(figure.get_suptitle().split()) == "Estimated effect of patching each place on “Paris”"
    assert (panel.get_title(loc="left"), bar.get_title(loc="left")) == ("attention head outputs", "estimate")


def test_edges_alone_are_drawn_as_bars(answers: Any) -> None:
    pytest.importorskip("matplotlib")
    part = pb.EdgeAttributions(
        senders=answers.tensor(np.array([[pb.COMPONENT_MLP_OUT, 1, 0]] * 2), "int32"),
        receivers=answers.tensor(np.array([[pb.COMPONENT_KEY, 3, 1]] * 2), "int32"),
        estimates=answers.tensor(np.array([[-2.0], [1.0]])),
    )
    message = pb.TraceResponse(context=answers.context(), edges=[part])
    result = traced(sonde.AttributionPatching("other", edges="all"), [message])
    assert [bar.get_width() for bar in result.plot().axes[0].patches] == [-2.0, 1.0]
    assert "mlp out 1" in result._repr_html_()


def test_errors_are_as_long_as_they_are_told() -> None:
    pytest.importorskip("matplotlib")
    from sonde._show import plotting

    values, errors = np.array([0.3, -0.2, np.nan], np.float32), np.array([0.1, np.nan, 0.1], np.float32)
    (bars,) = plotting.bars("t", ["a", "b", "c"], values, errors=errors, across="nats").axes
    assert bars.get_xlabel() == "nats"
    assert [label.get_text() for label in bars.get_yticklabels()] == ["a", "b", "c"]
    (segments,) = [one.get_segments() for one in bars.collections]  # type: ignore[attr-defined]
    assert np.allclose(segments, [[[0.2, 0], [0.4, 0]]]), "what is not known has no error"
    series = {" Paris": values, " Rome": -values}
    figure = plotting.lines("t", [1.0, 2.0, 4.0], series, errors={" Paris": errors}, across="strength", down="effect")
    (axes,) = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Paris", "Rome"]
    assert len({line.get_color() for line in axes.lines}) == len({line.get_marker() for line in axes.lines}) == 2
    (band,) = axes.collections
    edges = band.get_paths()[0].vertices
    assert np.isclose(edges[:, 1], 0.2).any()
    assert np.isclose(edges[:, 1], 0.4).any()


def test_without_matplotlib_a_plot_says_what_to_install(grids: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert Page(grids).all("svg")
    with pytest.raises(ImportError, match=r"sonde\[plot\]"):
        grids.plot()


def test_without_pandas_a_data_frame_says_what_to_install(layers: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        layers.to_dataframe()


def test_a_heat_map_has_a_cell_with_its_number_for_every_state(grids: Any) -> None:
    page = Page(grids)
    pictures = page.all("svg")
    assert [picture["role"] for picture in pictures] == ["img"] * 3
    assert len(page.texts["desc"]) == 3
    assert "8 rows by 12 columns" in page.texts["desc"][0]
    said = page.texts["title"]
    for name in grids.restored:
        for row, label in enumerate(grids.row_labels(name)):
            for layer in range(12):
                number = f"{grids.restored[name][row, layer, 0]:.3g}"
                assert any(
                    s.startswith(label.strip())
                    and s.endswith(f"layer{'s' if name != 'residual_post' else ''} {layer}: {number}")
                    for s in said
                )


def test_tokens_are_coloured_by_the_effect(answers: Any) -> None:
    axes = pb.Axes(layers=[1], positions=range(8))
    result = swept(answers, sonde.sweep(sonde.scale(sonde.residual(), 0.0)), axes, 8)
    spans = [span for span in Page(result).all("span") if "position" in (span.get("title") or "")]
    shares = [float((span["style"] or "").removeprefix("--s:")) for span in spans]
    effects = np.abs(result.effect.reshape(-1))
    assert shares == [round(float(100 * effect / effects.max())) for effect in effects]
    assert [(span["class"] or "").split()[0] for span in spans] == [
        "u" if e >= 0 else "d" for e in result.effect.reshape(-1)
    ]
    assert "read" in (spans[7]["class"] or "")


def test_a_table_is_sorted_by_the_column_that_is_chosen() -> None:
    from sonde._show.display import page, sortable_table

    class Table:
        def _repr_html_(self) -> str:
            return page(sortable_table("t", ["name", "size"], [["b", 2.0], ["a", float("nan")], ["c", 10]]))

    found = Page(Table())
    rows = [
        dict(rule.split(":") for rule in (row["style"] or "").split(";")) for row in found.all("tr") if row.get("style")
    ]
    assert [row["--k0"] for row in rows] == ["1", "0", "2"]
    assert [row["--k1"] for row in rows] == ["1", "2", "0"]
    assert [choice["aria-label"] for choice in found.all("input")] == ["sort by name", "sort by size"]


def test_what_has_not_arrived_is_not_shown_as_zero(answers: Any) -> None:
    request = trace_request("x", sonde.CausalTracing(subject="x"), targets=None, position=None, top_k=2, dry_run=False)
    assembler = TraceAssembler(request, sonde.CausalTracing(subject="x"))
    for message in answers.causal(4)[:2]:
        assembler.feed(message)
    page = Page(assembler.partial())
    assert len(page.all("rect", "none")) == sum((~a).sum() for a in assembler.partial().arrived.values())  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [(400, 3), (2, 700), (90, 130)])
def test_a_large_grid_shows_the_strongest_of_neighbours(shape: tuple[int, int]) -> None:
    from sonde._show.display import MOST_CELLS, _pooled

    values = np.random.RandomState(0).randn(*shape).astype(np.float32)
    values[0, 0] = np.nan
    pooled, rows, columns, said = _pooled(values, list(map(str, range(shape[0]))), list(map(str, range(shape[1]))))
    assert pooled.shape == (len(rows), len(columns))
    assert pooled.shape[0] <= MOST_CELLS[0]
    assert pooled.shape[1] <= MOST_CELLS[1]
    assert "strongest" in said
    for i, row in enumerate(rows):
        down = int(rows[1]) - int(rows[0]) if len(rows) > 1 else shape[0]
        over = int(columns[1]) - int(columns[0])
        for j, column in enumerate(columns):
            block = values[int(row) : int(row) + down, int(column) : int(column) + over]
            assert np.abs(pooled[i, j]) == np.nanmax(np.abs(block))


def test_a_prediction_alone_has_its_targets_in_a_notebook(answers: Any) -> None:
    message = pb.TraceResponse(context=answers.context(pb.Token(id=9, text=" Seattle")))
    message.context.clean.logits[:] = [-3.5]
    page = Page(traced(None, [message]))
    assert "' Seattle'" in page.texts["td"]
    assert "-3.5" in page.texts["td"]


def test_tokens_are_escaped_in_html(answers: Any) -> None:
    message = pb.TraceResponse(context=answers.context())
    message.context.clean.top_tokens[0].text = "<script>"
    page = traced(None, [message])._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_plain_heat_maps_are_numbers(grids: Any) -> None:
    text = grids.heatmap_text(colours="none")
    assert "\x1b" not in text
    row = next(line for line in text.splitlines() if "Tower*" in line)
    assert [float(n) for n in row.split()[1:]] == pytest.approx(grids.restored["residual_post"][2, :, 0], abs=0.006)


@pytest.mark.parametrize(("colours", "code"), [("256", r"\x1b\[48;5;(\d+)m"), ("truecolor", r"\x1b\[48;2;([\d;]+)m")])
def test_coloured_heat_maps_have_a_cell_per_number(colours: Any, code: str) -> None:
    values = np.array([[0.0, 1.0], [np.nan, 0.5]], np.float32)
    text = terminal.heatmap(values, ["a", "b"], ["0", "1"], low=0.0, high=1.0, colours=colours)
    _, first, second, _ = text.splitlines()
    cells = re.findall(code, first)
    assert len(cells) == 2
    assert cells[0] != cells[1]
    assert len(re.findall(code, second)) == 1
    assert first.endswith("\x1b[0m")
    if colours == "256":
        assert cells[0] == "231", "the lightest colour is white"


def test_colours_are_for_terminals(monkeypatch: Any) -> None:
    class Terminal:
        def __init__(self, *, tty: bool) -> None:
            self.isatty = lambda: tty

    for name in ("NO_COLOR", "TERM", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    assert terminal.colours_of(Terminal(tty=False)) == "none"  # type: ignore[arg-type]
    assert terminal.colours_of(Terminal(tty=True)) == "256"  # type: ignore[arg-type]
    monkeypatch.setenv("COLORTERM", "truecolor")
    assert terminal.colours_of(Terminal(tty=True)) == "truecolor"  # type: ignore[arg-type]
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.colours_of(Terminal(tty=True)) == "none"  # type: ignore[arg-type]


def test_line_breaks_in_tokens_do_not_break_tables() -> None:
    assert sonde._arrays.visible("\n\t é") == "\\n\\t é"
    table = terminal.table(["a", "b"], [["x", 1.0], ["yy", 12.5]])
    assert table.splitlines()[2:] == ["x      1", "yy  12.5"]
