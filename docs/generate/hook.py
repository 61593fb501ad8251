"""What mkdocs.yml calls while the site is built: adds the pages that are generated, and those of the repository."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[2]
# mkdocs knows this file alone; the packages lie beside docs/.
sys.path[:0] = [str(ROOT), str(ROOT / "client"), str(ROOT / "server")]

from docs.generate import commands, contract, errors, methods, metrics, repository, settings  # noqa: E402 - needs the path

GENERATED: Final[Mapping[str, Callable[[], str]]] = {
    "reference/contract.md": lambda: contract.page(ROOT / "proto"),
    "reference/settings.md": settings.page,
    "reference/commands.md": commands.page,
    "reference/errors.md": errors.page,
    "reference/metrics.md": metrics.page,
}
"""The pages that are made of the code."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, and what of the repository they and the written ones lead to."""
    waiting = [(f"docs/{file.src_uri}", file.content_string) for file in files.documentation_pages()]
    for page, make in GENERATED.items():
        text = make()
        files.append(File.generated(config, page, content=text))
        waiting.append((f"docs/{page}", text))
    waiting += [(path, _add(path, files, config)) for path in repository.PLACES]
    while waiting:
        source, text = waiting.pop()
        for target in repository.links(text):
            found = repository.resolve(source, target.partition("#")[0], ROOT)
            if found and files.get_file_from_path(repository.place(found)) is None:
                waiting.append((found, _add(found, files, config)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Fills in the methods of a trace, and makes links to the repository those to its pages."""
    source = page.file.src_uri
    if source == "reference/python.md":
        markdown = methods.filled_in(markdown)
    if source.startswith("repository/") and not source.endswith("index.md"):
        # Listings are there to be read, and would be found before what explains them.
        page.meta["search"] = {"exclude": True}
    if source.startswith("repository/") or source in repository.PLACES.values():
        return markdown
    return repository.rewritten(markdown, f"docs/{source}", source, ROOT)


def _add(path: str, files: Files, config: MkDocsConfig) -> str:
    """Adds a file of the repository. Returns its text as far as it has links, which are looked at next."""
    at = repository.place(path)
    if path.startswith("docs/"):
        return ""
    if repository.is_picture(path):
        files.append(File.generated(config, at, abs_src_path=str(ROOT / path)))
        return ""
    files.append(File.generated(config, at, content=repository.content(path, ROOT)))
    if path.endswith(".md"):
        return (ROOT / path).read_text(encoding="utf-8")
    if (ROOT / path).is_dir():
        for inside in sorted((ROOT / path).iterdir()):
            if repository.is_listed(inside.name):
                inner = repository.place(f"{path}/{inside.name}")
                if files.get_file_from_path(inner) is None:
                    _add(f"{path}/{inside.name}", files, config)
    return ""
