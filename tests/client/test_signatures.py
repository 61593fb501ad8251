"""Both clients have one set of signatures, which people and type checkers see in full."""

import inspect
import pydoc
import re
import subprocess
import sys
import typing
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest
import sonde
from sonde import questions

QUESTIONS = ("trace", "intervene", "trace_token_probability", "intervene_on_neuron")
STREAMS = ("stream_trace", "stream_intervene")


@pytest.mark.parametrize("name", [*QUESTIONS, *STREAMS])
def test_both_clients_take_the_same_and_say_the_same(name: str) -> None:
    one, other = getattr(sonde.Client, name), getattr(sonde.AsyncClient, name)
    assert inspect.signature(one).parameters == inspect.signature(other).parameters
    assert next(iter(inspect.signature(one).parameters)) == "self"
    assert inspect.getdoc(one) == inspect.getdoc(other)
    assert (one.__qualname__, other.__qualname__) == (f"Client.{name}", f"AsyncClient.{name}")


def test_what_they_return_is_told_by_each() -> None:
    for name in QUESTIONS:
        answer = inspect.signature(getattr(sonde.Client, name)).return_annotation
        kinds = {typing.get_origin(kind) or kind for kind in typing.get_args(answer) or (answer,)}
        assert {kind for kind in kinds if not issubclass(kind, sonde.Result)} <= {sonde.CasesResult, sonde.Reduced}
        assert any(issubclass(kind, sonde.Result) for kind in kinds)
        assert inspect.signature(getattr(sonde.AsyncClient, name)).return_annotation == answer
        assert inspect.iscoroutinefunction(getattr(sonde.AsyncClient, name))
    for name in STREAMS:
        hints = (
            typing.get_type_hints(getattr(sonde.Client, name)),
            typing.get_type_hints(getattr(sonde.AsyncClient, name)),
        )
        for hint, kind in zip(hints, (Generator, AsyncGenerator), strict=True):
            assert {typing.get_origin(one) for one in typing.get_args(hint["return"])} == {kind}


SNIPPET = """
from collections.abc import AsyncGenerator, Generator
from typing import assert_type

import sonde

def ask(client: sonde.Client) -> None:
    assert_type(client.trace("a"), sonde.TraceResult)
    assert_type(client.trace("a", method=sonde.CausalTracing("b")), sonde.CausalTracingResult)
    assert_type(client.intervene("a", []), sonde.InterventionResult)
    assert_type(client.trace([1, 2]), sonde.TraceResult)
    assert_type(client.trace(sonde.Chat([("user", "a")])), sonde.TraceResult)
    assert_type(client.trace(["a", "b"]), sonde.CasesResult[sonde.TraceResult])
    assert_type(client.trace(sonde.Cases(["a"]), method=sonde.CausalTracing("b")),
                sonde.CasesResult[sonde.CausalTracingResult])
    assert_type(client.trace(["a"], method=sonde.CausalTracing("b"), reduce="mean"),
                sonde.Reduced[sonde.CausalTracingResult])
    assert_type(client.intervene([sonde.Case("a")], []), sonde.CasesResult[sonde.InterventionResult])
    assert_type(client.intervene(sonde.Cases(["a"]), [], reduce="mean"), sonde.Reduced[sonde.InterventionResult])
    assert_type(client.stream_trace("a", method=sonde.TokenProbability()),
                Generator[sonde.TokenProbabilityResult, None, None])
    assert_type(client.trace_token_probability([1], 2), sonde.TokenProbabilityResult)
    assert_type(client.model, sonde.Model)
    assert_type(client.wait_until_serving(), sonde.Model)

async def ask_later(client: sonde.AsyncClient) -> None:
    assert_type(await client.trace("a"), sonde.TraceResult)
    assert_type(await client.trace("a", method=sonde.Activations(sonde.head())), sonde.ActivationsResult)
    assert_type(await client.intervene("a", []), sonde.InterventionResult)
    assert_type(client.stream_intervene("a", []), AsyncGenerator[sonde.InterventionResult, None])
    assert_type(await client.model, sonde.Model)
    assert_type(await client.wait_until_serving(), sonde.Model)
"""
WRONG = """
import sonde

def ask(client: sonde.Client) -> None:
    client.trace("a", metod=None)
"""


@pytest.mark.full
@pytest.mark.parametrize(("snippet", "status"), [(SNIPPET, 0), (WRONG, 1)])
def test_a_type_checker_knows_the_result_by_the_method(tmp_path: Path, snippet: str, status: int) -> None:
    pytest.importorskip("mypy")
    file = tmp_path / "program.py"
    file.write_text(snippet)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "mypy", "--config-file", str(root / "pyproject.toml"), str(file)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == status, done.stdout


def helped(thing: object) -> str:
    """What `help()` shows, as plain text."""
    return pydoc.plain(pydoc.render_doc(thing))


@pytest.mark.parametrize(
    "thing",
    [
        sonde.Client.trace,
        sonde.Client.intervene,
        sonde.AsyncClient.stream_trace,
        sonde.CausalTracing,
        sonde.AttributionPatching,
        sonde.patch,
        sonde.sweep,
        questions.steering_vector,
    ],
)
def test_help_can_be_read(thing: object) -> None:
    shown = helped(thing)
    head = shown[shown.index("(") : shown.find("Args:")]
    assert max(map(len, head.splitlines())) <= 125
    assert not re.search(r"typing\.|collections\.abc|numpy\.|sonde\._(ask|answers)|<class", head)


def test_a_signature_names_types_as_programs_do() -> None:
    head = helped(sonde.Client.trace)
    for line in (
        "    targets: Targets = None,",
        "    position: PositionLike | None = None,",
        "    top_k: int = 10,",
        "    progress: Progress = False,",
        ") -> TraceResult | CasesResult[TraceResult] | Reduced[TraceResult]",
    ):
        assert line in head.splitlines()
    assert "add(site: Site, value: ArrayLike) -> Edit" in helped(sonde.add)


def test_a_readable_signature_is_an_ordinary_one() -> None:
    known = inspect.signature(sonde.patch)
    assert known.bind(sonde.head(), 1).arguments.keys() == {"site", "sources"}
    assert known == inspect.signature(sonde.patch).replace()
    assert list(inspect.signature(sonde.CausalTracing).parameters)[:2] == ["subject", "samples"]


def test_the_package_says_what_is_where() -> None:
    said = sonde.__doc__ or ""
    assert max(map(len, said.splitlines())) <= 120
    for name in (
        "Client",
        "CausalTracing",
        "patch",
        "Cases",
        "SondeError",
        "to_dataframe()",
        "save(path)",
        "load(path)",
    ):
        assert name in said
