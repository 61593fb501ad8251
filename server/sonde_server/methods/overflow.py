"""Every number of an answer is finite; where one is not, the question fails and is told why.

Half precision holds numbers up to 65504. Some models exceed that at single tokens, and an edit can make any run exceed
the range of any type. What follows is infinite or not a number, down to the probabilities. Masked attention scores are
the exception: they are -infinity, as the contract says.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import fields
from functools import partial

import numpy as np
import torch

from ..engine import Base, State
from ..errors import InvalidQuestion, NotFinite, SondeServerError, Violation
from ..questions.activations import Activation, Activations, Encoding
from ..questions.answers import Answer, Context, Floats
from ..questions.attribution_patching import AttributionPatching, Attributions, EdgeAttributions, VerifiedEffect
from ..questions.causal_tracing import CausalTracing, Corruption, Counterfactual, ExplicitNoise, RestorationGrid
from ..questions.circuit_discovery import CircuitDiscovery
from ..questions.circuits import Circuits
from ..questions.generation import Generated
from ..questions.interventions import InterveneQuestion, Readings
from ..questions.places import Component, Site
from ..questions.plans import Sweep
from ..questions.prompts import Prompt
from ..questions.token_probability import LayerReadings
from ..questions.traces import TraceQuestion
from ..sharing.session import Session

UNCHANGED = -1


class Overflow(Exception):
    """Some number of a run is infinite or not a number. `run`: that of the plan, or UNCHANGED; None: of no single run.

    `what`: which numbers, for a caller.
    """

    def __init__(self, run: int | None, what: str) -> None:
        super().__init__(what)
        self.run = run
        self.what = what


async def finite(
    answers: AsyncGenerator[Answer, None], question: TraceQuestion | InterveneQuestion, session: Session
) -> AsyncGenerator[Answer, None]:
    """The same answers. Raises NotFinite if the model overflowed, InvalidQuestion if an edit or noise made it."""
    async with aclosing(answers):
        try:
            async for answer in answers:
                _check(answer, question)
                yield answer
        except Overflow as found:
            raise await _explained(found, question, session) from None


def _check(answer: Answer, question: TraceQuestion | InterveneQuestion) -> None:
    """Raises Overflow at the first number that is not finite."""
    match answer:
        case Context(clean=clean) if clean is not None:
            _hold(UNCHANGED, "the prediction", clean.log_probabilities, clean.logits, clean.top_log_probabilities)
        case Readings():
            _check_readings(answer)
        case Activation():
            site = _sites(question)[answer.site]
            masked = site.component is Component.ATTENTION_SCORES
            values = answer.values[~np.isneginf(answer.values)] if masked else answer.values
            what = f"{site.component.name} of layer {answer.layer}"
            _hold(answer.run, what, values)
            _check_encoding(what, values, answer.encoding)
        case Generated():
            for site, read in zip(_generated_sites(question), answer.activations, strict=True):
                what = f"{site.component.name} of generated tokens"
                for run, values in zip(answer.runs, read, strict=True):
                    _hold(run, what, values)
                _check_encoding(what, read, answer.encoding)
        case LayerReadings():
            _hold(None, "the lens", answer.log_probabilities, answer.logits, answer.kl_divergences)
            _hold(None, "the lens", answer.top_log_probabilities)
            _hold(None, "the gradients", answer.gradient_norms)
        case Corruption() | RestorationGrid():
            what = "the corrupted runs" if isinstance(answer, Corruption) else "the restored runs"
            _hold(None, what, answer.probabilities, answer.deviations, answer.logits, answer.sample_probabilities)
        case Attributions() | EdgeAttributions():
            _hold(None, "the gradients", answer.estimates)
        case VerifiedEffect():
            _hold(None, "a patched run", answer.estimated, answer.measured)
        case _:
            # The numbers of any other part have to be finite as well.
            _hold(None, "the answer", *(getattr(answer, one.name) for one in fields(answer)))


def _hold(run: int | None, what: str, *arrays: object) -> None:
    if not all(np.isfinite(array).all() for array in arrays if isinstance(array, np.ndarray)):
        raise Overflow(run, what)


def _check_encoding(what: str, values: Floats, encoding: Encoding) -> None:
    """Raises NotFinite if a number is beyond the range of the type that values leave in."""
    if values.size and (largest := np.abs(values).max()) >= encoding.beyond:
        wider = "BFLOAT16 or FLOAT32" if encoding is Encoding.FLOAT16 else "FLOAT32"
        raise NotFinite(f"{what} has {largest:.6g}, beyond the range of {encoding.name}; ask for {wider}")


def _check_readings(answer: Readings) -> None:
    columns = (answer.log_probabilities, answer.logits, answer.top_log_probabilities, answer.kl_divergences)
    for what, arrays in (("the prediction", columns), ("the distances of the edits", (answer.edit_norms,))):
        for array in arrays:
            if array is not None and not (rows := np.isfinite(array).reshape(len(array), -1).all(1)).all():
                raise Overflow(answer.offset + int(rows.argmin()), what)


def _sites(question: TraceQuestion | InterveneQuestion) -> tuple[Site, ...]:
    if isinstance(question, InterveneQuestion):
        return question.readout.activations
    assert isinstance(question.method, Activations)
    return question.method.sites


def _generated_sites(question: TraceQuestion | InterveneQuestion) -> tuple[Site, ...]:
    assert isinstance(question, InterveneQuestion)
    assert question.readout.generation is not None
    return question.readout.generation.activations


async def _explained(
    found: Overflow, question: TraceQuestion | InterveneQuestion, session: Session
) -> SondeServerError:
    """The error for the caller: an unchanged run that overflows by itself, otherwise what the question changes."""
    kind = str(session.decoder.dtype).removeprefix("torch.")
    for name, prompt in _prompts(question):
        (state,) = await session.states([Base.of(prompt)])
        block = await session.call(partial(_first_block, state))
        if block is not None:
            where = "its token embeddings" if block < 0 else f"block {block}"
            return NotFinite(f"the unchanged run of {name} is not finite in {kind} from {where} on{_advice(kind)}")
    if isinstance(question, InterveneQuestion) and found.run not in (None, UNCHANGED):
        match question.plan:
            case Sweep():
                path = "sweep.edit"
            case Circuits():
                path = "circuits"
            case _:
                path = f"list.interventions[{found.run}]"
        text = f"in run {found.run} {found.what} would not be finite: its edits exceed the range of {kind}"
        return InvalidQuestion([Violation(path, text)])
    if isinstance(question, TraceQuestion) and isinstance(question.method, CausalTracing):
        corruption = question.method.corruption
        if not isinstance(corruption, Counterfactual):
            path = "causal_tracing.noise" if isinstance(corruption, ExplicitNoise) else "causal_tracing.gaussian"
            text = f"{found.what} would not be finite: the noise exceeds the range of {kind}"
            return InvalidQuestion([Violation(path, text)])
    return NotFinite(f"{found.what}: not finite in {kind}{_advice(kind)}")


def _prompts(question: TraceQuestion | InterveneQuestion) -> Iterator[tuple[str, Prompt]]:
    """The prompts that are run unchanged, by their names in the request."""
    yield "the prompt", question.prompt
    if isinstance(question, InterveneQuestion):
        for number, source in enumerate(question.sources):
            yield f"sources[{number}]", source
    elif isinstance(question.method, AttributionPatching | CircuitDiscovery):
        yield "the source", question.method.source
    elif isinstance(question.method, CausalTracing) and isinstance(question.method.corruption, Counterfactual):
        yield "the counterfactual", question.method.corruption.prompt


def _first_block(state: State) -> int | None:
    """The first block that the stream leaves with a number that is not finite; -1: it enters so. None: no block."""
    with torch.inference_mode():
        return next((depth - 1 for depth, stream in enumerate(state.residual) if not stream.isfinite().all()), None)


def _advice(kind: str) -> str:
    others = {"float16": "bfloat16 or float32", "bfloat16": "float32"}.get(kind)
    return "" if others is None else f"; start the server with --dtype {others}"
