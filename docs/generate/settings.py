"""The reference of a server's settings, from the one table that flags and variables are read by."""

import dataclasses
from typing import Any

from sonde_server.config import PREFIX, Settings

from docs.generate.text import cell, table

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def page() -> str:
    """The page, in Markdown."""
    return f"""# Settings of the server

Generated from `sonde_server.configSettings`. Every setting is a flag of `sonde-server` and an environment variable; a
flag goes before its variable. A switch is turned off by its `--no-` form, or by `false` in the variable. A value that
cannot be used ends the command with status 2 and a message that says what would do.

{table(["Flag, variable", "Default", "Meaning"], [_row(one) for one in dataclasses.fields(Settings)])}

`sonde-server token NAME` makes a bearer token: the line for the file of `--tokens` goes to standard output, the token
itself, once, to standard error.

`sonde_server.local` takes those of them that are about the model, by the names of the variables in small letters and
without `{PREFIX}`; see [A model in this process](python.md#a-model-in-this-process).
"""


def _row(one: "dataclasses.Field[Any]") -> tuple[str, str, str]:
    name = one.name.replace("_", "-")
    shown = f"`--{name}`{{ #{name} }}<br><small>`{PREFIX}{one.name.upper()}`</small>"
    text = cell(str(one.metadata["help"]))
    if choices := one.metadata.get("choices"):
        text += f": {', '.join(f'`{choice}`' for choice in choices)}"
    return shown, default_of(one), text[:1].upper() + text[1:]


def default_of(one: "dataclasses.Field[Any]") -> str:
    """A default as people write it."""
    value: Any = one.default
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str):
        return f"`{value}`"
    for size, unit in _UNITS:
        if one.name.endswith("_bytes") and value and value % size == 0:
            return f"{value // size:,} {unit}"
    return f"{value:.0f}" if one.name == "port" else f"{value:,.10g}"
