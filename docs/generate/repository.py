"""Files of the repository as pages of the site: those that have a place in it, and whatever a page links to.

A link that leaves docs/, such as `../../examples/circuit.py`, is right where the repository is read, and would lead
nowhere in a site. So what it leads to becomes a page too: Markdown as it is, other text as a listing, a picture as a
file; and so on with the links of these. Nothing is written twice.
"""

import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

PLACES: Final[Mapping[str, str]] = {
    "CONTRIBUTING.md": "guides/architecture.md",
    "proto/README.md": "guides/contract.md",
    "server/sonde_server/builtin/README.md": "concepts/embedded-model.md",
    "tests/bench/RESULTS.md": "concepts/benchmark.md",
}
"""Files whose pages stand beside those of docs/. Others are below `repository/`."""

_LINK: Final = re.compile(r"(?P<open>!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()(?P<target>[^)\s]+)(?P<close>\))")
_FENCE: Final = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LANGUAGES: Final = {
    ".proto": "protobuf",
    ".py": "python",
    ".ts": "typescript",
    ".cc": "cpp",
    ".h": "cpp",
    ".go": "go",
    ".sh": "sh",
    ".yaml": "yaml",
    ".json": "json",
    ".toml": "toml",
    "Dockerfile": "docker",
    "Makefile": "makefile",
}
_PICTURES: Final = {".png", ".svg"}
_MOST_LINES: Final = 400
"""Of a listing; what is longer is data, and is offered as a file."""


def links(markdown: str) -> Iterator[str]:
    """Where the links of a page lead, code apart."""
    for part in _FENCE.split(markdown)[::2]:
        for found in _LINK.finditer(part):
            yield found["target"]


def rewritten(markdown: str, source: str, at: str, root: Path) -> str:
    """A page's text with the links of `source`, a file of the repository, as they have to be where the page is `at`."""

    def link(found: "re.Match[str]") -> str:
        target = found["target"]
        path, mark, anchor = target.partition("#")
        file = resolve(source, path, root) if path else None
        if file is None:
            return found[0]
        to = posixpath.relpath(place(file), posixpath.dirname(at) or ".")
        return f"{found['open']}{to}{mark}{anchor}{found['close']}"

    parts = _FENCE.split(markdown)
    parts[::2] = [_LINK.sub(link, part) for part in parts[::2]]
    return "".join(parts)


def resolve(source: str, target: str, root: Path) -> str | None:
    """The file of the repository that a link in `source` leads to; None where it leads elsewhere."""
    if "://" in target or target.startswith(("mailto:", "/")):
        return None
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if file.startswith("..") or not (root / file).exists():
        return None
    read_me = posixpath.join(file, "README.md")
    return read_me if (root / read_me).exists() else file


def place(file: str) -> str:
    """The page, or the file of the site, that a file of the repository has."""
    if file.startswith("docs/"):
        return file.removeprefix("docs/")
    if file in PLACES:
        return PLACES[file]
    if file.endswith("README.md"):
        return f"repository/{file.removesuffix('README.md')}index.md"
    suffix = "" if Path(file).suffix in {".md", *_PICTURES} else ".md"
    return f"repository/{file}{suffix}"


def is_picture(file: str) -> bool:
    """Whether it is shown as it is."""
    return Path(file).suffix in _PICTURES


def is_listed(name: str) -> bool:
    """Whether a file can be shown as a listing."""
    return Path(name).suffix in _LANGUAGES


def content(file: str, root: Path) -> str:
    """A file's page, in Markdown; a folder's without a README lists what is in it."""
    if (root / file).is_dir():
        names = sorted(path.name for path in (root / file).iterdir() if is_listed(path.name))
        entries = "\n".join(f"- [{name}]({Path(file).name}/{name}.md)" for name in names)
        return f"# {file}\n\n{entries}\n"
    text = (root / file).read_text(encoding="utf-8")
    if file.endswith(".md"):
        return rewritten(text, file, place(file), root)
    lines = text.splitlines()
    language = _LANGUAGES.get(Path(file).suffix) or _LANGUAGES.get(Path(file).name, "text")
    shown = "\n".join(lines[:_MOST_LINES])
    rest = f"\n\nThe file has {len(lines) - _MOST_LINES:,} more lines.\n" if len(lines) > _MOST_LINES else ""
    fence = "`" * 5
    return f"# {Path(file).name}\n\n`{file}`\n\n{fence}{language}\n{shown}\n{fence}\n{rest}"
