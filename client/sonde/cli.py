"""The `sonde` command: the client's questions from a shell."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from sonde import errors
from sonde._answers.interventions import InterventionResult
from sonde._answers.results import TraceResult
from sonde._arrays import visible
from sonde._ask.edits import Edit, add, noise, patch, replace, scale
from sonde._ask.names import COMPONENTS, METRICS, ComponentName
from sonde._ask.plans import Generation, Plan, Sweep, sweep
from sonde._ask.prompts import Target
from sonde._ask.sites import Site, site
from sonde._connection.addresses import DEFAULT_ADDRESS
from sonde._connection.connection import TLS
from sonde._connection.timeouts import check_timeout
from sonde._methods.attribution_patching import AttributionPatching
from sonde._methods.causal_tracing import CausalTracing
from sonde._methods.token_probability import TokenProbability
from sonde._show import plotting
from sonde._show.report import as_json
from sonde._version import __version__
from sonde.client import Client

EXIT_CODES: Final = """exit status:
  0  answered
  1  the server failed, or its answer cannot be read
  2  the request is wrong
  3  not now: nobody serves there, too busy, or out of time
  4  the server wants a token, or a better one
  130  interrupted

environment: SONDE_ADDRESS and SONDE_TOKEN stand in for --address and --token."""

_SWEPT: Final[dict[str, ComponentName]] = {
    "neuron": "neuron",
    "head": "head_out",
    "residual": "residual_post",
    "mlp": "mlp_out",
    "attention": "attention_out",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = build_parser().parse_args(arguments)
    try:
        run: Callable[[argparse.Namespace], None] = options.run
        run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader of a pipe has gone; keep the interpreter from complaining while it closes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except errors.SondeError as error:
        return _fail(_describe(error), _status(error))
    except ImportError as error:
        return _fail(str(error), 1)
    except OSError as error:
        return _fail(f"{error.filename or 'file'}: {error.strerror or error}", 2)
    return 0


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"sonde: {' '.join(message.split())}\n")
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
    with _client(options) as client:
        result = client.trace(
            options.prompt,
            targets=_targets(options),
            method=_method(options),
            position=options.read_at,
            top_k=options.top,
            dry_run=options.dry_run,
            progress=_progress(options),
        )
    _draw(options, result)
    _show(options, lambda: result.to_text(options.top), lambda: as_json(result))


def _method(options: argparse.Namespace) -> AttributionPatching | CausalTracing | TokenProbability | None:
    tracing = options.subject is not None or options.counterfactual is not None
    asked = {"--lens": options.lens, "--subject": tracing, "--attribute-from": options.attribute_from is not None}
    given = [name for name, wanted in asked.items() if wanted]
    if len(given) > 1:
        raise errors.InvalidRequest.at(given[0], f"it is another method than {given[1]}; ask for one at a time")
    if options.attribute_from is not None:
        components: list[ComponentName] = options.component or []
        if not components and options.edges is None:
            components = ["residual_post", "attention_out", "mlp_out"]
        return AttributionPatching(
            source=options.attribute_from,
            components=components,
            integration_steps=options.steps,
            metric=options.metric,
            verify_top=options.verify,
            edges=options.edges,
        )
    if options.lens:
        return TokenProbability(gradient_norms=options.gradients)
    if not tracing:
        return None
    return CausalTracing(
        subject=options.subject,
        counterfactual=options.counterfactual,
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
    with _client(options) as client:
        result = client.intervene(
            options.prompt,
            _plan(options),
            targets=_targets(options),
            position=options.read_at,
            top_k=options.top,
            kl_divergence=options.kl,
            generation=Generation(options.generate) if options.generate else None,
            dry_run=options.dry_run,
            progress=_progress(options),
        )
    _draw(options, result)
    _show(options, lambda: result.to_text(options.top), lambda: as_json(result))


def _generate(options: argparse.Namespace) -> None:
    edits = _lasting_edits(options)
    generation = Generation(options.tokens, options.temperature, options.seed, options.ignore_end_token)
    with _client(options) as client:
        if options.dry_run or options.json:
            result = client.intervene(options.prompt, [edits], top_k=0, generation=generation, dry_run=options.dry_run)
            _show(options, result.to_text, lambda: as_json(result))
            return
        shown, unchanged = 0, ""
        for known in client.stream_intervene(options.prompt, [edits], top_k=0, generation=generation):
            said, clean = known[0].continuation, known.clean.continuation
            if said is not None and clean is not None:
                _write(said.text[shown:])
                shown, unchanged = len(said.text), clean.text
    _write("\n")
    if options.sites:
        _write(f"\nunchanged:\n{unchanged}\n")


def _lasting_edits(options: argparse.Namespace) -> list[Edit]:
    """The edits at the places named, from a position on, in the prompt and in what is generated."""
    if not options.sites:
        # The contract continues the runs of a plan, so the plan is one that changes nothing.
        return [scale(site("logits", positions=[-1]), 1.0)]
    operation = _operation(options)
    return [
        operation(site(component, layers=layers, units=units, from_position=options.from_position))
        for component, layers, units in options.sites
    ]


def _write(text: str) -> None:
    """Print at once; what a model says may be anything, so control characters are spelled out."""
    sys.stdout.write("".join(c if c in "\n\t" else visible(c) for c in text))
    sys.stdout.flush()


def _plan(options: argparse.Namespace) -> Plan | Sweep:
    operation = _operation(options)
    if options.sweep:
        if options.sites:
            raise errors.InvalidRequest.at("--sweep", "it names its places by --layers, --units and --positions")
        component: ComponentName = _SWEPT.get(options.sweep) or options.sweep
        swept = site(component)
        return sweep(operation(swept), layers=options.layers, units=options.units, positions=options.positions)
    if options.layers or options.units:
        raise errors.InvalidRequest.at("--layers, --units", "they go with --sweep; a place is --neuron LAYER:UNIT")
    if not options.sites:
        raise errors.InvalidRequest.at("intervene", "no place is named; --neuron 3:17 would do, or --sweep neuron")
    places = [
        site(component, layers=layers, units=units, positions=options.positions)
        for component, layers, units in options.sites
    ]
    edits = [operation(place) for place in places]
    return list(edits) if options.separately else [edits]


def _operation(options: argparse.Namespace) -> Callable[[Site], Edit]:
    if options.set is not None:
        value = _array(options.set)
        return lambda place: replace(place, value)
    if options.add is not None:
        value = _array(options.add)
        return lambda place: add(place, value)
    if options.noise is not None:
        return lambda place: noise(place, options.noise, seed=options.seed)
    if options.patch_from is not None:
        return lambda place: patch(place, options.patch_from)
    return lambda place: scale(place, options.scale)


# ---------------------------------------------------------------------- pieces


def _client(options: argparse.Namespace) -> Client:
    tls: TLS | bool = options.tls
    if options.tls_ca or options.tls_cert or options.tls_key:
        tls = TLS(options.tls_ca, options.tls_cert, options.tls_key)
    return Client(options.address, token=options.token or None, tls=tls, timeout=options.timeout)


def _targets(options: argparse.Namespace) -> list[Target] | None:
    if options.contrast is not None and not options.target:
        raise errors.InvalidRequest.at("--contrast", "it goes with --target")
    return [Target(text, options.contrast) for text in options.target] if options.target else None


def _progress(options: argparse.Namespace) -> bool:
    return bool(sys.stderr.isatty() and not options.json)


def _show(options: argparse.Namespace, text: Callable[[], str], data: Callable[[], dict[str, Any]]) -> None:
    print(json.dumps(data(), ensure_ascii=False, allow_nan=False) if options.json else text())


def _check_plot(options: argparse.Namespace) -> None:
    """Find out before a long run that its figure could not be drawn."""
    if options.plot:
        plotting.require()


def _draw(options: argparse.Namespace, result: TraceResult | InterventionResult) -> None:
    if not options.plot or result.dry_run:
        return
    plot = getattr(result, "plot", None)
    if plot is None:
        raise errors.InvalidRequest.at(
            "--plot", "a prediction alone has no figure; --subject, --lens or --attribute-from has"
        )
    try:
        plot(options.plot)
    except ValueError as error:  # An ending that matplotlib does not know.
        raise errors.InvalidRequest.at("--plot", str(error)) from None
    sys.stderr.write(f"wrote {options.plot}\n")


def _array(path: str) -> "np.ndarray[Any, np.dtype[Any]]":
    try:
        loaded = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise errors.InvalidRequest.at(path, f"not an array as numpy.save writes it: {error}") from None
    if not isinstance(loaded, np.ndarray):
        raise errors.InvalidRequest.at(path, "it holds several arrays; one, as numpy.save writes it, would do")
    return loaded


def _ranges(text: str) -> list[int]:
    """`3`, `0,2,5`, `0-7` and mixtures; a leading minus counts from the end."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-") if not part.strip().startswith("-") else (part, "", "")
        try:
            found.extend(range(int(first), int(last) + 1) if dash else [int(first)])
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r} is no number and no range; 3, 0,2,5 or 0-7 would do") from None
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is an empty range")
    return found


def _seconds(text: str) -> float | None:
    try:
        return check_timeout(float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number of seconds greater than 0, got {text!r}") from None


class _Place(argparse.Action):
    """Collects `--neuron LAYER:UNIT` and its like, in the order given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        layers, colon, units = str(values).partition(":")
        try:
            place = (self.const, _ranges(layers), _ranges(units) if colon else None)
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument {option_string}: {error}")
        namespace.sites = [*(namespace.sites or []), place]


# ---------------------------------------------------------------------- options


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="sonde",
        description="See inside a transformer and change it.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sonde {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_model(commands)
    _add_trace(commands)
    _add_intervene(commands)
    _add_generate(commands)
    return parser


def _command(commands: Any, name: str, text: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=EXIT_CODES, formatter_class=raw, allow_abbrev=False
    )
    parser.set_defaults(run=run)
    where = parser.add_argument_group("connection")
    address = os.environ.get("SONDE_ADDRESS") or DEFAULT_ADDRESS
    where.add_argument("--address", default=address, help=f"host and port ({DEFAULT_ADDRESS}); several with commas")
    where.add_argument("--token", default=os.environ.get("SONDE_TOKEN"), help="sent with every call")
    where.add_argument("--tls", action="store_true", help="encrypt, trusting the usual authorities")
    where.add_argument("--tls-ca", metavar="PEM", help="encrypt, trusting this authority")
    where.add_argument("--tls-cert", metavar="PEM", help="the client's own certificate")
    where.add_argument("--tls-key", metavar="PEM", help="its key")
    where.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="give up after this long")
    parser.add_argument("--json", action="store_true", help="print JSON, everything in it")
    return parser


def _add_model(commands: Any) -> None:
    _command(commands, "model", "Describe the hosted model.", _model)


def _add_readout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="the text that the model reads")
    parser.add_argument(
        "--target", action="append", metavar="TOKEN", help="measure this token, such as ' Paris'; repeatable"
    )
    parser.add_argument("--contrast", metavar="TOKEN", help="logits become differences to this token's")
    parser.add_argument("--read-at", type=int, metavar="POSITION", help="where the prediction is read (the last)")
    parser.add_argument("--top", type=int, default=10, metavar="K", help="how many tokens or places to list (10)")
    parser.add_argument("--layers", "--layer", type=_ranges, metavar="LAYERS", help="such as 3, or 0-5,7 (all)")
    parser.add_argument("--positions", "--position", type=_ranges, metavar="POSITIONS", help="such as 4 or -1 (all)")
    parser.add_argument("--seed", type=int, help="of the noise (1)")
    parser.add_argument("--plot", metavar="FILE", help="draw the result; PNG, PDF or SVG by its ending")
    parser.add_argument("--dry-run", action="store_true", help="only say what it would cost")


def _add_trace(commands: Any) -> None:
    parser = _command(commands, "trace", "Report how a prediction comes about.", _trace)
    _add_readout(parser)
    parser.add_argument("--lens", action="store_true", help="read the target after every block (logit lens)")
    parser.add_argument("--gradients", action="store_true", help="with --lens: gradient norms by block and position")
    tracing = parser.add_argument_group("causal tracing")
    tracing.add_argument("--subject", metavar="TEXT", help="corrupt this part of the prompt, restore state by state")
    tracing.add_argument("--counterfactual", metavar="PROMPT", help="corrupt by another prompt of as many tokens")
    tracing.add_argument("--samples", type=int, help="draws of the noise (10)")
    tracing.add_argument("--noise", type=float, metavar="DEVIATIONS", help="in deviations of the embedding (3)")
    tracing.add_argument("--window", type=int, help="layers restored together for MLP and attention (10)")
    tracing.add_argument(
        "--component",
        action="append",
        choices=list(COMPONENTS),
        metavar="NAME",
        help="restore this one, or attribute to it; again for more",
    )
    attribution = parser.add_argument_group("attribution patching")
    attribution.add_argument(
        "--attribute-from", metavar="PROMPT", help="estimate what patching each place from this prompt would do"
    )
    attribution.add_argument("--steps", type=int, help="gradients between the two prompts that are averaged (1)")
    attribution.add_argument("--metric", choices=list(METRICS), help="what is differentiated (logit)")
    attribution.add_argument("--edges", type=int, metavar="K", help="the K largest edges between components")
    attribution.add_argument("--verify", type=int, default=0, metavar="K", help="really patch the K largest")


def _add_intervene(commands: Any) -> None:
    parser = _command(commands, "intervene", "Change a run, and show what it did to the prediction.", _intervene)
    _add_readout(parser)
    places = _add_places(parser)
    places.add_argument("--separately", action="store_true", help="one run for each place, not one for all")
    parser.add_argument(
        "--sweep",
        choices=[*_SWEPT, *(name for name in COMPONENTS if name not in _SWEPT)],
        metavar="COMPONENT",
        help=f"one run per layer, unit and position: {', '.join(_SWEPT)} or a component's name",
    )
    parser.add_argument("--units", "--unit", type=_ranges, metavar="UNITS", help="of the sweep (all)")
    operations = _add_operations(parser)
    operations.add_argument("--noise", type=float, metavar="DEVIATION", help="add normal noise")
    operations.add_argument("--patch-from", metavar="PROMPT", help="take what this prompt has there")
    parser.add_argument("--kl", action="store_true", help="also the KL divergence of every run")
    parser.add_argument("--generate", type=int, metavar="TOKENS", help="continue every run")


def _add_generate(commands: Any) -> None:
    parser = _command(commands, "generate", "Continue the prompt, token by token, with edits in force.", _generate)
    parser.add_argument("prompt", help="the text that the model reads")
    parser.add_argument("--tokens", type=int, default=40, metavar="N", help="how many are added at most (40)")
    parser.add_argument("--temperature", type=float, default=0.0, help="of sampling; 0 is always the most probable (0)")
    parser.add_argument("--seed", type=int, help="of sampling (1)")
    parser.add_argument("--ignore-end-token", action="store_true", help="go on past an end token")
    parser.add_argument("--dry-run", action="store_true", help="only say what it would cost at most")
    places = _add_places(parser)
    places.add_argument(
        "--from-position", type=int, default=0, metavar="POSITION", help="edit from here on, what is generated too (0)"
    )
    _add_operations(parser)
    # Neither is the same at every position, so neither goes on.
    parser.set_defaults(noise=None, patch_from=None)


def _add_places(parser: argparse.ArgumentParser) -> Any:
    places = parser.add_argument_group("places, edited together; each may be repeated")
    for option, component in _SWEPT.items():
        places.add_argument(
            f"--{option}",
            action=_Place,
            const=component,
            dest="sites",
            metavar="LAYER:UNIT" if option in {"neuron", "head"} else "LAYER",
            help=f"{component}, such as {'3:17' if option in {'neuron', 'head'} else '3'} or 0-2",
        )
    return places


def _add_operations(parser: argparse.ArgumentParser) -> Any:
    operations = parser.add_argument_group("what to do there").add_mutually_exclusive_group()
    operations.add_argument("--scale", type=float, default=0.0, metavar="FACTOR", help="multiply (0: ablate)")
    operations.add_argument("--set", metavar="NPY", help="put this array there")
    operations.add_argument("--add", metavar="NPY", help="add this array (steering)")
    return operations


if __name__ == "__main__":
    sys.exit(main())
