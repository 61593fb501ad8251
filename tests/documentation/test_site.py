"""The site builds without a warning, loads nothing from elsewhere, leads nowhere in vain and leaves nothing out."""

import argparse
import dataclasses
import os
import posixpath
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import sonde
import sonde_server
from google.protobuf.descriptor import Descriptor
from sonde import questions
from sonde._options import build_parser
from sonde.v1 import inspection_pb2 as pb
from sonde_server.config import Settings
from sonde_server.serving.guards.catalogue import ENTRIES

from tests.documentation.pages import ROOT, documents, name
from tests.support.contract import imported_publicly

pytestmark = pytest.mark.documents

SECONDS = 240.0
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}
"""What a browser fetches without being asked, beside <link>."""
HARMLESS = {"prev", "next", "canonical", "alternate"}
"""Kinds of <link> that it does not fetch."""
PACKAGE = "sonde.v1."


@dataclass
class Html(HTMLParser):
    """What a page loads, where it leads, and what it has."""

    loads: list[str] = field(default_factory=list)
    leads: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    text: str = ""
    classes: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.classes |= set(given.get("class", "").split())
        if "id" in given:
            self.ids.add(given["id"])
        if tag == "a" and "href" in given:
            self.leads.append(given["href"])
        if tag == "link" and not set(given.get("rel", "").split()) <= HARMLESS:
            self.loads.append(given["href"])
        if LOADING.get(tag, "") in given:
            self.loads.append(given[LOADING[tag]])

    def handle_data(self, data: str) -> None:
        self.text += data


@dataclass(frozen=True)
class Site:
    folder: Path
    pages: dict[str, Html]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    # A proxy that nobody serves: whatever the build asked of another host would fail.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | nowhere | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    pages = {}
    for file in folder.rglob("*.html"):
        page = pages[str(file.relative_to(folder))] = Html()
        page.feed(file.read_text(encoding="utf-8"))
    return Site(folder, pages)


def test_nothing_is_loaded_from_another_host(site: Site) -> None:
    assert len(site.pages) > 20
    loaded = {target for page in site.pages.values() for target in page.loads}
    assert loaded
    assert [target for target in loaded if urlsplit(target).netloc or urlsplit(target).scheme not in {"", "data"}] == []
    for sheet in site.folder.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        found = re.findall(r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')]+)", text)
        assert found == [], sheet
    # The theme's script fetches these libraries from elsewhere where a page has such a thing.
    assert not any({"mermaid", "arithmatex"} & page.classes for page in site.pages.values())


def test_every_link_leads_somewhere(site: Site) -> None:
    # The page of what is not found may be shown anywhere, so its links begin at a root that only a host knows.
    pages = {at: page for at, page in site.pages.items() if at != "404.html"}
    links = [(at, target) for at, page in pages.items() for target in [*page.leads, *page.loads]]
    assert len(links) > 1000
    assert [f"{at}: {target}" for at, target in links if not leads_somewhere(site, at, target)] == []


def leads_somewhere(site: Site, at: str, target: str) -> bool:
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return True
    path = posixpath.normpath(posixpath.join(posixpath.dirname(at), unquote(parts.path))) if parts.path else at
    if path not in site.pages:
        return (site.folder / path).is_file()
    return not parts.fragment or unquote(parts.fragment) in site.pages[path].ids | {"__toc"}


def test_every_page_has_its_place_in_the_navigation(site: Site) -> None:
    named = {posixpath.normpath(target.partition("#")[0]) for target in site.pages["index.html"].leads}
    written = [page for page in site.pages if not page.startswith("repository/") and page != "404.html"]
    assert [page for page in written if page not in named and page != "index.html"] == []


# ---------------------------------------------------------------------- nothing is left out


def test_the_contract_is_all_there(site: Site) -> None:
    page = site.pages["reference/contract.html"]
    expected = set()

    def add(message: Descriptor) -> None:
        at = message.full_name.removeprefix(PACKAGE)
        if message.GetOptions().map_entry:
            return
        expected.update({at, *(f"{at}.{one.name}" for one in message.fields)})
        for inner in message.nested_types:
            add(inner)
        for enum in message.enum_types:
            expected.update(f"{at}.{enum.name}.{value.name}" for value in enum.values)

    for file in imported_publicly(pb.DESCRIPTOR):
        for message in file.message_types_by_name.values():
            add(message)
        for enum in file.enum_types_by_name.values():
            expected.update({enum.name, *(f"{enum.name}.{value.name}" for value in enum.values)})
    for service in pb.DESCRIPTOR.services_by_name.values():
        expected.update({service.name, *(f"{service.name}.{method.name}" for method in service.methods)})
    assert len(expected) > 250
    assert expected - page.ids == set()
    # A comment, a type and a number, as the file has them.
    assert "optional int32 = 5" in page.text
    assert "map of int32 to string = 9" in page.text
    assert "Blocks, 0 to layers - 1;" in page.text


def test_the_python_names_are_all_there(site: Site) -> None:
    for page, package, names in (
        ("python", "sonde", [one for one in sonde.__all__ if one != "__version__"]),
        ("questions", "sonde.questions", questions.__all__),
        ("python", "sonde_server", sonde_server.__all__),
    ):
        ids = site.pages[f"reference/{page}.html"].ids
        # Where a module has the name of its function, the name alone would be the module's.
        modules = {path.stem for path in (ROOT / "client" / package.replace(".", "/")).glob("*.py")}
        paths = [f"{package}.{one}.{one}" if one in modules else f"{package}.{one}" for one in names]
        assert [path for path in paths if path not in ids] == []


def test_the_settings_are_all_there(site: Site) -> None:
    text = site.pages["reference/settings.html"].text
    for one in dataclasses.fields(Settings):
        assert f"--{one.name.replace('_', '-')}" in text
        assert f"SONDE_{one.name.upper()}" in text


def test_the_commands_options_are_all_there(site: Site) -> None:
    text = site.pages["reference/commands.html"].text
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert set(commands.choices) == {"model", "trace", "intervene", "generate"}
    for command in commands.choices.values():
        options = [option for action in command._actions for option in action.option_strings]
        assert [option for option in options if option not in {"-h", "--help"} and option not in text] == []


def test_the_errors_and_metrics_are_all_there(site: Site) -> None:
    reasons = site.pages["reference/errors.html"].ids
    assert [entry.reason for entry in ENTRIES if entry.reason not in reasons] == []
    metrics = site.pages["reference/metrics.html"].text
    manifest = (ROOT / "examples" / "grafana.json").read_text(encoding="utf-8")
    shown = {re.sub(r"_(bucket|sum|count)$", "", one) for one in re.findall(r"\bsonde_[a-z_]+", manifest)}
    assert len(shown) > 5
    assert [one for one in sorted(shown) if one not in metrics] == []


# ---------------------------------------------------------------------- where the repository is read


def anchors(page: Path) -> set[str]:
    """What a page's headings are called where Markdown is shown as it is, by GitHub's rule."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", documents(), ids=name)
def test_links_lead_somewhere_in_the_repository_too(page: Path, site: Site) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lost: list[Any] = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        to = (page.parent / path).resolve() if path else page
        # The reference is made when the site is built.
        if to.parent == ROOT / "docs" / "reference" and not to.exists():
            assert f"reference/{to.stem}.html" in site.pages
        elif not to.exists() or (
            anchor and to.suffix == ".md" and "reference" not in path and anchor not in anchors(to)
        ):
            lost.append(target)
    assert lost == []
