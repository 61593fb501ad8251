"""The catalogue of errors, from the server's list of them and the client's."""

import grpc
from google.rpc import code_pb2
from sonde.errors import KINDS, SondeError
from sonde_server.serving.guards.catalogue import CATALOGUE, DEADLINE_EXCEEDED, INTERNAL, Entry

from docs.generate.text import cell, first_paragraph, table

_MEANINGS = {
    DEADLINE_EXCEEDED: "The caller's deadline, or --max-seconds, passed; the work was dropped.",
    INTERNAL: "A fault of the server. The log has it, under the request's id; the caller is told the id alone.",
}


def page() -> str:
    """The page, in Markdown."""
    entries = [(entry, first_paragraph(kind)) for kind, entry in CATALOGUE.items()] + list(_MEANINGS.items())
    heads = ["Reason, status", "In Python", "When"]
    return f"""# Error catalogue

Generated from the server's list of its errors and the client's mapping of statuses. How to handle them is in
[Errors](../concepts/errors.md); what details each of them carries is in [the contract](../../proto/README.md#errors).

{table(heads, [_row(*entry) for entry in entries])}

`sonde.SondeError` is the base of all kinds; its `retryable` says whether the same request may be answered a little
later, which is marked here with ↻.
"""


def _row(entry: Entry, meaning: str) -> tuple[str, str, str]:
    code = code_pb2.Code.Name(entry.code)
    kind = KINDS[grpc.StatusCode[code]]
    return f"`{entry.reason}`{{ #{entry.reason} }}<br><small>{code}</small>", _kind(kind), cell(meaning)


def _kind(kind: type[SondeError]) -> str:
    mark = " ↻" if kind.retryable else ""
    return f"[`{kind.__name__}`](python.md#sonde.{kind.__name__}){mark}"
