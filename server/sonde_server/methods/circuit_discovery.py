"""Circuit discovery: ACDC (Conmy et al. 2023, arXiv 2304.14997, algorithm 1), from the logits down.

While the edges of a receiver are tried, everything below its block is as in the unchanged run, so a trial computes the
blocks from there on alone. Several trials share a batch: each takes for granted that the edges of those before it are
removed. Where one is kept after all, the trials behind it are made again. So what is decided is what one trial after
another would decide.
"""

from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..engine import Reading, Result
from ..questions.answers import Answer, CaseAnswer, Progress, ReducedAnswer, Statistic
from ..questions.cases import Cases, Question
from ..questions.circuit_discovery import CircuitDiscovery, DiscoveredEdges, Pruning
from ..questions.circuits import Edges
from ..questions.prompts import Metric
from ..questions.traces import TraceQuestion
from ..sharing.session import Session
from .circuits import CircuitRuns
from .opening import Clean, opening
from .prediction import numbers
from .reductions import reduced

# How many trials of a receiver share a batch, at least and at most.
FEWEST, MOST = 4, 64
# Edges are answered when this many are decided.
ANSWERED = 512


@dataclass(frozen=True, slots=True, eq=False)
class _Prompt:
    """A prompt whose circuit is looked for: its runs, and the metric of its unchanged run."""

    runs: CircuitRuns
    unchanged: float
    metric: Metric | None

    def loss(self, result: Result) -> float:
        """How far a run's prediction is from the unchanged one's."""
        if self.metric is None:
            assert result.kl_divergence is not None
            return float(result.kl_divergence)
        return self.unchanged - _metric(result, self.metric)


async def parts(
    question: TraceQuestion, method: CircuitDiscovery, session: Session, clean: Clean
) -> AsyncGenerator[Answer, None]:
    """The edges in the order of their trials, with the progress."""
    prompt = await _prepared(question, method, session, clean)
    async for part in _pruned([prompt], method, session):
        yield part


async def jointly(cases: Cases[Question], session: Session) -> AsyncGenerator[Answer, None]:
    """One circuit for each group of cases, by the mean of their losses."""
    contexts: list[Answer] = []
    prompts: dict[str, list[_Prompt]] = defaultdict(list)
    for number, (question, group) in enumerate(zip(cases.questions, cases.groups, strict=True)):
        assert isinstance(question, TraceQuestion)
        method = _method(question)
        context, clean = await opening(question, session)
        assert clean is not None
        contexts.append(CaseAnswer(number, context))
        prompts[group].append(await _prepared(question, method, session, clean))
    first = cases.questions[0]
    assert isinstance(first, TraceQuestion)
    # A mean and a deviation for each group; the circuit belongs to the mean.
    for answer in reduced((one for one in contexts), cases):
        yield answer
        if isinstance(answer, ReducedAnswer) and answer.statistic is Statistic.MEAN:
            async for part in _pruned(prompts[answer.group], _method(first), session):
                yield part if isinstance(part, Progress) else replace(answer, part=part)


def _method(question: TraceQuestion) -> CircuitDiscovery:
    method = question.method
    assert isinstance(method, CircuitDiscovery)
    return method


async def _prepared(question: TraceQuestion, method: CircuitDiscovery, session: Session, clean: Clean) -> _Prompt:
    target = clean.targets[:1]
    reading = Reading(clean.position, target, clean=clean.state, divergence=method.metric is None)
    positions = method.differing(question.asked)
    runs = await CircuitRuns.of(session, clean.state, [method.source], reading, positions)
    (result,) = await session.read([clean.state], Reading(clean.position, target, clean=clean.state))
    return _Prompt(runs, 0.0 if method.metric is None else _metric(result, method.metric), method.metric)


async def _pruned(
    prompts: Sequence[_Prompt], method: CircuitDiscovery, session: Session
) -> AsyncGenerator[Answer, None]:
    edges = method.candidates(session.decoder)
    pruning = Pruning(edges, session.decoder)
    total, told = int(edges.sum()), 0
    found = _Found()
    loss = 0.0
    if method.edges is not None:
        (loss,) = await _losses(prompts, [pruning.missing()], session)
    yield Progress(0, total)
    window = FEWEST
    while (tried := pruning.next(window)) is not None:
        receiver, senders = tried
        losses = await _losses(prompts, pruning.trials(receiver, senders), session)
        removed = 0
        for sender, after in zip(senders, losses, strict=True):
            growth = after - loss
            kept = growth >= method.threshold
            pruning.decide(sender, kept=kept)
            found.add(*pruning.ends(receiver, sender), growth, kept)
            if kept:
                break
            loss, removed = after, removed + 1
        window = min(MOST, 2 * window) if removed == len(senders) else max(FEWEST, removed)
        if len(found) >= ANSWERED:
            yield found.answer(loss)
        if pruning.decided > told:
            told = pruning.decided
            yield Progress(told, total)
    yield found.answer(loss)
    yield Progress(total, total)


async def _losses(prompts: Sequence[_Prompt], trials: Sequence[Edges], session: Session) -> list[float]:
    """The mean loss over all prompts, with each of several sets of edges missing."""
    results = session.run(prompt.runs.run(missing) for prompt in prompts for missing in trials)
    sums = np.zeros(len(trials))
    for prompt in prompts:
        sums += [prompt.loss(result) for result in await results.take(len(trials))]
    losses: list[float] = (sums / len(prompts)).tolist()
    return losses


def _metric(result: Result, metric: Metric) -> float:
    """A number of the first target."""
    if metric is Metric.LOGIT:
        return float(numbers(result.logits)[0])
    value = float(numbers(result.log_probabilities)[0])
    return value if metric is Metric.LOG_PROBABILITY else float(np.exp(value))


class _Found:
    """The edges that were decided and are not answered yet."""

    def __init__(self) -> None:
        self._answered = 0
        self._rows: list[tuple[tuple[int, ...], tuple[int, ...], float, bool]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, sender: tuple[int, ...], receiver: tuple[int, ...], growth: float, kept: bool) -> None:
        """Adds one edge."""
        self._rows.append((sender, receiver, growth, kept))

    def answer(self, loss: float) -> DiscoveredEdges:
        """Answers them."""
        senders, receivers, growths, kept = zip(*self._rows, strict=True) if self._rows else ((), (), (), ())
        part = DiscoveredEdges(
            self._answered,
            np.array(senders, np.int32).reshape(-1, 3),
            np.array(receivers, np.int32).reshape(-1, 3),
            np.array(growths, np.float32),
            np.array(kept, np.int32),
            loss,
        )
        self._answered += len(self._rows)
        self._rows.clear()
        return part
