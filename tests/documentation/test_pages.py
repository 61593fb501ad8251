"""What the README and the documentation show works, from the top of each page to its bottom."""

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import sonde
import yaml
from sonde._ask.names import COMPONENTS
from sonde_server.config import Settings
from sonde_server.model.families import FAMILIES
from sonde_server.serving.server import Server

from docs.generate.settings import default_of
from tests.documentation import pages
from tests.documentation.pages import CANNOT_RUN, DATA, NOT_CODE, ROOT, SHELL, Block, blocks, commands, documents, same
from tests.documentation.reader import Reader
from tests.support.seeing import save_seeing

PAGES = documents()
BLOCKS = [block for page in PAGES for block in blocks(page)]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server with the embedded model, as `sonde-server` starts it, on a free port."""
    with Server(Settings(port=0, device="cpu")) as server:
        yield server.address


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a tiny model that reads images, of random weights, for the page about them."""
    folder = save_seeing("llava", tmp_path_factory.mktemp("seeing") / "llava")
    with Server(Settings(model=str(folder), port=0, device="cpu", dtype="float32")) as server:
        yield server.address


@pytest.mark.documents
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=pages.name)
def test_what_it_shows_works(
    page: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    address = request.getfixturevalue("seeing" if page.stem == "images" else "address")
    with Reader(page, address, tmp_path) as reader:
        reader.read()


def test_every_block_is_run_or_says_why_not() -> None:
    known = {"python", *SHELL, *DATA, *NOT_CODE}
    assert [f"{block}: {block.language or 'no language'}" for block in BLOCKS if block.language not in known] == []


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_what_runs_is_looked_at(page: Path) -> None:
    ran = [block for block in blocks(page) if block.language == "python" and block.why_not is None]
    assert not ran or any(block.output or re.search(r"^\s*assert ", block.code, re.MULTILINE) for block in ran)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "py"], ids=str)
def test_sketches_are_python(block: Block) -> None:
    compile(block.code, block.where, "exec")


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in DATA], ids=str)
def test_data_can_be_read(block: Block) -> None:
    readers = {"json": json.loads, "yaml": yaml.safe_load, "toml": tomllib.loads}
    assert readers[block.language](block.code)


def test_no_reason_is_left_over() -> None:
    shown = [command.text for block in BLOCKS if block.language in SHELL for command in commands(block)]
    unused = [start for start in CANNOT_RUN if not any(text.startswith(f"{start} ") for text in shown)]
    assert unused == []


# ---------------------------------------------------------------------- what is written by hand and could be forgotten


def test_every_component_and_edit_has_its_row() -> None:
    page = (ROOT / "docs" / "concepts" / "terminology.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| `")]
    for name in COMPONENTS:
        # What it is, and what others call it.
        assert rows.count(f"`{name}`") == 2
    edits = ["scale", "replace", "add", "multiply", "patch", "noise", "project_out", "knockout"]
    assert all(hasattr(sonde, edit) and f"| `{edit}(" in page for edit in edits)


def test_every_architecture_is_in_the_table_of_models() -> None:
    page = (ROOT / "docs" / "concepts" / "models.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\w+", " ".join(line for line in page.splitlines() if line.startswith("|"))))
    assert set(FAMILIES) - named == set()


def test_the_table_of_limits_has_the_defaults() -> None:
    page = (ROOT / "docs" / "concepts" / "limits.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| [^|]+ \| `--([\w-]+)`[^|]*\| ([^|]+) \|", page, re.MULTILINE)
    defaults = {one.name: default_of(one) for one in dataclasses.fields(Settings)}
    in_words = {"workers": "60", "max_runs_per_second": "none", "max_queued_bytes": "half of the device's memory"}
    assert len(shown) > 8
    for flag, default in shown:
        name = flag.replace("-", "_")
        assert default == (in_words.get(name) or defaults[name]), flag


def test_the_comparison_of_outputs() -> None:
    assert same("p(Paris) = 0.997, 12 tokens", "p(Paris) = 0.996, 12 tokens\n")
    assert not same("p(Paris) = 0.997, 12 tokens", "p(Paris) = 0.997, 13 tokens")
    assert not same("p(Paris) = 0.997", "p(Rome) = 0.997")
    assert not same("0.997", "0.990")
    assert same("1,156 runs\n...\ndone", "1,156 runs\na\nb\ndone")
    assert not same("1\n...\n3", "1\n2")
    assert not same("1", "1\n2")
