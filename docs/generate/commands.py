"""The reference of the `sonde` command, from its own parser."""

import argparse
import os
from collections.abc import Iterator
from typing import Final
from unittest import mock

from sonde._options import EXIT_CODES, build_parser

from docs.generate.text import cell, table

_INTRODUCTION: Final = """\
This page is generated from the command's own parser. Lists of layers, units and positions are numbers and ranges: `3`,
`0,2,5`, `0-7`. Numbers with a minus sign count from the end. Every command accepts the options under
[Connection](#connection)."""


def page() -> str:
    """The page, in Markdown."""
    # What the builder's own environment says is no default.
    with mock.patch.dict(os.environ):
        for name in ("SONDE_ADDRESS", "SONDE_TOKEN"):
            os.environ.pop(name, None)
        parser = build_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    parts = [
        "# The `sonde` command",
        _INTRODUCTION,
    ]
    for name, command in commands.choices.items():
        parts += [f"## sonde {name}", *_command(command)]
    parts += ["## Connection", *_tables(next(iter(commands.choices.values())), connection=True)]
    parts += ["## Exit status and environment", f"```text\n{EXIT_CODES}\n```"]
    return "\n\n".join(parts) + "\n"


def _command(command: argparse.ArgumentParser) -> Iterator[str]:
    yield cell(command.description or "")
    yield from _tables(command, connection=False)


def _tables(command: argparse.ArgumentParser, *, connection: bool) -> Iterator[str]:
    """A table for each group of options: that of the connection, which all commands have, or the others."""
    named = {"positional arguments": "Argument", "options": "Option", "connection": "Option"}
    for group in command._action_groups:
        rows = [_row(action) for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        title = group.title or "options"
        if rows and (title == "connection") is connection:
            yield table([named.get(title, title.capitalize()), "Meaning"], rows)


def _row(action: argparse.Action) -> tuple[str, str]:
    if not action.option_strings:
        return f"`{action.dest}`", cell(_help(action))
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    if action.choices is not None and action.metavar is None:
        value = f" {{{','.join(map(str, action.choices))}}}"
    return ", ".join(f"`{option}{value}`" for option in action.option_strings), cell(_help(action))


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("%%", "%")
