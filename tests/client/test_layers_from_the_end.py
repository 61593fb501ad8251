"""Layers that are counted from the end come back counted from 0, in the order of the request."""

from collections.abc import Iterator

import numpy as np
import pytest
import sonde
import sonde_server
from hypothesis import given
from hypothesis import strategies as st
from sonde._wire.parts import in_order

PROMPT = "The Eiffel Tower is in the city of"


@pytest.fixture(scope="module")
def client() -> Iterator[sonde.Client]:
    with sonde_server.local("atlas", device="cpu") as asked:
        yield asked


@given(st.integers(1, 9), st.data())
def test_labels_are_told_once_all_have_arrived(count: int, data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True))
    asked = [data.draw(st.sampled_from([label, label - count])) for label in wanted]
    assert in_order(asked, set(wanted)) == tuple(wanted)
    some = set(data.draw(st.lists(st.sampled_from(wanted), unique=True)))
    missing = [label for label, given in zip(wanted, asked, strict=True) if given < 0 and label not in some]
    assert in_order(asked, some) == (tuple(sorted(some)) if missing else tuple(wanted))


def test_a_grid(client: sonde.Client) -> None:
    def grid(*layers: int) -> sonde.CausalTracingResult:
        method = sonde.CausalTracing("The Eiffel Tower", layers=layers, samples=2, window=1)
        return client.trace(PROMPT, targets=[" Paris"], method=method)

    found = grid(-1, 0, -3)
    assert found.labelled()[0]["layer"] == (7, 0, 5)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(grid(7, 0, 5)))


def test_activations(client: sonde.Client) -> None:
    found = client.trace(PROMPT, method=sonde.Activations(sonde.residual(layer=(-1, 2)))).activations
    assert found.axes(0)["layer"] == (7, 2)
    expected = client.trace(PROMPT, method=sonde.Activations(sonde.residual(layer=(7, 2)))).activations
    np.testing.assert_array_equal(found[0], expected[0])


def test_a_sweep(client: sonde.Client) -> None:
    found = client.intervene(PROMPT, sonde.sweep(sonde.scale(sonde.residual(), 0.0), layers=[-1, 1], positions=[-1]))
    assert found.labelled()[0]["layer"] == (7, 1)
