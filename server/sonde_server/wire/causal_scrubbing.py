"""Causal scrubbing: the examples, the tree of a hypothesis, and what is drawn."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from sonde.v1 import inspection_pb2 as pb

from ..questions.answers import Integers
from ..questions.causal_scrubbing import CausalScrubbing
from ..questions.costs import FLOAT
from ..questions.graph import READ_BY_HEADS, precedes, written
from ..questions.hypotheses import Hypothesis, Node
from ..questions.interventions import Readout
from ..questions.places import Component, Site
from ..questions.prompts import Prompt
from .fields import LARGEST_SEED, Reader
from .images import alike
from .interventions import read_readout
from .names import read_rows, union
from .prompts import read_prompt
from .sites import Role, read_site
from .tensors import decode_integers

_DIRECT = (
    Component.TOKEN_EMBEDDING,
    Component.HEAD_OUT,
    Component.ATTENTION_OUT,
    Component.NEURON,
    Component.MLP_OUT,
)
_READING = (*READ_BY_HEADS, Component.HEAD_OUT, Component.ATTENTION_OUT, Component.NEURON, Component.MLP_OUT)
_MOST_NODES = 1024


def read_causal_scrubbing(request: pb.InterveneRequest, reader: Reader) -> CausalScrubbing:
    """The question. Raises InvalidQuestion with every violation, and Unsupported."""
    message, path, problems = request.causal_scrubbing, "causal_scrubbing", reader.problems
    _check_request(request, reader)
    problems.settle()
    prompts = _read_examples(request, reader)
    problems.settle()
    references = _read_references(message, path, reader, len(prompts))
    readouts = [
        _read_readout(request, number, prompts[number], replace(reader, targets=f"cases[{number}].targets"))
        for number in references
    ]
    if len({one.position for one in readouts if one is not None}) > 1:
        problems.add("readout.named_position", "expected the same position in every case, got several")
    nodes = _read_nodes(message.nodes, f"{path}.nodes", reader, prompts)
    problems.settle()
    hypothesis = Hypothesis(tuple(nodes))
    _check_siblings(hypothesis, f"{path}.nodes", reader)
    draws = _read_draws(message, path, reader, hypothesis, references, len(prompts))
    problems.settle()
    assert draws is not None
    given = tuple(one for one in readouts if one is not None)
    return CausalScrubbing(tuple(prompts), hypothesis, references, given, draws, request.dry_run)


def _check_request(request: pb.InterveneRequest, reader: Reader) -> None:
    problems, most = reader.problems, reader.limits.max_cases
    if not request.cases:
        problems.add("cases", "expected the examples of causal_scrubbing, got none")
    if most and len(request.cases) > most:
        problems.add("cases", f"expected at most {most} cases, got {len(request.cases)}")
    if request.HasField("prompt"):
        problems.add("prompt", "expected none, because the examples of causal_scrubbing are the cases, got one")
    if request.sources or any(case.sources for case in request.cases):
        problems.add("sources", "expected none, because the examples of causal_scrubbing are the cases")
    if request.HasField("reduction"):
        problems.add("reduction", "expected none, because each reference of causal_scrubbing is answered, got one")
    if request.readout.HasField("generation"):
        problems.add("readout.generation", "expected none, because scrubbed runs are not continued, got one")
    if request.readout.activations:
        problems.add("readout.activations", "expected none, because of scrubbed runs the prediction alone is read")


def _read_examples(request: pb.InterveneRequest, reader: Reader) -> list[Prompt]:
    prompts: list[Prompt] = []
    for number, case in enumerate(request.cases):
        reader.check()
        path = f"cases[{number}].prompt"
        prompt = read_prompt(case.prompt, path, replace(reader, prompt=path))
        if prompt is None:
            continue
        if prompts and len(prompt.tokens) != len(prompts[0].tokens):
            reader.problems.add(
                path, f"expected {len(prompts[0].tokens)} tokens, as in the first case, got {len(prompt.tokens)}"
            )
        elif prompts:
            alike(prompt, prompts[0], path, reader)
        prompts.append(prompt)
    return prompts


def _read_references(message: pb.CausalScrubbing, path: str, reader: Reader, examples: int) -> tuple[int, ...]:
    if not message.references:
        return tuple(range(examples))
    return reader.indices(message.references, examples, f"{path}.references", "case")


def _read_readout(request: pb.InterveneRequest, number: int, prompt: Prompt, reader: Reader) -> Readout | None:
    case = request.cases[number]
    own = reader if case.targets else replace(reader, targets="readout.targets")
    return read_readout(request.readout, prompt, case.targets or request.readout.targets, own)


def _read_nodes(
    messages: Sequence[pb.CausalScrubbing.Node], path: str, reader: Reader, prompts: Sequence[Prompt]
) -> list[Node]:
    if not messages:
        reader.problems.add(path, "expected at least one node, the prediction, got none")
    if not reader.listed(len(messages), _MOST_NODES, path, "nodes"):
        return []
    parents = {message.parent for message in messages[1:]}
    found: list[Node] = []
    for number, message in enumerate(messages):
        field = f"{path}[{number}]"
        labels = _read_labels(message.labels, f"{field}.labels", reader, len(prompts))
        others = _read_labels(message.other_labels, f"{field}.other_labels", reader, len(prompts))
        if others and number not in parents:
            reader.problems.add(f"{field}.other_labels", "expected none, because the node has no children")
        if not number:
            for name in ("parent", "site"):
                if message.HasField(name):
                    reader.problems.add(f"{field}.{name}", "expected none, because the first node is the prediction")
            if message.direct:
                reader.problems.add(f"{field}.direct", "expected false, because the first node is the prediction")
            found.append(Node(None, None, (), False, labels, others))
            continue
        node = _read_node(message, number, field, reader, prompts, found)
        found.append(node or Node(0, None, (), False, (), ()))
        if node is not None:
            found[-1] = replace(node, labels=labels, other_labels=others)
    return found


def _read_node(
    message: pb.CausalScrubbing.Node,
    number: int,
    path: str,
    reader: Reader,
    prompts: Sequence[Prompt],
    before: Sequence[Node],
) -> Node | None:
    """A node but for its labels."""
    if not message.HasField("parent") or not 0 <= message.parent < number:
        given = message.parent if message.HasField("parent") else "none"
        reader.problems.add(f"{path}.parent", f"expected an earlier node, 0 to {number - 1}, got {given}")
        return None
    if not message.HasField("site"):
        reader.problems.add(f"{path}.site", "expected a site, got none")
        return None
    site = read_site(message.site, f"{path}.site", reader, prompts[0], Role.EDIT)
    if site is None:
        return None
    if site.from_position is not None:
        reader.problems.add(f"{path}.site", "expected positions instead of from_position, because no run is continued")
        return None
    if site.component in (Component.ATTENTION_SCORES, Component.ATTENTION_PATTERN):
        reader.problems.refuse(f"{path}.site.component", "scores and patterns are no places of a hypothesis")
    positions = _positions(message.site, site, f"{path}.site", reader, prompts)
    node = Node(message.parent, replace(site, positions=None, rows=None), positions, message.direct, (), ())
    _check_direct(node, path, reader, before[message.parent])
    return node


def _positions(
    message: pb.Site, site: Site, path: str, reader: Reader, prompts: Sequence[Prompt]
) -> tuple[tuple[int, ...], ...]:
    """Where a site is in each example."""
    if not message.named_positions:
        return (site.positions_within(len(prompts[0].tokens)),) * len(prompts)
    found: list[tuple[int, ...]] = []
    for number, prompt in enumerate(prompts):
        own = replace(reader, prompt=f"cases[{number}].prompt")
        rows = read_rows(message.named_positions, prompt, f"{path}.named_positions", own, filled=True)
        found.append(union(rows or ()))
        if len(found[-1]) != len(found[0]):
            reader.problems.add(
                f"{path}.named_positions",
                f"expected as many positions in every case, got {len(found[0])} in case 0 and {len(found[-1])} in case "
                f"{number}",
            )
            break
    return tuple(found)


def _check_direct(node: Node, path: str, reader: Reader, parent: Node) -> None:
    """Notes a direct node that does not write, or whose parent reads nothing that it writes."""
    assert node.site is not None
    own = [(node.site.component, layer) for layer in node.site.layers]
    if not node.direct:
        if parent.site is not None and not any(
            written(*one) <= written(parent.site.component, layer) for one in own for layer in parent.site.layers
        ):
            reader.problems.add(f"{path}.site", "expected a place that comes before that of the parent")
        return
    if node.site.component not in _DIRECT:
        known = ", ".join(component.name for component in _DIRECT)
        reader.problems.add(f"{path}.direct", f"expected a site of {known}, got {node.site.component.name}")
        return
    if parent.site is None:
        return
    if parent.site.component not in _READING:
        known = ", ".join(component.name for component in _READING)
        reader.problems.add(
            f"{path}.direct", f"expected a parent of {known}, which read the stream, got {parent.site.component.name}"
        )
        return
    receiver = parent.site.component
    if receiver in (Component.HEAD_OUT, Component.ATTENTION_OUT):
        receiver = Component.QUERY
    elif receiver is Component.NEURON:
        receiver = Component.MLP_OUT
    if not any(precedes(one, (receiver, layer), reader.model) for one in own for layer in parent.site.layers):
        reader.problems.add(f"{path}.site", "expected a place that writes before its parent reads the stream")


def _read_labels(values: Sequence[int], path: str, reader: Reader, examples: int) -> tuple[int, ...]:
    if values and len(values) != examples:
        reader.problems.add(path, f"expected a label for each of {examples} cases, or none, got {len(values)}")
        return ()
    return tuple(values)


def _check_siblings(hypothesis: Hypothesis, path: str, reader: Reader) -> None:
    """Notes two children of one node, both direct or both not, that have a place in common."""
    seen: dict[tuple[int | None, bool, Component, int], list[int]] = {}
    for number, node in enumerate(hypothesis.nodes):
        if node.site is None:
            continue
        for layer in node.site.layers:
            others = seen.setdefault((node.parent, node.direct, node.site.component, layer), [])
            for other in others:
                if _overlap(node, hypothesis.nodes[other]):
                    reader.problems.add(
                        f"{path}[{number}].site", f"expected a place that no sibling has, got one that node {other} has"
                    )
                    return
            others.append(number)


def _overlap(one: Node, other: Node) -> bool:
    assert one.site is not None
    assert other.site is not None
    units = one.site.units is None or other.site.units is None or bool({*one.site.units} & {*other.site.units})
    return units and any({*mine} & {*theirs} for mine, theirs in zip(one.positions, other.positions, strict=True))


def _read_draws(
    message: pb.CausalScrubbing,
    path: str,
    reader: Reader,
    hypothesis: Hypothesis,
    references: Sequence[int],
    examples: int,
) -> Integers | None:
    nodes = len(hypothesis.nodes)
    if message.WhichOneof("drawing") == "draws":
        if message.samples:
            reader.problems.add(f"{path}.samples", "expected none, because `draws` says how many there are")
        return _given_draws(message.draws, f"{path}.draws", reader, (len(references), nodes), examples)
    seed = reader.seed(message.seed, f"{path}.seed") if message.HasField("seed") else 1
    samples = reader.at_least_one(message.samples, f"{path}.samples")
    if not reader.runs(samples, f"{path}.samples"):
        return None
    # They are part of the answer, so that more than an answer may have are refused before they take memory.
    size, most = FLOAT * 2 * len(references) * samples * nodes, reader.limits.max_answer_bytes
    if most and size > most:
        reader.problems.add(
            f"{path}.samples",
            f"the draws alone would have {size} bytes; the limit is {most}. Ask for fewer samples, references or nodes",
        )
    # Nothing is drawn for what is refused.
    reader.problems.settle()
    drawn = np.empty((len(references), samples, nodes, 2), np.int32)
    for number, one in enumerate(references):
        reader.check()
        drawn[number] = hypothesis.draws(one, samples, (seed + one) % (LARGEST_SEED + 1), examples)
    return drawn


def _given_draws(
    message: pb.Tensor, path: str, reader: Reader, counts: tuple[int, int], examples: int
) -> Integers | None:
    values = decode_integers(message, path, reader)
    if values is None:
        return None
    references, nodes = counts
    if values.ndim != 4 or values.shape[0] != references or values.shape[2:] != (nodes, 2) or not values.shape[1]:
        shape = " x ".join(map(str, values.shape))
        reader.problems.add(f"{path}.shape", f"expected {references} x samples x {nodes} x 2, got {shape}")
        return None
    if values.min() < 0 or values.max() >= examples:
        wrong = values[(values < 0) | (values >= examples)][0]
        reader.problems.add(f"{path}.data", f"expected examples from 0 to {examples - 1}, got {wrong}")
        return None
    return values
