"""How a prediction forms: the logit lens by depth, and gradient norms by depth and position.

The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens") applies the final norm, with statistics
of its own, and the unembedding to the residual stream at every depth; at the last depth it is the model. The
gradient norm is || d metric / d stream[depth, position] ||_2 of a true backward pass.
"""

from collections.abc import Iterator

from ..answers import Answer, Context, Cost, LayerReadings
from ..domain import TokenProbability, TraceQuestion
from ..engine import Base
from ..session import Session
from .prediction import attention_for, numbers, predict


def answer(question: TraceQuestion, method: TokenProbability, session: Session) -> Iterator[Answer]:
    """Context, then one LayerReadings over all depths."""
    engine, tokens, position = session.engine, question.prompt.tokens, question.position
    passes = 2 if method.gradient_norms else 1
    depths = engine.layers + 1
    columns = max(1, len(question.targets))
    size = 4 * depths * (3 * columns + 1 + 2 * question.top_k)
    if method.gradient_norms:
        size += 4 * depths * len(tokens) * columns
    work = passes * len(tokens) * engine.layers
    cost = Cost(passes, work, work, size)
    if question.dry_run:
        yield Context(tokens, question.targets, position, None, cost, attention_for(()))
        return
    state = session.states([Base(tokens)], read=position)[0]
    targets, clean = predict(session, state, question.targets, position, question.top_k)
    yield Context(tokens, targets, position, clean, cost, attention_for(()))
    lens = session.call(lambda: engine.lens(state, position, targets, question.top_k))
    log_probabilities, logits, ranks, divergences, top_tokens, top_log_probabilities = lens
    norms = None
    if method.gradient_norms:
        norms = numbers(session.call(lambda: engine.gradient_norms(tokens, position, targets, method.metric)))
    yield LayerReadings(
        tuple(range(depths)),
        numbers(log_probabilities),
        numbers(logits),
        ranks.numpy(),
        numbers(divergences),
        top_tokens.numpy(),
        numbers(top_log_probabilities),
        norms,
        tuple(range(len(tokens))) if norms is not None else (),
    )
