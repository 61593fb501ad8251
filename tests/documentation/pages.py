"""The pages of the documentation as tests see them: their blocks of code, and what each says of how it is run.

- ```python runs, all blocks of a page in one namespace from top to bottom;
- ```sh and ```console run, command by command (in the latter a command begins with `$ `);
- what a block or command printed is what is shown: in an ```output block right after it, or below the `$ ` line;
- ```json, ```yaml and ```toml have to be read by a parser;
- ```py, ```text and languages that other tests build are not run;
- `<!-- not run: WHY -->` before a block says that it is not, and `CANNOT_RUN` says so of commands wherever they stand.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]

CANNOT_RUN: Final[Mapping[str, str]] = {
    "docker": "needs a daemon; tests/container builds and runs the image where there is one",
    "ssh": "needs another machine",
    "make": "is what runs these tests; CI runs the targets",
    "pip install": "changes the environment that runs the tests; tests/test_packaging.py installs",
    "grpcurl": "is in no package of Python or Debian; buf asks the same",
    "sonde-server ray": "needs ports on all interfaces; tests/ray runs it in a network namespace",
    "sonde-server --model": "needs a model of the hub, or one of yours",
}
"""Commands that are shown and not run, by how they begin, with the reason."""

NOT_CODE: Final[Mapping[str, str]] = {
    "py": "a sketch, with names that only the reader has",
    "text": "no code",
    "output": "what the block before it printed, which is compared",
    "typescript": "tests/languages builds the example it is from",
    "go": "tests/languages builds the example it is from",
    "cpp": "tests/languages builds the example it is from",
    "proto": "make contract checks the file it is from",
}
"""Languages of blocks that are not run, with the reason."""
DATA: Final = ("json", "yaml", "toml")
SHELL: Final = ("sh", "console")

_BLOCK: Final = re.compile(
    r"^(?:[ ]*<!-- not run: (?P<why>[^\n]+?) -->\n+)?"
    r"^(?P<indent>[ ]*)(?P<fence>`{3,})(?P<language>[\w+-]*)[^\n]*\n(?P<code>.*?)^(?P=indent)(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
_COMMENT: Final = re.compile(r"^\s*#|\s#\s.*$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    """Where its code begins."""
    language: str
    code: str
    why_not: str | None
    """Why it is not run, if the page says so."""
    output: str | None
    """What it is said to print."""

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    def __str__(self) -> str:
        return self.where


@dataclass(frozen=True)
class Command:
    """A command of a ```sh or ```console block."""

    where: str
    text: str
    output: str | None

    @property
    def why_not(self) -> str | None:
        """Why it is not run."""
        return next((why for start, why in CANNOT_RUN.items() if self.text.startswith(f"{start} ")), None)

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)


def documents() -> list[Path]:
    """The pages: what a stranger reads first, and all of the site that somebody wrote."""
    written = sorted((ROOT / "docs").rglob("*.md"))
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "proto" / "README.md", *written]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in their order."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    end = 0
    for match in _BLOCK.finditer(text):
        indent = len(match["indent"])
        code = "".join(line[indent:] if line.strip() else line for line in match["code"].splitlines(keepends=True))
        if match["language"] == "output" and found and not text[end : match.start()].strip():
            last = found[-1]
            found[-1] = Block(last.page, last.line, last.language, last.code, last.why_not, code)
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(name(page), line, match["language"], code, match["why"], None))
        end = match.end()
    return found


def commands(block: Block) -> Iterator[Command]:
    """The commands of a shell's block, each on one line."""
    if block.language == "console":
        for part in re.split(r"^\$ ", block.code, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            yield Command(block.where, command, shown if shown.strip() else None)
        return
    waiting = ""
    for line in re.sub(r"\\\n\s*", "", block.code).splitlines():
        waiting += line if waiting else _COMMENT.sub("", line).strip()
        try:
            shlex.split(waiting)
        except ValueError:
            # A quoted argument goes over several lines.
            waiting += "\n"
            continue
        if waiting:
            yield Command(block.where, waiting, None)
        waiting = ""
    assert not waiting, f"{block}: a quote is not closed"


_NUMBER: Final = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


def same(shown: str, printed: str) -> bool:
    """Whether what was printed is what is shown: every number up to two in its last digit, `...` anything."""
    expected, found = (text.rstrip().splitlines() for text in (shown, printed))
    if "..." in expected:
        cut = expected.index("...")
        tail = expected[cut + 1 :]
        return (
            len(found) >= cut + len(tail)
            and same("\n".join(expected[:cut]), "\n".join(found[:cut]))
            and same("\n".join(tail), "\n".join(found[len(found) - len(tail) :]))
        )
    return len(expected) == len(found) and all(map(_same_line, expected, found))


def _same_line(shown: str, printed: str) -> bool:
    if _NUMBER.sub("#", shown).split() != _NUMBER.sub("#", printed).split():
        return False
    pairs = zip(_NUMBER.findall(shown), _NUMBER.findall(printed), strict=True)
    return all(abs(_value(one) - _value(other)) <= _step(one) for one, other in pairs)


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _step(number: str) -> float:
    """Two of the last digit shown; none for a whole number."""
    mantissa, _, exponent = number.partition("e")
    decimals = len(mantissa.partition(".")[2])
    return 2.01 * 10.0 ** (int(exponent or 0) - decimals) if decimals else 0.0
