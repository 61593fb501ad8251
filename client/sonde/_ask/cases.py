"""Cases: many prompts in one call, each with what belongs to it alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, SupportsIndex, TypeAlias, cast, overload

from sonde._ask.given import refusal, several
from sonde._ask.prompts import Chat, Prompt, PromptLike, Targets, as_prompt
from sonde._ask.records import Columns, case_of, read_lines, record_of, write_lines
from sonde._ask.spans import Spans, as_spans

if TYPE_CHECKING:
    import pandas as pd

_TEXTS: Final = ("object", "str", "string")
"""The types of a column of texts."""
_EXPECTED: Final = "cases: a list of prompts or of sonde.Case(prompt, ...)"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One example of a dataset. Everything else in the call applies to every case.

    sonde.Case("The Eiffel Tower is in the city of", targets=[" Paris"], spans={"subject": "The Eiffel Tower"})
    """

    prompt: PromptLike = field(kw_only=False)
    """What is run."""
    sources: Sequence[PromptLike] | PromptLike = ()
    """What this case's patches take values from, in place of the call's `sources`: one prompt or several."""
    targets: Targets = None
    """The tokens that are measured in this case; None: those of the call."""
    spans: Spans = field(default_factory=dict)
    """Names for parts of the prompt, besides those that it brings along."""
    group: str = ""
    """The group whose mean this case counts in, where answers are reduced."""

    def __post_init__(self) -> None:
        single = isinstance(self.sources, str | Prompt | Chat)
        given = (self.sources,) if single else self.sources
        object.__setattr__(self, "sources", several(cast("Iterable[Any]", given), "sources", "a list of prompts"))
        object.__setattr__(self, "spans", as_spans(self.spans))
        if not isinstance(self.group, str):
            raise refusal("group", "the name of a group", self.group)

    @property
    def prompts_from(self) -> tuple[PromptLike, ...]:
        """The sources, one by one."""
        return cast("tuple[PromptLike, ...]", self.sources)

    @property
    def whole_prompt(self) -> Prompt:
        """The prompt with all its spans."""
        prompt = as_prompt(self.prompt)
        return Prompt(prompt.input, prompt.image, {**prompt.spans, **self.spans})


class Cases(Sequence[Case]):
    """A dataset: many prompts that one call answers.

    `Case`s and plain prompts can be mixed. `from_dataframe`, `from_dataset`, `from_jsonl` and `from_records` read a
    dataset by the names of its columns.
    """

    def __init__(self, cases: Iterable[Case | PromptLike]) -> None:
        """Make a dataset of these cases.

        Raises:
            InvalidRequest: if there is none.
        """
        listed = several(cases, "cases", _EXPECTED)
        if not listed:
            raise refusal("cases", "at least one case", cases)
        self._cases = tuple(entry if isinstance(entry, Case) else Case(entry) for entry in listed)

    @classmethod
    def from_records(  # noqa: PLR0913 - the columns, by keyword
        cls,
        records: Iterable[Any],
        *,
        prompt: str | None = None,
        messages: str | None = None,
        targets: str | None = None,
        contrast: str | None = None,
        sources: str | None = None,
        group: str | None = None,
        spans: "dict[str, str] | None" = None,
        add_generation_prompt: bool = False,
    ) -> "Cases":
        """Read a dataset from mappings, such as rows of a table, by the names of their columns.

        Columns with these names (or `target`, `source`) are found by themselves. A name that is given must be there.

        Args:
            records: the rows.
            prompt: the column of the prompts: texts or lists of token ids.
            messages: instead of `prompt`, the column of conversations: lists of messages with "role" and "content".
            targets: the column of the targets: a token (text or id), a list of them, or pairs [target, contrast].
            contrast: the column of a token to compare the target with, where a row has one target.
            sources: the column of the prompts to patch from: one, or a list of them.
            group: the column of the group that a case counts in.
            spans: by the name of a span, the column that says where it is: a part of the text, [text, occurrence], or
                positions.
            add_generation_prompt: whether conversations end with what opens the assistant's next message.

        Raises:
            InvalidRequest: if a column is missing, or an entry is not of its kind; the message has the row's number.
        """
        columns = Columns(prompt, messages, targets, contrast, sources, group, dict(spans or {}), add_generation_prompt)
        return cls([Case(**case_of(record, columns, row)) for row, record in enumerate(records)])

    @classmethod
    def from_dataframe(cls, frame: "pd.DataFrame", **columns: Any) -> "Cases":
        """Read a dataset from a pandas data frame; the arguments are those of `from_records`."""
        return cls.from_records(frame.to_dict("records"), **columns)

    @classmethod
    def from_dataset(cls, dataset: Iterable[Any], **columns: Any) -> "Cases":
        """Read a dataset of Hugging Face's `datasets` (one split); the arguments are those of `from_records`."""
        return cls.from_records(dataset, **columns)

    @classmethod
    def from_jsonl(cls, path: str | Path, **columns: Any) -> "Cases":
        """Read a file of JSON lines, one case each, as `to_jsonl` writes it; the arguments are those of `from_records`.

        Raises:
            InvalidRequest: if a line is not an object of JSON, or lacks a column.
            OSError: if the file cannot be read.
        """
        return cls.from_records(read_lines(path), **columns)

    def to_jsonl(self, path: str | Path) -> None:
        """Write the dataset as JSON lines, one case each."""
        write_lines(path, (record_of(case) for case in self))

    def __len__(self) -> int:
        return len(self._cases)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> "Cases": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "Case | Cases":
        """One case; a slice is a dataset."""
        return Cases(self._cases[index]) if isinstance(index, slice) else self._cases[index]

    def __iter__(self) -> Iterator[Case]:
        return iter(self._cases)

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups, in the order in which they come."""
        return tuple(dict.fromkeys(case.group for case in self))

    def __repr__(self) -> str:
        groups = f", {len(self.groups)} groups" if len(self.groups) > 1 else ""
        return f"Cases({len(self):,} cases{groups})"


CasesLike: TypeAlias = (
    Cases
    | Case
    | list[Case]
    | list[str]
    | list[Prompt]
    | list[Chat]
    | list[list[int]]
    | tuple[Case, ...]
    | tuple[str, ...]
    | tuple[Prompt, ...]
    | tuple[Chat, ...]
    | tuple[tuple[int, ...], ...]
)
"""A dataset: `Cases`, or a list of cases or prompts."""


def as_cases(given: "PromptLike | CasesLike | Iterable[Case | PromptLike]") -> Cases | None:
    """The dataset that is given; None if it is a single prompt.

    Several texts, prompts, conversations or sequences of ids are a dataset. One sequence of ids is a prompt, and so is
    a batch of one, [1, T], as tokenizers make it.
    """
    if isinstance(given, Cases):
        return given
    if isinstance(given, Case):
        return Cases([given])
    whole: object = given
    if isinstance(whole, str | Prompt | Chat | bytes | bytearray | memoryview | Mapping) or not isinstance(
        whole, Iterable
    ):
        return None
    axes = getattr(given, "ndim", None)
    kind = str(getattr(given, "dtype", ""))
    if isinstance(axes, int) and (axes == 0 or kind not in _TEXTS):
        several_rows = axes == 2 and "int" in kind and len(cast("Any", given)) > 1
        return Cases([Case(row) for row in cast("Any", given)]) if several_rows else None
    entries = tuple(cast("Iterable[Any]", given))
    if not any(isinstance(entry, str | Prompt | Chat | Case) for entry in entries):
        rows = [entry for entry in entries if hasattr(entry, "__len__") and getattr(entry, "ndim", 1) > 0]
        if len(rows) < 2 or len(rows) < len(entries):
            return None
    return Cases(entries)
