"""The request that a result answers: what was run, read and changed, when, and by which version of the client.

The content is the request of the contract itself, with its names, as Python's own values. Long arrays, such as a
direction that is added, are kept as their shape, norm and SHA-256, those of up to 64 numbers with their values.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, TypeAlias

from sonde._arrays import visible
from sonde._show.display import details
from sonde._show.palette import words

Content: TypeAlias = Mapping[str, Any]
"""A message of the contract: fields by their names, without those that were left out."""
_LONGEST: Final = 60
"""How much of a text is shown on one line."""
_MOST_EDITS: Final = 2
"""How many of the edits of a run its label names."""
_MOST_LISTED: Final = 24
"""How many entries of a list are shown."""
_NAMES: Final = {"head_out": "head", "residual_post": "residual", "attention_scores": "attention"}


class LazyContent(Mapping[str, Any]):
    """The content of a request that is made when somebody looks at it: most are never looked at."""

    __slots__ = ("_made", "_make")

    def __init__(self, make: Callable[[], Content]) -> None:
        self._make = make
        self._made: Content | None = None

    def _whole(self) -> Content:
        if self._made is None:
            made = self._made = self._make()
            self._make = lambda: made  # Nothing longer keeps the message, with its arrays.
        return self._made

    def __getitem__(self, name: str) -> Any:
        return self._whole()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole())

    def __len__(self) -> int:
        return len(self._whole())

    def __repr__(self) -> str:
        return repr(self._whole())

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return dict, (dict(self._whole()),)


@dataclass(frozen=True, repr=False)
class Request:
    """What was asked. `print(result.request.describe())` shows it as text."""

    call: str
    """`"trace"` or `"intervene"`."""
    content: Content
    """The request by the names of the contract: `request.content["prompt"]["text"]`.

    An array is `{"shape", "data_type", "norm", "sha256"}`, with its `"values"` if it has at most 64; an image is
    `{"bytes", "sha256"}`.
    """
    labels: tuple[str, ...] = ()
    """The names that the program gave to the runs; empty if it gave none."""
    client_version: str = ""
    asked_at: str = field(default="", compare=False)
    """When the call was made: the time in UTC, as in ISO 8601."""

    @property
    def method(self) -> str:
        """The method of a trace or the plan of an intervention: the name of its field in the contract."""
        known = ("activations", "token_probability", "causal_tracing", "attribution_patching", "sweep", "list")
        return next((name for name in known if name in self.content), "")

    @property
    def prompt(self) -> str | tuple[int, ...] | None:
        """The text or the token ids; None if there is no single one, as with cases."""
        given = self.content.get("prompt", {})
        ids = given.get("token_ids")
        return tuple(ids.get("ids", ())) if ids is not None else given.get("text")

    @cached_property
    def run_labels(self) -> tuple[str, ...]:
        """A name for each run of a list of interventions: those that were given, or the edits in words."""
        if self.labels or "list" not in self.content:
            return self.labels
        runs = self.content["list"].get("interventions", ())
        return tuple(run_words(run.get("edits", ()), self.content.get("sources", ())) for run in runs)

    def without_cases(self) -> "Request":
        """The same without the cases: what each of them was asked."""
        return replace(
            self, content=LazyContent(lambda: {name: part for name, part in self.content.items() if name != "cases"})
        )

    def summary(self) -> str:
        """What was asked, on one line."""
        plan = {"list": _counted(len(self.run_labels), "run"), "sweep": f"sweep of {self._swept()}"}
        what = plan.get(self.method, self.method.replace("_", " "))
        about = "" if "prompt" not in self.content else f" {_prompt_words(self.content['prompt'])}"
        if "cases" in self.content:
            about = f" {_counted(len(self.content['cases']), 'case')}"
        when = f", {self.asked_at[:19].replace('T', ' ')} UTC" if self.asked_at else ""
        verb = "trace of" if self.call == "trace" else "interventions on"
        return f"{verb}{about}{f': {what}' if what else ''}{when}"

    def describe(self) -> str:
        """Everything that was asked, as text of several lines."""
        made_by = f"asked with the client of Sonde {self.client_version}" if self.client_version else ""
        shown = {name: value for name, value in self.content.items() if name != "list"}
        reduction = shown.pop("reduction", None)
        lines = [self.summary(), *_described(shown, "  ")]
        if reduction is not None:
            lines.append(f"  reduction: {_reduction_words(reduction)}")
        if "list" in self.content:
            lines.append("  runs:")
            runs, sources = self.content["list"].get("interventions", ()), self.content.get("sources", ())
            for number, run in enumerate(runs):
                name = f"{self.labels[number]}: " if self.labels else ""
                edits = [edit_words(edit, sources) for edit in run.get("edits", ())]
                lines.append(f"    {number}: {name}{'; '.join(edits) or 'no edit'}")
        return "\n".join([*lines, *([f"  {made_by}"] if made_by else [])])

    def _swept(self) -> str:
        sweep = self.content.get("sweep", {})
        return edit_words(sweep["edit"], self.content.get("sources", ())) if "edit" in sweep else "nothing"

    def __repr__(self) -> str:
        return f"Request({self.summary()})"

    def __str__(self) -> str:
        return self.describe()


def asked_html(request: Request | None) -> list[str]:
    """What a notebook shows of a request: one line, which unfolds."""
    return [] if request is None else [details(request.summary(), request.describe())]


def run_words(edits: Sequence[Content], sources: Sequence[Content] = ()) -> str:
    """The edits of one run in a few words."""
    said = [edit_words(edit, sources) for edit in edits[:_MOST_EDITS]]
    more = len(edits) - len(said)
    return ", ".join([*said, *([f"{more} more"] if more else [])]) or "no edit"


def edit_words(edit: Content, sources: Sequence[Content] = ()) -> str:
    """An edit in words, such as `head 9.1 × 0`."""
    place = site_words(edit.get("site", {}))
    said = [say(edit[operation], sources) for operation, say in _OPERATIONS.items() if operation in edit]
    return " ".join([place, *said])


def site_words(site: Content) -> str:
    """A site in words, such as `head 9.1 at 3`: layer and unit, and the positions."""
    component = str(site.get("component", "?"))
    name = _NAMES.get(component) or words(component)
    layers, units = site.get("layers", ()), site.get("units", ())
    where = _listed(layers) if layers else "*" if units else ""
    unit = f".{_listed(units)}" if units else ""
    positions = [*site.get("positions", ()), *map(_named_words, site.get("named_positions", ()))]
    at = f" at {_listed(positions)}" if positions else ""
    if "from_position" in site or "named_from_position" in site:
        at = f" from {site.get('from_position', _named_words(site.get('named_from_position', {})))} on"
    stack = f" of the {site['stack'].replace('_', ' ')}" if "stack" in site else ""
    return f"{name}{f' {where}{unit}' if where else ''}{at}{stack}"


def _listed(entries: Sequence[object]) -> str:
    """Entries as `3`, `0-7` or `1,4,9`; many that do not follow each other are counted."""
    numbers = [entry for entry in entries if isinstance(entry, int)]
    if len(numbers) == len(entries) > 2 and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(map(str, entries)) if len(entries) <= 4 else f"{len(entries)} places"


def _named_words(named: Content) -> str:
    part = str(named.get("part", ""))
    span = str(named.get("span", ""))
    return f"{span}.{part}" if span and part else span or part or "all"


def _tensor_words(tensor: Content) -> str:
    values = tensor.get("values")
    if values is not None and len(values) == 1:
        return f"{values[0]:.4g}"
    return f"[{', '.join(map(str, tensor.get('shape', ())))}] of norm {tensor.get('norm', 0):.4g}"


def _patch_words(patch: Content, sources: Sequence[Content]) -> str:
    numbers = patch.get("sources", ())
    if len(numbers) > 1:
        said = f"the mean of {len(numbers)} sources"
    else:
        number = numbers[0] if numbers else 0
        known = 0 <= number < len(sources)
        said = _prompt_words(sources[number], 24) if known else f"source {number}"
    layer = f" layer {patch['source_layer']}" if "source_layer" in patch else ""
    positions = [*patch.get("source_positions", ()), *map(_named_words, patch.get("named_source_positions", ()))]
    return f"{said}{layer}{f' at {_listed(positions)}' if positions else ''}"


def _prompt_words(prompt: Content, longest: int = _LONGEST) -> str:
    if "text" in prompt:
        said = f"“{_short(prompt['text'], longest)}”"
    elif "chat" in prompt:
        messages = prompt["chat"].get("messages", ())
        last = messages[-1] if messages else {}
        said = f"a chat of {len(messages)} ending “{_short(str(last.get('content', '')), longest)}”"
    else:
        said = _counted(len(prompt.get("token_ids", {}).get("ids", ())), "token id")
    return f"{said} with an image" if "image" in prompt else said


def _counted(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _short(text: str, longest: int = _LONGEST) -> str:
    shown = visible(text)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def _reduction_words(reduction: Content) -> str:
    """What is asked of all cases together; in how many parts it is answered is the client's own affair."""
    return f"mean, the {reduction['largest']} largest of each unit" if "largest" in reduction else "mean"


def _described(content: Content, margin: str) -> Iterator[str]:
    """The fields of a message, one a line, those of its parts further in."""
    for name, value in content.items():
        yield from _entry(f"{margin}{name.replace('_', ' ')}:", value, f"{margin}  ")


def _entry(label: str, value: Any, margin: str) -> Iterator[str]:
    inline = _inline(value)
    if inline is not None:
        yield f"{label} {inline}"
        return
    yield label
    if isinstance(value, Mapping):
        yield from _described(value, margin)
        return
    for number, entry in enumerate(value):
        yield from _entry(f"{margin}{number}:", entry, f"{margin}  ")


def _inline(value: Any) -> str | None:
    """A value that fits on one line; None if it has parts that do not."""
    if isinstance(value, list | tuple):
        return None if any(isinstance(entry, Mapping) for entry in value) else _listed_whole(value)
    if not isinstance(value, Mapping):
        return repr(_short(value, 200)) if isinstance(value, str) else str(value)
    for key, say in (("site", edit_words), ("component", site_words), ("shape", _tensor_words)):
        if key in value:
            return say(value)
    if any(isinstance(entry, Mapping | list | tuple) for entry in value.values()):
        return None
    return ", ".join(f"{name.replace('_', ' ')} {_inline(entry)}" for name, entry in value.items()) or "by default"


def _listed_whole(values: Sequence[Any]) -> str:
    shown = [str(value) for value in values[:_MOST_LISTED]]
    more = len(values) - len(shown)
    return ", ".join([*shown, *([f"and {more:,} more"] if more else [])])


def _noise_words(noise: Content, _: Sequence[Content]) -> str:
    seed = f", seed {noise['seed']}" if "seed" in noise else ""
    return f"+ noise of {noise.get('standard_deviation', 0):.4g}{seed}"


def _knockout_words(knockout: Content, _: Sequence[Content]) -> str:
    keys = [*knockout.get("key_positions", ()), *map(_named_words, knockout.get("named_key_positions", ()))]
    return f"blocked to {'position ' + _listed(keys) if keys else 'all keys'}"


_OPERATIONS: Final[Mapping[str, Callable[[Any, Sequence[Content]], str]]] = {
    "scale": lambda factor, _: f"× {factor:.4g}",
    "set": lambda value, _: f"= {_tensor_words(value)}",
    "add": lambda value, _: f"+ {_tensor_words(value)}",
    "multiply": lambda value, _: f"× {_tensor_words(value)}",
    "patch": lambda patch, sources: f"from {_patch_words(patch, sources)}",
    "noise": _noise_words,
    "project_out": lambda direction, _: f"without {_tensor_words(direction)}",
    "knockout": _knockout_words,
}
"""The operations of an edit in words: what stands behind the place."""
