"""Cases as rows of a table or lines of JSON: which column is what, and what an entry means."""

import base64
import json
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from sonde._ask.given import refusal
from sonde._ask.prompts import Chat, Prompt, PromptLike, Target, Targets, as_prompt, as_targets
from sonde._ask.spans import Span
from sonde.errors import InvalidRequest

_OWN: Final = ("targets", "target"), ("sources", "source")


@dataclass(frozen=True)
class Columns:
    """The names of the columns; None: the usual ones, if they are there."""

    prompt: str | None
    messages: str | None
    targets: str | None
    contrast: str | None
    sources: str | None
    group: str | None
    spans: Mapping[str, str]
    add_generation_prompt: bool


class Described(Protocol):
    """A case, as far as it is written."""

    @property
    @abstractmethod
    def whole_prompt(self) -> Prompt:
        """The prompt with its spans."""

    @property
    @abstractmethod
    def prompts_from(self) -> tuple[PromptLike, ...]:
        """The prompts to patch from."""

    @property
    @abstractmethod
    def targets(self) -> Targets:
        """The tokens that are measured."""

    @property
    @abstractmethod
    def group(self) -> str:
        """The group."""


# ---------------------------------------------------------------------- reading


def case_of(record: Any, columns: Columns, row: int) -> dict[str, Any]:
    """The arguments of a `Case`, from one row.

    Raises:
        InvalidRequest: if a column is missing, or an entry is not of its kind.
    """
    if not isinstance(record, Mapping):
        raise refusal(f"cases[{row}]", "a row with named columns", record)
    try:
        return _case_of(record, columns)
    except InvalidRequest as error:
        raise InvalidRequest.at(f"cases[{row}]", str(error)) from None


def _case_of(record: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    messages = _entry(record, columns.messages, "messages") if columns.prompt is None else None
    if messages is None:
        prompt = _entry(record, columns.prompt, "prompt")
        if prompt is None:
            names = ", ".join(map(str, record))
            raise InvalidRequest.at("prompt", f"expected the column of the prompt or the messages, got {names}")
        prompt = _prompt(prompt)
    else:
        added = columns.add_generation_prompt or bool(record.get("add_generation_prompt"))
        prompt = Chat(_listed(messages), added, bool(record.get("continue_final_message")))
    spans = dict(record["spans"]) if isinstance(record.get("spans"), Mapping) else {}
    for name, column in columns.spans.items():
        where = _entry(record, column)
        if where is not None:
            spans[name] = where
    targets = _targets(_entry(record, columns.targets, *_OWN[0]), _entry(record, columns.contrast))
    sources = _listed(_entry(record, columns.sources, *_OWN[1]))
    group = _entry(record, columns.group, "group")
    return {
        "prompt": prompt,
        "sources": [_prompt(sources)] if _is_one(sources) else [_prompt(one) for one in sources or ()],
        "targets": targets,
        "spans": {name: _span(where) for name, where in spans.items() if where is not None},
        "group": "" if group is None else str(group),
    }


def _entry(record: Mapping[str, Any], column: str | None, *usual: str) -> Any:
    """The entry of a column; None where it is empty, as pandas and JSON have it."""
    if column is not None and column not in record:
        raise InvalidRequest.at(column, f"expected a column of this name, got {', '.join(map(str, record))}")
    names = usual if column is None else (column,)
    found = next((record[name] for name in names if name in record), None)
    return None if isinstance(found, float) and math.isnan(found) else found


def _listed(given: Any) -> Any:
    """Arrays of a table's cells as lists."""
    return given.tolist() if hasattr(given, "tolist") and not isinstance(given, str) else given


def _is_one(given: Any) -> bool:
    """Whether the entry of a column of sources is one prompt."""
    if given is None or isinstance(given, str | Mapping | Prompt | Chat):
        return given is not None
    return bool(given) and all(isinstance(entry, int) for entry in given)


def _prompt(given: Any) -> PromptLike:
    given = _listed(given)
    if not isinstance(given, Mapping):
        prompt: PromptLike = given
        return prompt
    image = given.get("image")
    spans = {name: _span(where) for name, where in (given.get("spans") or {}).items()}
    if "messages" in given:
        added, continued = (bool(given.get(name)) for name in ("add_generation_prompt", "continue_final_message"))
        read: Any = Chat(given["messages"], added, continued)
    else:
        read = given.get("text", given.get("token_ids"))
    if read is None:
        raise refusal("prompt", "an object with text, token_ids or messages", given)
    return Prompt(read, base64.b64decode(image) if image else None, spans)


def _span(given: Any) -> Any:
    given = _listed(given)
    if isinstance(given, list) and given and isinstance(given[0], str):
        return tuple(given)
    return given


def _targets(given: Any, contrast: Any) -> Targets:
    given = _listed(given)
    if given is None:
        return None
    several = given if isinstance(given, list | tuple) else [given]
    found = [_target(one) for one in several]
    if contrast is None:
        return found
    if len(found) != 1 or found[0].contrast is not None:
        raise refusal("targets", "one target where there is a column for its contrast", given)
    return [Target(found[0].token, contrast)]


def _target(given: Any) -> Target:
    if isinstance(given, list | tuple):
        if len(given) != 2:
            raise refusal("targets", "a token, or a pair [target, contrast]", given)
        return Target(given[0], given[1])
    return given if isinstance(given, Target) else Target(given)


def read_lines(path: str | Path) -> Iterator[Any]:
    """The objects of a file of JSON lines.

    Raises:
        InvalidRequest: if a line is not JSON; the message has its number.
        OSError: if the file cannot be read.
    """
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                said = f"expected an object of JSON on each line: {error}"
                raise InvalidRequest.at(f"{path}:{number}", said) from None


# ---------------------------------------------------------------------- writing


def record_of(case: Described) -> dict[str, Any]:
    """A case as an object of JSON, which `case_of` reads."""
    record: dict[str, Any] = {"prompt": _written(case.whole_prompt)}
    if case.targets is not None:
        record["targets"] = [
            _plain(one.token) if one.contrast is None else [_plain(one.token), _plain(one.contrast)]
            for one in as_targets(case.targets)
        ]
    written = [_written(as_prompt(source)) for source in case.prompts_from]
    return {**record, **({"sources": written} if written else {}), **({"group": case.group} if case.group else {})}


def write_lines(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write objects as JSON lines."""
    with Path(path).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _written(prompt: Prompt) -> Any:
    content, spans = prompt.content, {name: _where(one) for name, one in prompt.named_spans.items()}
    if isinstance(content, str) and not spans and prompt.file is None:
        return content
    record: dict[str, Any]
    if isinstance(content, str):
        record = {"text": content}
    elif isinstance(content, Chat):
        record = {"messages": [{"role": role, "content": said} for role, said in content.turns]}
        for name in ("add_generation_prompt", "continue_final_message"):
            if getattr(content, name):
                record[name] = True
    else:
        record = {"token_ids": list(content)}
    if prompt.file is not None:
        record["image"] = base64.b64encode(prompt.file).decode()
    return {**record, "spans": spans} if spans else record


def _where(span: Span) -> Any:
    if isinstance(span.where, str):
        return span.where if span.occurrence is None else [span.where, span.occurrence]
    return list(span.where)


def _plain(token: Any) -> str | int:
    return token if isinstance(token, str) else int(token)
