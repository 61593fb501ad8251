"""The reference of the contract, from the comments of the proto files.

`buf build` gives the descriptors with the comments (google.protobuf.FileDescriptorSet with source_code_info). Each file
is a section, in the order of the table in proto/README.md; the files of the methods follow `traces.proto`. What a
comment names that the contract has, `Limits.max_runs`, `RESIDUAL_POST` or TraceRequest, becomes a link.
"""

import html
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

# Field numbers of FileDescriptorProto and DescriptorProto, of which the paths in source_code_info are made.
_FILE_MESSAGE, _FILE_ENUM, _FILE_SERVICE = 4, 5, 6
_MESSAGE_FIELD, _MESSAGE_NESTED, _MESSAGE_ENUM, _MESSAGE_ONEOF = 2, 3, 4, 8
_ENUM_VALUE, _SERVICE_METHOD, _SYNTAX = 2, 2, 12

_Path = tuple[int, ...]
_TYPES = {
    FieldDescriptorProto.TYPE_DOUBLE: "double",
    FieldDescriptorProto.TYPE_FLOAT: "float",
    FieldDescriptorProto.TYPE_INT64: "int64",
    FieldDescriptorProto.TYPE_INT32: "int32",
    FieldDescriptorProto.TYPE_UINT64: "uint64",
    FieldDescriptorProto.TYPE_UINT32: "uint32",
    FieldDescriptorProto.TYPE_BOOL: "bool",
    FieldDescriptorProto.TYPE_STRING: "string",
    FieldDescriptorProto.TYPE_BYTES: "bytes",
}
_FOLDER = "sonde/v1"
_TRACES = "traces.proto"
_LISTED = re.compile(rf"\({_FOLDER}/(\w+\.proto)\)")
_CODE = re.compile(r"`([^`]+)`")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z][A-Za-z0-9_]*)*")
_SENTENCE_ENDS = re.compile(r"(^|[.:;?!]\s+)$")


def describe(proto: Path) -> FileDescriptorSet:
    """The descriptors of all files in a folder, with their comments.

    Raises:
        RuntimeError: where buf is missing or does not accept the files.
    """
    beside = Path(sys.executable).with_name("buf")
    buf = str(beside) if beside.exists() else shutil.which("buf")
    if buf is None:
        raise RuntimeError("buf is needed to read the contract: pip install buf-bin")
    built = subprocess.run([buf, "build", "--output", "-#format=binpb"], cwd=proto, capture_output=True, check=False)
    if built.returncode:
        raise RuntimeError(f"buf build: {built.stderr.decode(errors='replace')}")
    return FileDescriptorSet.FromString(built.stdout)


def reading_order(proto: Path) -> list[FileDescriptorProto]:
    """The contract's files, in the order in which proto/README.md lists them.

    Those of the methods of a trace follow `traces.proto`, in the order of their fields in the request.

    Raises:
        RuntimeError: where the page lists a file that is not there, or leaves one out.
    """
    files = {file.name.rpartition("/")[2]: file for file in describe(proto).file}
    methods = _methods(files[_TRACES])
    listed = list(dict.fromkeys(_LISTED.findall((proto / "README.md").read_text(encoding="utf-8"))))
    expected = files.keys() - set(methods)
    if set(listed) != expected:
        raise RuntimeError(f"proto/README.md: expected a table of {sorted(expected)}, got {sorted(listed)}")
    behind = listed.index(_TRACES) + 1
    return [files[name] for name in (*listed[:behind], *methods, *listed[behind:])]


def _methods(traces: FileDescriptorProto) -> list[str]:
    """The names of the files of the methods of a trace, each named like its field."""
    (request,) = (message for message in traces.message_type if message.name == "TraceRequest")
    (number,) = (number for number, oneof in enumerate(request.oneof_decl) if oneof.name == "method")
    return [f"{one.name}.proto" for one in request.field if one.HasField("oneof_index") and one.oneof_index == number]


def page(proto: Path) -> str:
    """The page, in Markdown."""
    return _Page(reading_order(proto)).text()


@dataclass(frozen=True)
class _Item:
    """A service, message or enumeration, where it stands in its file."""

    name: str
    """Without the package; a nested one after its message and a dot."""
    path: _Path
    line: int
    of: DescriptorProto | EnumDescriptorProto | ServiceDescriptorProto
    comments: Mapping[_Path, str]
    """Those of the file, by path."""
    nested: "list[_Item]" = field(default_factory=list)

    def comment(self, *below: int) -> str:
        """The item's comment, or that of something in it, by the rest of the path; empty where there is none."""
        return self.comments.get((*self.path, *below), "")


class _File:
    """What one file of the contract holds, in its order."""

    def __init__(self, file: FileDescriptorProto) -> None:
        locations = file.source_code_info.location
        self._comments: Mapping[_Path, str] = {
            tuple(at.path): at.leading_comments for at in locations if at.leading_comments
        }
        self._lines: Mapping[_Path, int] = {tuple(at.path): at.span[0] for at in locations}
        self.name = file.name.rpartition("/")[2]
        self.head = self._comments.get((_SYNTAX,), "")
        self.items = sorted(self._all(file), key=lambda item: item.line)

    def _all(self, file: FileDescriptorProto) -> Iterator[_Item]:
        for number, service in enumerate(file.service):
            yield self._item(service.name, (_FILE_SERVICE, number), service)
        for number, enum in enumerate(file.enum_type):
            yield self._item(enum.name, (_FILE_ENUM, number), enum)
        for number, message in enumerate(file.message_type):
            yield self._message(message.name, (_FILE_MESSAGE, number), message)

    def _item(
        self, name: str, path: _Path, of: DescriptorProto | EnumDescriptorProto | ServiceDescriptorProto
    ) -> _Item:
        return _Item(name, path, self._lines[path], of, self._comments)

    def _message(self, name: str, path: _Path, message: DescriptorProto) -> _Item:
        item = self._item(name, path, message)
        for number, enum in enumerate(message.enum_type):
            item.nested.append(self._item(f"{name}.{enum.name}", (*path, _MESSAGE_ENUM, number), enum))
        for number, inner in enumerate(message.nested_type):
            if not inner.options.map_entry:
                item.nested.append(self._message(f"{name}.{inner.name}", (*path, _MESSAGE_NESTED, number), inner))
        return item


class _Page:
    def __init__(self, files: Sequence[FileDescriptorProto]) -> None:
        self._package = files[0].package
        self._files = [_File(file) for file in files]
        self._anchors = dict(self._names(item for file in self._files for item in file.items))

    def _names(self, items: Iterable[_Item]) -> Iterator[tuple[str, str]]:
        """Everything that can be named, as it is named, with its anchor."""
        for item in items:
            yield item.name, item.name
            yield item.name.rpartition(".")[2], item.name
            if isinstance(item.of, EnumDescriptorProto):
                prefix = _prefix(item.of)
                for value in item.of.value:
                    yield value.name, f"{item.name}.{value.name}"
                    if value.name != f"{prefix}UNSPECIFIED":
                        yield value.name.removeprefix(prefix), f"{item.name}.{value.name}"
            elif isinstance(item.of, DescriptorProto):
                for name in (*(one.name for one in item.of.field), *(one.name for one in item.of.oneof_decl)):
                    yield f"{item.name}.{name}", f"{item.name}.{name}"
            else:
                for method in item.of.method:
                    yield method.name, f"{item.name}.{method.name}"
            yield from self._names(item.nested)

    # ------------------------------------------------------------------ text

    def text(self) -> str:
        parts = [self._introduction()]
        for file in self._files:
            title = file.name.removesuffix(".proto").replace("_", " ").capitalize()
            parts.append(f"## {title}")
            parts.append(f"[`{file.name}`](../../proto/{_FOLDER}/{file.name})")
            parts.append(self._paragraphs(file.head, ""))
            for item in file.items:
                parts.extend(self._section(item, level=3))
        return "\n\n".join(parts) + "\n"

    def _introduction(self) -> str:
        return (
            "# The contract\n\n"
            f"This page is generated from the comments of the files in `proto/{_FOLDER}`. It has a section for each. "
            f"The package is `{self._package}`. [How the contract is meant](../../proto/README.md) explains what "
            "applies to all fields: numbers, tensors, how the slices of a stream join, and errors."
        )

    def _section(self, item: _Item, level: int) -> Iterator[str]:
        kind = {DescriptorProto: "message", EnumDescriptorProto: "enum", ServiceDescriptorProto: "service"}[
            type(item.of)
        ]
        yield f"{'#' * level} {item.name} {{ #{item.name} .contract-{kind} }}"
        yield self._paragraphs(item.comment(), item.name)
        if isinstance(item.of, ServiceDescriptorProto):
            yield _table("Method", self._methods(item, item.of))
        elif isinstance(item.of, EnumDescriptorProto):
            yield _table("Value", self._values(item, item.of))
        elif item.of.field:
            yield _table("Field", self._fields(item, item.of))
        else:
            yield "This message has no fields."
        for inner in item.nested:
            yield from self._section(inner, level + 1)

    def _methods(self, item: _Item, service: ServiceDescriptorProto) -> Iterator[tuple[str, str, str]]:
        for number, method in enumerate(service.method):
            stream = "stream of " if method.server_streaming else ""
            kind = f"{self._type_link(method.input_type)} → {stream}{self._type_link(method.output_type)}"
            comment = item.comment(_SERVICE_METHOD, number)
            yield _name(item, method.name), kind, self._inline(comment, item.name)

    def _values(self, item: _Item, enum: EnumDescriptorProto) -> Iterator[tuple[str, str, str]]:
        for number, value in enumerate(enum.value):
            comment = item.comment(_ENUM_VALUE, number)
            yield _name(item, value.name), f"= {value.number}", self._inline(comment, item.name)

    def _fields(self, item: _Item, message: DescriptorProto) -> Iterator[tuple[str, str, str]]:
        opened: set[int] = set()
        for number, one in enumerate(message.field):
            inside = one.HasField("oneof_index") and not one.proto3_optional
            if inside and one.oneof_index not in opened:
                opened.add(one.oneof_index)
                name = message.oneof_decl[one.oneof_index].name
                comment = item.comment(_MESSAGE_ONEOF, one.oneof_index)
                yield _name(item, name), "one of the following", self._inline(comment, item.name)
            kind = f"{self._type(one, message)} = {one.number}"
            comment = item.comment(_MESSAGE_FIELD, number)
            yield _name(item, one.name, inside=inside), kind, self._inline(comment, item.name)

    def _type(self, one: FieldDescriptorProto, message: DescriptorProto) -> str:
        repeated = one.label == FieldDescriptorProto.LABEL_REPEATED
        if one.type not in (FieldDescriptorProto.TYPE_MESSAGE, FieldDescriptorProto.TYPE_ENUM):
            name = _TYPES[one.type]
        elif entry := next(
            (e for e in message.nested_type if e.options.map_entry and _ends(one.type_name, e.name)), None
        ):
            key, value = (self._type(inner, entry) for inner in entry.field)
            return f"map of {key} to {value}"
        else:
            name = self._type_link(one.type_name)
        return f"{'repeated ' if repeated else 'optional ' if one.proto3_optional else ''}{name}"

    def _type_link(self, full_name: str) -> str:
        name = full_name.removeprefix(f".{self._package}.")
        return f"[{name}](#{self._anchors[name]})"

    # ------------------------------------------------------------------ comments

    def _paragraphs(self, comment: str, inside: str) -> str:
        """A comment as paragraphs and lists."""
        blocks: list[str] = []
        lines: list[str] = []
        for raw in [*comment.splitlines(), ""]:
            line = raw.strip()
            starts_item = line.startswith("- ")
            if (not line or starts_item) and lines:
                blocks.append(self._inline(" ".join(lines), inside))
                lines = []
            if line:
                lines.append(line)
        text = ""
        for block in blocks:
            item = block.startswith("- ")
            text += ("\n" if item and text.rpartition("\n")[2].startswith("- ") else "\n\n") + block
        return text.strip()

    def _inline(self, comment: str, inside: str) -> str:
        """A comment as one line with links; `inside` is the message whose fields go by their own name."""
        flat = " ".join(comment.split())
        parts, end = [], 0
        for found in _CODE.finditer(flat):
            parts += [self._prose(flat[end : found.start()], inside), self._code(found[1], inside)]
            end = found.end()
        parts.append(self._prose(flat[end:], inside))
        return "".join(parts)

    def _code(self, code: str, inside: str) -> str:
        anchor = self._anchors.get(f"{inside}.{code}") or (self._anchors.get(code) if "." in code else None)
        shown = f"`{code}`"
        return f"[{shown}](#{anchor})" if anchor else shown

    def _prose(self, text: str, inside: str) -> str:
        parts, end = [], 0
        for found in _WORD.finditer(text):
            name = found[0]
            anchor = self._anchors.get(name)
            if anchor is None or name == inside or not _is_meant(name, text[: found.start()]):
                continue
            parts += [_escape(text[end : found.start()]), f"[{_escape(name)}](#{anchor})"]
            end = found.end()
        return "".join([*parts, _escape(text[end:])])


def _is_meant(name: str, before: str) -> bool:
    """Whether a word is the name of something here, and not an English word that begins a sentence."""
    if "." in name:
        return True
    if "_" in name or name.isupper():
        return len(name) > 3
    if re.search(r"[a-z][A-Z]", name):
        return True
    return name[0].isupper() and not _SENTENCE_ENDS.search(before)


def _prefix(enum: EnumDescriptorProto) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", enum.name).upper() + "_"


def _ends(type_name: str, entry: str) -> bool:
    return type_name.endswith(f".{entry}")


def _name(item: _Item, name: str, *, inside: bool = False) -> str:
    mark = "◦ " if inside else ""
    return f"{mark}`{name}`{{ #{item.name}.{name} }}"


def _escape(text: str) -> str:
    """Text as Markdown that says just that, in a cell of a table too."""
    return re.sub(r"([\\*_\[\]])", r"\\\1", html.escape(text, quote=False)).replace("|", "&#124;")


def _table(head: str, rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {head} | |", "| --- | --- |"]
    lines += [f"| {name}<br><small>{kind}</small> | {text} |" for name, kind, text in rows]
    return "\n".join(lines)
