"""Circuit discovery (ACDC, Conmy et al. 2023, arXiv 2304.14997) as a plain loop: one trial after another.

It follows the contract's words (circuit_discovery.proto). A loss is any function of the edges that are kept;
`divergence` and `fall` are those of the contract, by full passes for every read (circuit_oracle.py).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.support.circuit_oracle import CircuitOracle, Edge, Node
from tests.support.oracle import Target, target_logit

Loss = Callable[[set[Edge]], float]
Pair = tuple[Sequence[int], Sequence[int]]
"""A prompt and its source."""


class Trial(NamedTuple):
    """An edge, how much the loss grew without it, and whether it was kept."""

    edge: Edge
    growth: float
    kept: bool


def discover(circuits: CircuitOracle, edges: Sequence[Edge], threshold: float, loss: Loss) -> list[Trial]:
    """Removes edges from the logits down, one by one, each where the loss grows by less than the threshold."""
    kept, trials = set(edges), []
    now = loss(kept)
    order = {sender: number for number, sender in enumerate(circuits.senders())}
    for receiver in reversed(circuits.receivers()):
        own = sorted((edge for edge in kept if edge[1] == receiver), key=lambda edge: -order[edge[0]])
        if receiver.component != "LOGITS" and not any(sender in writers(circuits, receiver) for sender, _ in kept):
            kept -= set(own)
            continue
        for edge in own:
            after = loss(kept - {edge})
            stays = after - now >= threshold
            trials.append(Trial(edge, after - now, stays))
            if not stays:
                kept.remove(edge)
                now = after
    return trials


def writers(circuits: CircuitOracle, receiver: Node) -> list[Node]:
    """The senders that write what comes of a receiver: of a key or a value every head that shares it."""
    if receiver.component == "MLP_OUT":
        return [receiver]
    oracle = circuits.oracle
    width = 1 if receiver.component == "QUERY" else oracle.heads // oracle.key_value_heads
    return [Node("HEAD_OUT", receiver.layer, receiver.head * width + each) for each in range(width)]


def divergence(circuits: CircuitOracle, edges: Sequence[Edge], pairs: Sequence[Pair]) -> Loss:
    """KL(unchanged || circuit) of the next token, in nats, mean over pairs."""
    return _mean(circuits, edges, pairs, circuits.oracle.kl_divergence)


def fall(circuits: CircuitOracle, edges: Sequence[Edge], pairs: Sequence[Pair], target: Target) -> Loss:
    """How far a target's logit falls below that of the unchanged run, mean over pairs."""
    return _mean(circuits, edges, pairs, lambda a, b: target_logit(a, target) - target_logit(b, target))


def _mean(circuits: CircuitOracle, edges: Sequence[Edge], pairs: Sequence[Pair], of: Callable[..., float]) -> Loss:
    every = circuits.edges()
    assert set(edges) <= set(every)

    def loss(kept: set[Edge]) -> float:
        missing = [edge for edge in every if edge not in kept]
        total = 0.0
        for ids, source in pairs:
            other = circuits.oracle.run(source).values
            pruned = circuits.circuit(ids, other, missing)
            total += of(circuits.oracle.run(ids).logits[-1], pruned[-1])
        return total / len(pairs)

    return loss
