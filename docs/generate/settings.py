"""The reference of a server's settings, from the one table that flags and variables are read by."""

import dataclasses
from typing import Any

from sonde_server.config import PREFIX, Settings

from docs.generate.text import cell, table

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def page() -> str:
    """The page, in Markdown."""
    return f"""# Settings of the server

This page is generated from `sonde_server.config.Settings`. Every setting is a flag of `sonde-server` and an environment
variable. If both are given, the flag counts. To turn a switch off, use its `--no-` form, or `false` in the variable. An
invalid value ends the command with status 2 and a message that says what is accepted.

{table(["Flag, variable", "Default", "Meaning"], [_row(one) for one in dataclasses.fields(Settings)])}

`sonde-server token NAME` creates a bearer token. It prints the line for the `--tokens` file on standard output, and the
token itself, once, on standard error.

`sonde_server.local` accepts the settings that concern the model. Their names are those of the variables, in lower case
and without `{PREFIX}`. See [A model in this process](python.md#a-model-in-this-process).
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
