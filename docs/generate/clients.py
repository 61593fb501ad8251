"""The clients' methods for the reference: made by calls, so they have to be told to a reader of source alone."""

import copy
import inspect
from typing import Any, Final

import griffe
from sonde import AsyncClient, Client

_CLIENTS: Final[dict[str, type]] = {"client.Client": Client, "aio.AsyncClient": AsyncClient}


class Clients(griffe.Extension):
    """Gives the methods that a client makes of questions (`sonde._signatures`) their signatures and documentation."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Replace the assignments in the clients' classes by functions."""
        if pkg.name != "sonde":
            return
        for path, client in _CLIENTS.items():
            written = pkg[path]
            for name, member in list(written.members.items()):
                value = str(getattr(member, "value", ""))
                if "_signatures." in value:
                    build = pkg["_signatures"][value.rpartition("_signatures.")[2].removesuffix(")")]
                    written.set_member(name, _method(written, name, getattr(client, name), build, member))
            # What each client puts for the base's parameter, as in BaseClient[grpc.Channel, Model].
            model = written.bases[0].slice.elements[1]
            for name in ("model", "wait_until_serving"):
                written.set_member(name, _with_model(pkg["_base.BaseClient"][name], model))


def _method(
    owner: griffe.Class, name: str, method: Any, build: griffe.Function, member: griffe.Attribute
) -> griffe.Function:
    this = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
    answer = build.returns.slice if isinstance(build.returns, griffe.ExprSubscript) else build.returns
    returns: Any = answer
    if name.startswith("stream_"):
        stream = inspect.signature(method).return_annotation.__name__
        returns = f"{stream}[{answer}, None]" if stream == "AsyncGenerator" else f"{stream}[{answer}, None, None]"
    made = griffe.Function(
        name,
        parameters=griffe.Parameters(this, *build.parameters),
        returns=returns,
        docstring=griffe.Docstring(inspect.getdoc(method) or "", parser="google"),
        lineno=member.lineno,
        endlineno=member.endlineno,
        parent=owner,
    )
    if inspect.iscoroutinefunction(method):
        made.labels.add("async")
    return made


def _with_model(member: Any, model: Any) -> Any:
    made = copy.copy(member)
    if isinstance(made, griffe.Function):
        made.returns = model
    else:
        made.annotation = model
    return made
