"""The `sonde` command: the client for the shell."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from operator import methodcaller
from pathlib import Path
from typing import Any, Final

import numpy as np

from sonde import errors
from sonde._answers.predictions import Continuation, Prediction
from sonde._arrays import visible
from sonde._ask.cases import Cases
from sonde._ask.edits import Edit, add, along, noise, patch, replace, scale
from sonde._ask.names import ComponentName
from sonde._ask.plans import Generation, Plan, Sweep, sweep
from sonde._ask.prompts import Target
from sonde._ask.sites import Site, site
from sonde._connection.connection import TLS
from sonde._methods.attribution_patching import AttributionPatching
from sonde._methods.causal_tracing import CausalTracing
from sonde._methods.circuit_discovery import CircuitDiscovery
from sonde._methods.method import Method
from sonde._methods.token_probability import TokenProbability
from sonde._needed import check, other_prompt, prompt_of
from sonde._options import SWEPT, parse
from sonde._show import console, plotting, terminal
from sonde._show.report import as_json
from sonde.client import Client

_SUFFIXES: Final = frozenset({".png", ".pdf", ".svg"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    console.prepare()
    try:
        try:
            return _run(arguments)
        finally:
            console.write("")  # What --help has printed is not written yet.
    except BrokenPipeError:
        # The reader of the pipe is gone. Keep the interpreter from reporting it again on exit.
        console.discard(sys.stdout)
        return 0
    except console.Unwritable as error:
        return _fail(str(error), 1)


def _run(arguments: Sequence[str] | None) -> int:
    options = parse(arguments)
    try:
        check(options)
        _COMMANDS[options.command](options)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except errors.SondeError as error:
        return _fail(_describe(error), _status(error))
    except ImportError as error:
        return _fail(str(error), 1)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _fail(f"{error.filename or 'file'}: {error.strerror or error}", 2)
    return 0


def _fail(message: str, status: int) -> int:
    console.complain(f"sonde: {' '.join(message.split())}\n")
    return status


def _status(error: errors.SondeError) -> int:
    match error:
        case errors.InvalidRequest() | errors.InvalidSettings() | errors.Unsupported():
            return 2
        case errors.NotServing() | errors.Busy() | errors.DeadlineExceeded():
            return 3
        case errors.Unauthenticated() | errors.PermissionDenied():
            return 4
        case _:
            return 1


def _describe(error: errors.SondeError) -> str:
    message = str(error)
    if isinstance(error, errors.Busy) and error.retry_after is not None:
        message += f" (try again in {error.retry_after:g} s)"
    if error.request_id:
        message += f" (request {error.request_id})"
    return message


# ---------------------------------------------------------------------- commands


def _model(options: argparse.Namespace) -> None:
    with _client(options) as client:
        model = client.model
    _show(options, model.to_text, lambda: asdict(model))


def _trace(options: argparse.Namespace) -> None:
    _check_plot(options)
    method: Any = _method(options)
    if options.plot and method is None:
        raise errors.InvalidRequest.at(
            "--plot", "nothing to draw; add --subject, --lens, --attribute-from or --discover-from"
        )
    prompt: Any = prompt_of(options)
    with _client(options) as client:
        result: Any = client.trace(
            prompt,
            targets=_targets(options),
            method=method,
            position=options.read_at,
            top_k=options.top,
            reduce=options.reduce,
            dry_run=options.dry_run,
            progress=_progress(options),
        )
    _draw(options, result)
    _show(options, lambda: result.to_text(options.top), lambda: as_json(result))


def _method(options: argparse.Namespace) -> Method[Any] | None:
    tracing = options.subject is not None or options.counterfactual is not None
    asked = {
        "--lens": options.lens,
        "--subject" if options.counterfactual is None else "--counterfactual": tracing,
        "--attribute-from": options.attribute_from is not None,
        "--discover-from": options.discover_from is not None,
    }
    given = [name for name, wanted in asked.items() if wanted]
    if len(given) > 1:
        raise errors.InvalidRequest(f"{given[0]} and {given[1]} cannot be combined: choose one method")
    if options.attribute_from is not None:
        components: list[ComponentName] = options.component or []
        if not components and options.edges is None:
            components = ["residual_post", "attention_out", "mlp_out"]
        source: Any = other_prompt(options, options.attribute_from)
        return AttributionPatching(
            source=source,
            components=components,
            integration_steps=options.steps,
            metric=options.metric,
            verify_top=options.verify or 0,
            edges=options.edges,
            integration=options.integration,
        )
    if options.discover_from is not None:
        kept = {} if options.threshold is None else {"threshold": options.threshold}
        other: Any = other_prompt(options, options.discover_from)
        return CircuitDiscovery(other, **kept)
    if options.lens:
        return TokenProbability(gradient_norms=options.gradients)
    if not tracing:
        return None
    return CausalTracing(
        subject=options.subject,
        counterfactual=other_prompt(options, options.counterfactual),
        samples=options.samples,
        seed=options.seed,
        deviations=options.noise,
        components=options.component,
        window=options.window,
        layers=options.layers,
        positions=options.positions,
    )


def _intervene(options: argparse.Namespace) -> None:
    _check_plot(options)
    prompt: Any = prompt_of(options)
    with _client(options) as client:
        result: Any = client.intervene(
            prompt,
            _plan(options),
            targets=_targets(options),
            position=options.read_at,
            top_k=options.top,
            kl_divergence=options.kl,
            generation=Generation(options.generate) if options.generate else None,
            reduce=options.reduce,
            dry_run=options.dry_run,
            progress=_progress(options),
        )
    _draw(options, result)
    _show(options, lambda: result.to_text(options.top), lambda: as_json(result))


def _generate(options: argparse.Namespace) -> None:
    edits = _lasting_edits(options)
    generation = Generation(
        options.tokens,
        options.temperature,
        options.seed,
        options.ignore_end_token,
        options.top_p,
        options.stop or (),
        options.samples,
        options.log_probabilities,
    )
    prompt = prompt_of(options)
    with _client(options) as client:
        if options.dry_run or options.json:
            result: Any = client.intervene(prompt, [edits], top_k=0, generation=generation, dry_run=options.dry_run)
            _show(options, result.to_text, lambda: as_json(result))
            return
        if isinstance(prompt, Cases):
            _continue_cases(client, prompt, edits, generation)
            return
        shown, last = 0, None
        for last in client.stream_intervene(prompt, [edits], top_k=0, generation=generation):
            said, clean = last[0].continuation, last.clean.continuation
            if options.samples == 1 and said is not None and clean is not None:
                _write(said.text[shown:])
                shown = len(said.text)
    if last is not None:
        _write(_texts(last[0])[shown:])
        if options.sites:
            _write(f"\nunchanged:\n{_texts(last.clean)}")


def _continue_cases(client: Client, cases: Cases, edits: list[Edit], generation: Generation) -> None:
    """Print what the model says in each case, as soon as it is complete."""
    shown = 0
    for known in client.stream_intervene(cases, [edits], top_k=0, generation=generation):
        for number in range(shown, len(known)):
            _write(f"case {number}: {_texts(known[number][0])}")
        shown = len(known)


def _texts(run: Prediction) -> str:
    """What a run generated, with the log-probabilities that were requested."""
    several = len(run.continuations) > 1
    return "\n".join(
        (f"sample {said.sample}:\n" if several else "") + said.text + "\n" + _probable(said)
        for said in run.continuations
    )


def _probable(said: Continuation) -> str:
    if not len(said.log_probabilities):
        return ""
    pairs = zip(said.tokens, said.log_probabilities, strict=True)
    rows = [[repr(visible(token.text)), float(value)] for token, value in pairs]
    return "\n" + terminal.table(["token", "log p"], rows) + "\n"


def _lasting_edits(options: argparse.Namespace) -> list[Edit]:
    """The edits at the given places, from a position on, in the prompt and in the generated text."""
    if not options.sites:
        # Only the runs of a plan generate text, so this plan changes nothing.
        return [scale(site("logits", positions=[-1]), 1.0)]
    operation = _operation(options)
    return [
        operation(site(component, layers=layers, units=units, from_position=options.from_position or 0))
        for component, layers, units in options.sites
    ]


def _write(text: str) -> None:
    """Print at once, with control characters escaped, because a model may generate anything."""
    console.write("".join(c if c in "\n\t" else visible(c) for c in text))


def _plan(options: argparse.Namespace) -> Plan | Sweep:
    operation = _operation(options)
    if options.sweep:
        if options.sites:
            raise errors.InvalidRequest.at(
                "--sweep", "expected --layers, --units and --positions for the places of a sweep"
            )
        component: ComponentName = SWEPT.get(options.sweep) or options.sweep
        swept = site(component)
        return sweep(operation(swept), layers=options.layers, units=options.units, positions=options.positions)
    if options.layers or options.units:
        raise errors.InvalidRequest.at(
            "--layers, --units", "these need --sweep; for a single place use --neuron LAYER:UNIT"
        )
    if not options.sites:
        raise errors.InvalidRequest.at(
            "intervene", "expected a place, such as --neuron 3:17 or --sweep neuron, got none"
        )
    places = [
        site(component, layers=layers, units=units, positions=options.positions)
        for component, layers, units in options.sites
    ]
    edits = [operation(place) for place in places]
    return list(edits) if options.separately else [edits]


def _operation(options: argparse.Namespace) -> Callable[[Site], Edit]:
    """The edit at a place, along a path where one is given."""
    edit = _change(options)
    if not getattr(options, "along", None):
        return edit
    receivers = [site(component, layers=layers, units=units) for component, layers, units in options.along]
    between = {"heads": site("head_out"), "mlps": site("mlp_out")}
    through = [between[name] for name in options.through or ()]
    return lambda place: along(edit(place), receivers, through)


def _change(options: argparse.Namespace) -> Callable[[Site], Edit]:
    if options.set is not None:
        value = _array(options.set)
        return lambda place: replace(place, value)
    if options.add is not None:
        value = _array(options.add)
        return lambda place: add(place, value)
    if options.noise is not None:
        return lambda place: noise(place, options.noise, seed=options.seed)
    if options.patch_from is not None:
        source: Any = other_prompt(options, options.patch_from)
        return lambda place: patch(place, source)
    factor = 0.0 if options.scale is None else options.scale
    return lambda place: scale(place, factor)


# ---------------------------------------------------------------------- pieces


def _client(options: argparse.Namespace) -> Client:
    tls: TLS | bool = options.tls
    if options.tls_ca or options.tls_cert or options.tls_key:
        tls = TLS(options.tls_ca, options.tls_cert, options.tls_key)
    return Client(options.address, token=options.token or None, tls=tls, timeout=options.timeout)


def _targets(options: argparse.Namespace) -> list[Target] | None:
    if options.contrast is not None and not options.target:
        raise errors.InvalidRequest.at("--contrast", "expected --target with it")
    return [Target(text, options.contrast) for text in options.target] if options.target else None


def _progress(options: argparse.Namespace) -> bool:
    return bool(sys.stderr.isatty() and not options.json)


def _show(options: argparse.Namespace, text: Callable[[], str], data: Callable[[], dict[str, Any]]) -> None:
    if options.json:
        # Written out, a character that the console lacks is still JSON.
        plain = not console.takes_unicode(sys.stdout)
        console.write(json.dumps(data(), ensure_ascii=plain, allow_nan=False) + "\n")
    else:
        console.write(text() + "\n")


def _check_plot(options: argparse.Namespace) -> None:
    """Before a long run, check that its figure can be drawn and saved."""
    if not options.plot:
        return
    if Path(options.plot).suffix.lower() not in _SUFFIXES:
        raise errors.InvalidRequest.at(
            "--plot", f"expected a file that ends in .png, .pdf or .svg, got {options.plot!r}"
        )
    if options.cases and not options.reduce:
        raise errors.InvalidRequest.at("--plot", "expected --reduce mean with it where there are cases")
    plotting.require()


def _draw(options: argparse.Namespace, result: Any) -> None:
    if not options.plot or result.dry_run:
        return
    methodcaller("plot", options.plot)(result)
    console.complain(f"wrote {options.plot}\n")


def _array(path: str) -> "np.ndarray[Any, np.dtype[Any]]":
    try:
        loaded = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise errors.InvalidRequest.at(path, f"expected an array saved by numpy.save: {error}") from None
    if not isinstance(loaded, np.ndarray):
        raise errors.InvalidRequest.at(path, "expected one array saved by numpy.save, got several")
    return loaded


_COMMANDS: Final[dict[str, Callable[[argparse.Namespace], None]]] = {
    "model": _model,
    "trace": _trace,
    "intervene": _intervene,
    "generate": _generate,
}


if __name__ == "__main__":
    sys.exit(main())
