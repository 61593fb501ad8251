"""The options of the `sonde` command."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from sonde._ask.names import COMPONENTS, INTEGRATIONS, METRICS, ComponentName, unknown_name
from sonde._connection.addresses import DEFAULT_ADDRESS
from sonde._connection.timeouts import check_timeout
from sonde._version import __version__

EXIT_CODES: Final = """exit status:
  0  success
  1  the server failed, or its answer cannot be read
  2  the request is wrong
  3  try again later: no server, too busy, or timed out
  4  authentication or permission failed
  130  interrupted

environment: SONDE_ADDRESS and SONDE_TOKEN are the defaults of --address and --token."""

SWEPT: Final[dict[str, ComponentName]] = {
    "neuron": "neuron",
    "head": "head_out",
    "residual": "residual_post",
    "mlp": "mlp_out",
    "attention": "attention_out",
}
"""The components that have an option of their own, by its name."""
PLACES: Final = tuple(f"--{name}" for name in SWEPT)
"""These options."""

RECEIVERS: Final[dict[str, ComponentName]] = {name: name for name in ("query", "key", "value", "mlp_out", "logits")}
"""What can read a change along a path."""
_WHOLE: Final = "LAYER"
"""The value of an option for a component that is edited over its full width."""
_UNITS: Final[Mapping[str, str]] = {
    "neuron": "neurons, such as 3:17, or 0-2 for all neurons of these layers",
    "head": "outputs of attention heads, such as 3:5, or 0-2 for all heads of these layers",
}
"""The components of which single units can be edited, and the help of their options."""
_INDEXED: Final = frozenset({*PLACES, "--layers", "--layer", "--positions", "--position", "--units", "--unit"})
"""The options whose value may begin with a number below 0."""
_NEGATIVE: Final = re.compile(r"-\d")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line; None is that of the process. A wrong one ends the program, with what was expected."""
    parser = build_parser()
    given = _joined(sys.argv[1:] if arguments is None else arguments)
    misplaced = _misplaced(parser, given)
    if misplaced is not None:
        parser.error(f"argument {misplaced}: expected after the command, as in sonde COMMAND {misplaced} ...")
    return parser.parse_args(given)


def _joined(given: Sequence[str]) -> list[str]:
    """Join `--neuron -1:17` to `--neuron=-1:17`: argparse reads a word that begins with a minus as an option."""
    joined: list[str] = []
    for word in given:
        if joined and joined[-1] in _INDEXED and _NEGATIVE.match(word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _misplaced(parser: argparse.ArgumentParser, given: Sequence[str]) -> str | None:
    """An option of a command that comes before it, where argparse would take its value for the command."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))  # noqa: SLF001
    own = {option for action in parser._actions for option in action.option_strings}  # noqa: SLF001
    theirs = {
        option
        for command in commands.choices.values()
        for action in command._actions  # noqa: SLF001 - argparse has no public list of its options
        for option in action.option_strings
    }
    for word in given:
        option = word.partition("=")[0]
        if word in commands.choices:
            return None
        if option in theirs - own:
            return option
    return None


def build_parser() -> argparse.ArgumentParser:
    """Create the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="sonde",
        description="See inside a transformer and change it.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sonde {__version__}")
    _add_shared(parser, os.environ.get("SONDE_ADDRESS") or DEFAULT_ADDRESS, os.environ.get("SONDE_TOKEN"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_model(commands)
    _add_trace(commands)
    _add_intervene(commands)
    _add_generate(commands)
    return parser


def _command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=EXIT_CODES, formatter_class=raw, allow_abbrev=False
    )
    parser.set_defaults(command=name)
    _add_shared(parser, argparse.SUPPRESS, argparse.SUPPRESS)
    return parser


def _add_shared(parser: argparse.ArgumentParser, address: str | None, token: str | None) -> None:
    """Add the options that are right before the command and after it. The defaults are those of the first place."""
    unset: dict[str, Any] = {"default": argparse.SUPPRESS} if address == argparse.SUPPRESS else {}
    where = parser.add_argument_group("connection")
    where.add_argument(
        "--address", default=address, help=f"host and port ({DEFAULT_ADDRESS}); separate several with commas"
    )
    where.add_argument("--token", default=token, help="the access token to send with each call")
    where.add_argument(
        "--tls", action="store_true", help="use TLS and the certificate authorities that come with gRPC", **unset
    )
    where.add_argument("--tls-ca", metavar="PEM", help="use TLS and trust this CA certificate", **unset)
    where.add_argument("--tls-cert", metavar="PEM", help="the client's own certificate", **unset)
    where.add_argument("--tls-key", metavar="PEM", help="the key of that certificate", **unset)
    where.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="give up after this many seconds", **unset)
    parser.add_argument("--json", action="store_true", help="print the full result as JSON", **unset)


def _add_model(commands: Any) -> None:
    _command(commands, "model", "Describe the hosted model.")


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="the text that the model reads")
    parser.add_argument(
        "--chat", action="store_true", help="the prompt is what a user says, written by the model's own chat template"
    )
    parser.add_argument(
        "--image",
        metavar="FILE",
        help="the image, as PNG or JPEG, that the prompt has a placeholder for (`sonde model` says which)",
    )
    parser.add_argument("--system", metavar="TEXT", help="with --chat: the message of the system before it")
    parser.add_argument(
        "--cases",
        metavar="FILE",
        help='many prompts instead of one: JSON lines such as {"prompt": "...", "targets": [" Paris"], '
        '"sources": ["..."], "spans": {"subject": "..."}, "group": "..."}',
    )


def _add_readout(parser: argparse.ArgumentParser) -> None:
    _add_prompt(parser)
    parser.add_argument(
        "--source-image",
        metavar="FILE",
        help="the image of the prompt that another option names, such as --counterfactual (that of --image)",
    )
    parser.add_argument("--reduce", choices=["mean"], help="with --cases: the mean over all cases instead of each")
    parser.add_argument(
        "--target", action="append", metavar="TOKEN", help="measure this token, such as ' Paris'; repeatable"
    )
    parser.add_argument("--contrast", metavar="TOKEN", help="subtract this token's logit from the target's")
    parser.add_argument(
        "--read-at",
        type=_place,
        metavar="POSITION",
        help="the position where the prediction is read, such as -2 or subject.last (the last)",
    )
    parser.add_argument("--top", type=int, default=10, metavar="K", help="how many tokens or places to list (10)")
    parser.add_argument(
        "--layers",
        "--layer",
        type=_ranges,
        metavar="LAYERS",
        help="the layers to restore or sweep, such as 3, or 0-5,7 (all)",
    )
    parser.add_argument(
        "--positions",
        "--position",
        type=_places,
        metavar="POSITIONS",
        help="the positions to restore, edit or sweep, such as 4 or -1, or by name, such as subject.last,end (all)",
    )
    parser.add_argument("--seed", type=int, help="the seed of the noise (1)")
    parser.add_argument("--plot", metavar="FILE", help="draw the result, as PNG, PDF or SVG by the file's suffix")
    parser.add_argument("--dry-run", action="store_true", help="only print the cost")


def _add_trace(commands: Any) -> None:
    parser = _command(commands, "trace", "Trace how the model arrives at a prediction.")
    _add_readout(parser)
    parser.add_argument("--lens", action="store_true", help="read the target after every block (logit lens)")
    parser.add_argument(
        "--gradients", action="store_true", help="with --lens: also gradient norms by block and position"
    )
    tracing = parser.add_argument_group("causal tracing")
    tracing.add_argument(
        "--subject",
        metavar="TEXT",
        help="corrupt this part of the prompt, or the span of this name in --cases, then restore one state at a time",
    )
    tracing.add_argument(
        "--counterfactual", metavar="PROMPT", help="corrupt with another prompt of the same number of tokens"
    )
    tracing.add_argument("--samples", type=int, help="the number of noise samples (10)")
    tracing.add_argument(
        "--noise", type=float, metavar="DEVIATIONS", help="the noise, in standard deviations of the embedding (3)"
    )
    tracing.add_argument("--window", type=int, help="layers restored together for MLP and attention (10)")
    tracing.add_argument(
        "--component",
        action="append",
        type=_one_of(COMPONENTS),
        metavar="NAME",
        help="restore this component, or estimate its effects; repeatable",
    )
    attribution = parser.add_argument_group("attribution patching")
    attribution.add_argument(
        "--attribute-from", metavar="PROMPT", help="estimate the effect of patching each place from this prompt"
    )
    attribution.add_argument("--steps", type=int, help="the number of integration steps between the two prompts (1)")
    attribution.add_argument(
        "--integration",
        choices=list(INTEGRATIONS),
        help="the runs in which gradients are taken, if not between the two embeddings",
    )
    attribution.add_argument("--metric", choices=list(METRICS), help="the quantity that is differentiated (logit)")
    attribution.add_argument(
        "--edges", type=int, metavar="K", help="also estimate the K largest edges between components"
    )
    attribution.add_argument("--verify", type=int, metavar="K", help="also measure the K largest by patching")
    discovery = parser.add_argument_group("circuit discovery")
    discovery.add_argument(
        "--discover-from",
        metavar="PROMPT",
        help="remove edges that make no difference, along which this prompt's values are then read",
    )
    discovery.add_argument(
        "--threshold", type=float, metavar="NATS", help="how much the divergence must grow for an edge to stay (0.01)"
    )


def _add_intervene(commands: Any) -> None:
    parser = _command(commands, "intervene", "Change a run, and show the effect on the prediction.")
    _add_readout(parser)
    places = _add_places(parser)
    places.add_argument("--separately", action="store_true", help="make one run for each place, instead of one for all")
    parser.add_argument(
        "--sweep",
        type=_one_of(dict.fromkeys([*SWEPT, *COMPONENTS])),
        metavar="COMPONENT",
        help=f"one run per layer, unit and position: {', '.join(SWEPT)} or a component's name",
    )
    parser.add_argument("--units", "--unit", type=_ranges, metavar="UNITS", help="the units to sweep (all)")
    operations = _add_operations(parser)
    operations.add_argument("--noise", type=float, metavar="DEVIATION", help="add normal noise")
    operations.add_argument("--patch-from", metavar="PROMPT", help="replace with the activations of this prompt")
    paths = parser.add_argument_group("paths")
    paths.add_argument(
        "--along",
        action="append",
        type=_reader,
        metavar="RECEIVER",
        help="only this sees the change: logits, mlp_out:3, or query, key or value of a head, as query:3:5; repeatable",
    )
    paths.add_argument(
        "--through",
        action="append",
        choices=["heads", "mlps"],
        help="what hands the change on to the receivers; repeatable (nothing)",
    )
    parser.add_argument("--kl", action="store_true", help="also print the KL divergence of each run")
    parser.add_argument("--generate", type=int, metavar="TOKENS", help="generate this many tokens in each run")


def _add_generate(commands: Any) -> None:
    parser = _command(commands, "generate", "Generate text, with edits applied to every token.")
    _add_prompt(parser)
    parser.add_argument(
        "--tokens", type=int, default=40, metavar="N", help="the largest number of tokens to generate (40)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="the temperature of sampling; 0 takes the most probable token (0)",
    )
    parser.add_argument("--seed", type=int, help="the seed of sampling (1)")
    parser.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="sample from the most probable tokens that together have this share (1)",
    )
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="the number of texts to generate (1)")
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="end where the generated text contains this; repeatable"
    )
    parser.add_argument("--ignore-end-token", action="store_true", help="continue after an end token")
    parser.add_argument("--log-probabilities", action="store_true", help="also print the log-probability of each token")
    parser.add_argument("--dry-run", action="store_true", help="only print the largest possible cost")
    places = _add_places(parser)
    places.add_argument(
        "--from-position",
        type=int,
        metavar="POSITION",
        help="edit from this position on, including generated tokens (0)",
    )
    _add_operations(parser)
    # Noise and patches differ by position, so they cannot apply to generated tokens.
    parser.set_defaults(noise=None, patch_from=None)


def _add_places(parser: argparse.ArgumentParser) -> Any:
    places = parser.add_argument_group("places to edit (repeatable; edited together in one run)")
    for option, component in SWEPT.items():
        places.add_argument(
            f"--{option}",
            action=_Place,
            const=component,
            dest="sites",
            metavar="LAYER:UNIT" if option in _UNITS else _WHOLE,
            help=_UNITS.get(option) or f"{component}, such as 3, or 0-2 for these layers",
        )
    return places


def _add_operations(parser: argparse.ArgumentParser) -> Any:
    operations = parser.add_argument_group("operation").add_mutually_exclusive_group()
    operations.add_argument(
        "--scale",
        type=float,
        metavar="FACTOR",
        help="multiply by this factor; without an operation, 0, which ablates",
    )
    operations.add_argument("--set", metavar="NPY", help="replace with this array")
    operations.add_argument("--add", metavar="NPY", help="add this array (steering)")
    return operations


def _one_of(names: Iterable[str]) -> Callable[[str], str]:
    known = tuple(names)

    def chosen(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(unknown_name(text, known))
        return text

    return chosen


def _place(text: str) -> int | str:
    """Parse one position: a number, or a name."""
    try:
        return int(text)
    except ValueError:
        return text


def _reader(text: str) -> tuple[ComponentName, list[int] | None, list[int] | None]:
    """Parse a receiver of a path: a component, its layers and its heads."""
    name, *rest = text.split(":")
    if name not in RECEIVERS or len(rest) > 2:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(RECEIVERS)}, as query:3:5, got {text!r}")
    layers, heads = ([_ranges(part) for part in rest] + [None, None])[:2]
    return RECEIVERS[name], layers, heads


def _places(text: str) -> list[int] | list[str]:
    """Parse positions: numbers and ranges, or names."""
    if text[:1].isdigit() or text.startswith("-"):
        return _ranges(text)
    return [name.strip() for name in text.split(",")]


def _ranges(text: str) -> list[int]:
    """Parse `3`, `0,2,5`, `0-7` and combinations; a leading minus counts from the end."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-") if not part.strip().startswith("-") else (part, "", "")
        try:
            found.extend(range(int(first), int(last) + 1) if dash else [int(first)])
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"expected numbers and ranges, such as 3, 0,2,5 or 0-7, got {part!r}"
            ) from None
    if not found:
        raise argparse.ArgumentTypeError(f"expected a range with at least one number, got {text!r}")
    return found


def _seconds(text: str) -> float | None:
    try:
        return check_timeout(float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number of seconds greater than 0, got {text!r}") from None


class _Place(argparse.Action):
    """Collects `--neuron LAYER:UNIT` and similar options, in order."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        layers, colon, units = str(values).partition(":")
        if colon and self.metavar == _WHOLE:
            parser.error(f"argument {option_string}: expected layers alone, such as 3 or 0-2, got {values!r}")
        try:
            place = (self.const, _ranges(layers), _ranges(units) if colon else None)
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument {option_string}: {error}")
        namespace.sites = [*(namespace.sites or []), place]
