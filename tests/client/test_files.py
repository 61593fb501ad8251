"""Results that are saved, loaded, pickled, turned into arrays and into data frames."""

import pickle
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import sonde
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sonde import storage
from sonde._answers import files
from sonde._answers.captured import Captured
from sonde._answers.edges import Edges
from sonde._answers.predictions import Continuation
from sonde._answers.results import Cost, Provenance, Result
from sonde._ask import names
from sonde._methods.attribution_patching import VerifiedEffect

from tests.support.same import assert_same

SIZES = st.integers(0, 3)
SMALL = st.integers(0, 2**31 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
NUMBERS = st.floats(width=32)
LOGARITHMS = st.floats(-1e6, 0, width=32) | st.just(np.nan)
TOKENS = st.builds(sonde.Token, SMALL, TEXTS)
LABELS = st.none() | st.integers(-5, 99) | TEXTS
COMPONENTS = st.sampled_from(get_args(names.ComponentName))


def floats(*shape: int) -> st.SearchStrategy[Any]:
    return hnp.arrays(np.float32, shape, elements=LOGARITHMS)


def integers(*shape: int) -> st.SearchStrategy[Any]:
    return hnp.arrays(np.int64, shape, elements=st.integers(-1, 2**40))


@st.composite
def axes(draw: st.DrawFn, **sizes: int) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(draw(st.lists(LABELS, min_size=size, max_size=size))) for name, size in sizes.items()}


@st.composite
def captured(draw: st.DrawFn) -> Captured:
    count = draw(st.integers(0, 2))
    places = [sonde.Site(draw(COMPONENTS), (1,), (), (-1,)) for _ in range(count)]
    arrays = []
    for _ in places:
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
        dtype = draw(st.sampled_from([np.float32, np.float16]))
        values = draw(hnp.arrays(dtype, shape, elements=st.floats(width=16)))
        arrays.append((draw(axes(**{f"axis_{i}": size for i, size in enumerate(shape)})), values))
    return Captured(places, arrays)


@st.composite
def common(draw: st.DrawFn, targets: int) -> dict[str, Any]:
    ranked = st.builds(sonde.TokenPrediction, SMALL, TEXTS, LOGARITHMS)
    named = tuple(draw(st.lists(TOKENS, min_size=targets, max_size=targets)))
    dry = draw(st.booleans())
    said = st.builds(Continuation, st.lists(TOKENS, max_size=2).map(tuple), TEXTS, st.sampled_from(["length", None]))
    clean = sonde.Prediction(
        named,
        draw(floats(targets)),
        draw(floats(targets)),
        tuple(draw(st.lists(ranked, max_size=2))),
        draw(captured()),
        draw(st.none() | said),
    )
    return {
        "tokens": tuple(draw(st.lists(TOKENS, min_size=3, max_size=3))),
        "targets": named,
        "position": draw(st.integers(0, 5)),
        "cost": Cost(*draw(st.tuples(SMALL, SMALL, SMALL, SMALL))),
        "provenance": Provenance(*draw(st.tuples(*[TEXTS] * 6))),
        "dry_run": dry,
        "_clean": None if dry else clean,
    }


@st.composite
def interventions(draw: st.DrawFn) -> sonde.InterventionResult:
    runs, targets, k = draw(SIZES), draw(SIZES), draw(SIZES)
    return sonde.InterventionResult(
        **draw(common(targets)),
        axes=draw(axes(run=runs, target=targets)),
        log_probabilities=draw(floats(runs, targets)),
        logits=draw(floats(runs, targets)),
        kl_divergences=draw(st.none() | floats(runs)),
        edit_norms=draw(st.none() | floats(runs, 2)),
        top_token_ids=draw(integers(runs, k)),
        top_log_probabilities=draw(floats(runs, k)),
        arrived=draw(hnp.arrays(np.bool_, runs)),
        _texts=draw(st.dictionaries(SMALL, TEXTS, max_size=3)),
        _activations=draw(st.lists(captured(), max_size=2)),
        _continuations=draw(st.just(()) | st.just((None,) * runs)),
    )


@st.composite
def causal(draw: st.DrawFn) -> sonde.CausalTracingResult:
    positions, layers, targets = draw(SIZES), draw(SIZES), draw(SIZES)
    chosen = draw(st.lists(COMPONENTS, max_size=2, unique=True))
    grids: Any = st.fixed_dictionaries({name: floats(positions, layers, targets) for name in chosen})
    return sonde.CausalTracingResult(
        **draw(common(targets)),
        axes={
            name: {"position": tuple(range(positions)), **draw(axes(layer=layers, target=targets))} for name in chosen
        },
        corrupted=draw(floats(targets)),
        corrupted_deviations=draw(floats(targets)),
        corrupted_logits=draw(floats(targets)),
        corrupted_positions=tuple(draw(st.lists(SMALL, max_size=2))),
        corrupted_samples=draw(st.none() | floats(targets, 2)),
        noise_deviation=draw(NUMBERS),
        restored=draw(grids),
        deviations=draw(grids),
        logits=draw(grids),
        samples={},
        window=draw(SMALL),
        arrived={name: draw(hnp.arrays(np.bool_, (positions, layers))) for name in chosen},
    )


@st.composite
def others(draw: st.DrawFn) -> Result:
    depths, targets = draw(SIZES), draw(SIZES)
    base = draw(common(targets))
    verified = VerifiedEffect(sonde.head(layer=1, unit=2), draw(floats(targets)), draw(floats(targets)))
    attribution = sonde.AttributionPatchingResult(
        **base,
        axes={"mlp_out": draw(axes(layer=depths, position=2, target=targets))},
        estimates={"mlp_out": draw(floats(depths, 2, targets))},
        edges=Edges(draw(integers(2, 3)), draw(integers(2, 3)), draw(floats(2, targets))),
        verified=(verified,),
    )
    lens = sonde.TokenProbabilityResult(
        **base,
        depths=tuple(range(depths)),
        log_probabilities=draw(floats(depths, targets)),
        logits=draw(floats(depths, targets)),
        ranks=draw(integers(depths, targets)),
        kl_divergences=draw(floats(depths)),
        gradient_norms=draw(st.none() | floats(depths, 2, targets)),
        top_token_ids=draw(integers(depths, 1)),
        top_log_probabilities=draw(floats(depths, 1)),
        gradient_positions=(0, 1),
        _texts={1: "a"},
    )
    activations = sonde.ActivationsResult(**base, activations=draw(captured()))
    return draw(st.sampled_from([attribution, lens, activations, sonde.TraceResult(**base)]))


RESULTS = interventions() | causal() | others()


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
@settings(max_examples=50)
@given(result=RESULTS)
def test_what_is_saved_is_loaded_again(ending: str, tmp_path_factory: Any, result: Result) -> None:
    path = tmp_path_factory.mktemp("saved") / f"result.{ending}"
    result.save(path)
    assert_same(sonde.load(path), result, exactly=True)


@settings(max_examples=50)
@given(result=RESULTS)
def test_what_is_pickled_comes_back(result: Result) -> None:
    assert_same(pickle.loads(pickle.dumps(result)), result, exactly=True)  # noqa: S301 - our own bytes


@settings(max_examples=50)
@given(result=RESULTS)
def test_a_result_is_an_array_with_named_axes(result: Result) -> None:
    try:
        named, values = result.labelled()
    except ValueError as error:
        assert "dry run" in str(error) or "no single array" in str(error)  # noqa: PT017
        with pytest.raises(ValueError, match=r"dry run|no single array"):
            np.asarray(result)
        return
    assert tuple(map(len, named.values())) == values.shape
    assert_same(np.asarray(result), values, exactly=True)
    assert np.asarray(result, np.float64).dtype == np.float64
    assert not np.shares_memory(np.array(result), values)
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":  # until then it meant: where it can be done
        with pytest.raises(ValueError, match="copy"):
            np.array(result, np.complex128, copy=False)


@settings(max_examples=50)
@given(result=RESULTS)
def test_every_result_is_a_data_frame(result: Result) -> None:
    if type(result) is sonde.TraceResult and result.dry_run:
        with pytest.raises(ValueError, match="dry run"):
            result.to_dataframe()
        return
    if result.dry_run and isinstance(result, sonde.InterventionResult | sonde.CausalTracingResult):
        return  # their effects need the unchanged run
    frame = result.to_dataframe()
    if isinstance(result, sonde.InterventionResult):
        assert len(frame) == result.log_probabilities.size
        assert np.array_equal(frame["log_probability"], result.log_probabilities.reshape(-1), equal_nan=True)
    if isinstance(result, sonde.ActivationsResult):
        expected = [array.reshape(-1) for array in result.activations.values()]
        assert np.array_equal(frame["value"].astype(float), np.concatenate([[], *expected]), equal_nan=True)
    if type(result) is sonde.TraceResult:
        assert list(frame["token"]) == [token.text for token in result.prediction.top_tokens]


def plain(**changes: Any) -> sonde.TraceResult:
    token = sonde.Token(1, " Paris")
    clean = sonde.Prediction((token,), np.array([-0.5], np.float32), np.array([1.0], np.float32))
    made = Provenance("gpt2", "abc", "float32", "cpu", "sdpa", "0.1.0")
    return replace(sonde.TraceResult((token,), (token,), 0, Cost(1, 2, 3, 4), made, False, clean), **changes)


def test_other_programs_read_arrays_and_provenance(tmp_path: Path) -> None:
    from safetensors import safe_open

    plain().save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        assert file["clean.log_probabilities"].tolist() == [-0.5]
        assert str(file["__model__"]) == "gpt2"
    plain().save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        assert file.get_tensor("clean.log_probabilities").tolist() == [-0.5]
        assert {name: file.metadata()[name] for name in ("model", "revision", "dtype")} == {
            "model": "gpt2",
            "revision": "abc",
            "dtype": "float32",
        }


def test_every_class_of_a_result_is_known() -> None:
    kinds = [kind for kind in vars(sonde).values() if isinstance(kind, type) and issubclass(kind, Result)]
    assert len(kinds) >= 6
    assert {kind.__name__ for kind in kinds} <= set(storage.known())


def test_a_path_needs_a_known_ending(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.npz or \.safetensors"):
        plain().save(tmp_path / "result.pkl")
    with pytest.raises(ValueError, match=r"\.npz or \.safetensors"):
        sonde.load("result")


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.ones(2))
    with pytest.raises(ValueError, match="description"):
        sonde.load(tmp_path / "other.npz")
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a safetensors file"):
        sonde.load(tmp_path / "other.safetensors")
    np.savez(tmp_path / "objects.npz", a=np.array([object()], object), __sonde__=np.array("{}"))
    with pytest.raises(ValueError, match="not a file of several arrays"):
        sonde.load(tmp_path / "objects.npz")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"format": 1', '"format": 2', "saved by Sonde .* in format 2"),
        ('"TraceResult"', '"Popen"', "Popen"),
        ('"position"', '"place"', "no place; a later version"),
        ('"array": "clean.logits"', '"array": "elsewhere"', "elsewhere"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "result.npz"
    plain().save(path)
    arrays, header = files._read_npz(path)
    assert old in header
    np.savez(path, __sonde__=np.array(header.replace(old, new)), **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        sonde.load(path)


def test_without_safetensors_it_says_what_to_install(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"sonde\[safetensors\]"):
        plain().save(tmp_path / "result.safetensors")
    plain().save(tmp_path / "result.npz")
    assert_same(sonde.load(tmp_path / "result.npz"), plain(), exactly=True)


def test_no_field_is_left_out() -> None:
    tree = files._plain(plain(), "", {})
    assert set(tree["fields"]) == {field.name for field in fields(sonde.TraceResult)}
