"""Many cases of one question advance together: what each is answered, in which order, and what the model computes."""

import gc
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields, replace
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message
from sonde.v1 import inspection_pb2 as pb
from sonde_server import methods
from sonde_server.engine import Base, State
from sonde_server.errors import InvalidQuestion, NotFinite, Stopped
from sonde_server.questions.answers import Answer, CaseAnswer, Context, Progress
from sonde_server.questions.cases import Cases
from sonde_server.questions.generation import Generated
from sonde_server.questions.interventions import InterveneQuestion, Readings
from sonde_server.questions.traces import TraceQuestion
from sonde_server.sharing.driving import complete
from sonde_server.sharing.jobs import Job
from sonde_server.sharing.session import Session
from sonde_server.wire import decode_intervene, decode_trace

from tests.conftest import Host, Hosts
from tests.support import wire
from tests.support.oracle import Edit, Knockout, Patch, Scale, Site, Sweep, Target
from tests.support.tolerance import assert_near

Question = TraceQuestion | InterveneQuestion
TARGETS = [Target(7), Target(9, 11)]
LENGTHS = (6, 11, 4, 9, 17, 6, 30, 5)


def ids_of(number: int, length: int) -> list[int]:
    """A prompt of its own for every number."""
    return [number % 90 + 5, number // 90 + 5, *((7 * number + 3 * place) % 90 + 5 for place in range(length - 2))]


def asked(host: Host, request: Message) -> Question:
    """What the server makes of a request about one prompt."""
    server = host.server
    assert server._loaded is not None
    described, vocabulary = server._loaded.description, server._loaded.vocabulary
    if isinstance(request, pb.TraceRequest):
        return decode_trace(request, described, vocabulary, server.settings.limits)
    assert isinstance(request, pb.InterveneRequest)
    return decode_intervene(request, described, vocabulary, server.settings.limits)


def together(questions: Sequence[Question], **options: Any) -> Cases[Any]:
    return Cases(tuple(questions), ("",) * len(questions), **options)


@contextmanager
def session_of(host: Host, caller: str = "test") -> Iterator[Session]:
    with host.server.scheduler.session(caller=caller, cancelled=threading.Event()) as session:
        yield session


def answers(host: Host, question: Question | Cases[Any]) -> list[Answer]:
    one = question.questions[0] if isinstance(question, Cases) else question
    ask: Callable[[Any, Session], Iterator[Answer]] = (
        methods.trace if isinstance(one, TraceQuestion) else methods.intervene
    )
    with session_of(host) as session:
        return list(ask(question, session))


def by_case(parts: Iterable[Answer]) -> dict[int, list[Answer]]:
    """The parts of each case. They come case by case, in the order of the request."""
    found = [part for part in parts if not isinstance(part, Progress)]
    assert all(isinstance(part, CaseAnswer) for part in found)
    order = [number for number, _ in groupby(found, key=lambda part: part.case)]  # type: ignore[attr-defined]
    assert order == list(range(len(order)))
    cases: dict[int, list[Answer]] = defaultdict(list)
    for part in found:
        assert isinstance(part, CaseAnswer)
        cases[part.case].append(part.part)
    return cases


def alone(host: Host, question: Question) -> list[Answer]:
    return [part for part in answers(host, question) if not isinstance(part, Progress)]


def assert_same(first: Any, second: Any, where: str) -> None:
    """The same parts with the same numbers, within the rounding of float32."""
    assert type(first) is type(second), where
    if isinstance(first, Answer) or type(first).__name__ == "Prediction":
        for field in fields(first):
            assert_same(getattr(first, field.name), getattr(second, field.name), f"{where}.{field.name}")
    elif isinstance(first, np.ndarray) and first.dtype.kind == "f" and first.size:
        masked = np.isneginf(second)
        np.testing.assert_array_equal(np.isneginf(first), masked, where)
        assert_near(np.where(masked, 0, first), np.where(masked, 0, second), where)
    elif isinstance(first, np.ndarray):
        assert isinstance(second, np.ndarray)
        assert first.shape == second.shape, where
        np.testing.assert_array_equal(first, second, where)
    else:
        assert first == second, where


def bits(parts: Iterable[Any]) -> list[Any]:
    """Every number of an answer, bit for bit."""
    flat: list[Any] = []
    for part in parts:
        if isinstance(part, np.ndarray):
            flat.append(part.tobytes())
        elif isinstance(part, Answer) or type(part).__name__ == "Prediction":
            flat.append(bits(getattr(part, field.name) for field in fields(part)))
        else:
            flat.append(part)
    return flat


def traced(ids: list[int], **method: Any) -> pb.TraceRequest:
    targets = [wire.target(one) for one in TARGETS]
    return pb.TraceRequest(prompt=wire.prompt(ids), targets=targets, top_k=3, **method)


def changed(ids: list[int], plan: Any, sources: Sequence[Sequence[int]] = (), **readout: Any) -> pb.InterveneRequest:
    return wire.intervene(ids, plan, TARGETS, sources, **readout)


def causal(ids: list[int]) -> pb.TraceRequest:
    gaussian = pb.CausalTracing.Gaussian(samples=3)
    subject = pb.PositionList(positions=[1, 2])
    return traced(
        ids, causal_tracing=pb.CausalTracing(gaussian=gaussian, subject_positions=subject, window=2, layers=[0, 2])
    )


def reversed_source(ids: list[int]) -> list[int]:
    return [ids[0], *reversed(ids[1:])]


SITES = [Site("RESIDUAL_POST", (0, 3), (), (-1,)), Site("HEAD_OUT", (1,)), Site("ATTENTION_SCORES", (2,))]
SWEEP = Sweep(Edit(Site("HEAD_OUT"), Scale(0.0)))
ABLATED = [[Edit(Site("NEURON", (2,), (unit,), (-1,)), Scale(0.0))] for unit in (1, 5)]
KINDS: dict[str, Callable[[list[int]], Message]] = {
    "prediction": traced,
    "token probability": lambda ids: traced(ids, token_probability=pb.TokenProbability(gradient_norms=True)),
    "causal tracing": causal,
    "attribution patching": lambda ids: traced(
        ids,
        attribution_patching=pb.AttributionPatching(
            source=wire.prompt(reversed_source(ids)), components=[pb.COMPONENT_MLP_OUT], verify_top=3
        ),
    ),
    "activations": lambda ids: traced(ids, activations=pb.Activations(sites=[wire.site(site) for site in SITES])),
    "interventions": lambda ids: changed(ids, ABLATED, kl_divergence=True, top_k=3),
    "what is read of runs": lambda ids: changed(ids, ABLATED, activations=[wire.site(site) for site in SITES]),
    "knockout": lambda ids: changed(ids, [[Edit(Site("ATTENTION_SCORES", (2,), (1,), (-1,)), Knockout((0, 1)))]]),
    "patched heads": lambda ids: changed(
        ids, Sweep(Edit(Site("HEAD_OUT", positions=(-1,)), Patch((0,)))), [reversed_source(ids)]
    ),
    "generation": lambda ids: changed(ids, ABLATED, generation=pb.Generation(max_new_tokens=5, temperature=0.7)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_case_is_answered_as_if_it_were_alone(host: Host, kind: str) -> None:
    cache = host.server.scheduler.engine.cache
    questions = [asked(host, KINDS[kind](ids_of(number, length))) for number, length in enumerate(LENGTHS)]
    cache.clear()
    expected = [alone(host, question) for question in questions]
    cache.clear()
    parts = answers(host, together(questions))
    found = by_case(parts)
    assert len(found) == len(questions)
    for number, own in enumerate(expected):
        assert len(found[number]) == len(own)
        for place, (first, second) in enumerate(zip(found[number], own, strict=True)):
            assert_same(first, second, f"{kind}: case {number}, part {place}")
    # The same again, to the last bit.
    cache.clear()
    assert bits(answers(host, together(questions))) == bits(parts)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_computed_that_the_cases_alone_would_not_compute(llama: Host, kind: str) -> None:
    engine = llama.server.scheduler.engine
    questions = [asked(llama, KINDS[kind](ids_of(number, length))) for number, length in enumerate(LENGTHS)]
    counts = []
    for asking in (questions, [together(questions)]):
        engine.cache.clear()
        before = engine.work.token_layers, engine.work.rows
        for one in asking:
            answers(llama, one)
        counts.append((engine.work.token_layers - before[0], engine.work.rows - before[1]))
    assert counts[0] == counts[1]


def batches(host: Host, question: Question | Cases[Any]) -> int:
    engine = host.server.scheduler.engine
    engine.cache.clear()
    before = engine.work.batches
    answers(host, question)
    return engine.work.batches - before


def test_small_cases_fill_batches(gpt2: Host) -> None:
    engine = gpt2.server.scheduler.engine
    questions = [asked(gpt2, traced(ids_of(number, 3 + number % 60))) for number in range(250)]
    needed = sum(engine.memory.row_bytes(engine.base_row(Base(one.prompt.tokens), None)) for one in questions)
    least = math.ceil(needed / engine.memory.batch_bytes)
    assert 3 <= least <= 20
    assert least <= batches(gpt2, together(questions)) <= least + 1


def test_cases_that_generate_do_so_in_one_batch_a_step(gpt2: Host) -> None:
    steps = 6
    generation = pb.Generation(max_new_tokens=steps, ignore_end_token=True)
    questions = [asked(gpt2, changed(ids_of(n, 5 + n % 7), ABLATED[:1], generation=generation)) for n in range(64)]
    # The unchanged runs, the first tokens of both runs of every case, and each further token.
    assert batches(gpt2, together(questions)) == 1 + 1 + (steps - 1)


def test_a_prompt_or_source_of_several_cases_runs_once(gpt2: Host) -> None:
    engine = gpt2.server.scheduler.engine
    prompts = [ids_of(number % 3, 9) for number in range(9)]
    source = ids_of(50, 9)
    plan = [[Edit(Site("MLP_OUT", (1,), (), (-1,)), Patch((0,)))]]
    questions = [asked(gpt2, changed(ids, plan, [source])) for ids in prompts]
    engine.cache.clear()
    misses, before = engine.cache.misses, engine.work.token_layers
    parts = answers(gpt2, together(questions))
    assert engine.cache.misses - misses == 4
    costs = [part.part.cost for part in parts if isinstance(part, CaseAnswer) and isinstance(part.part, Context)]
    again = (2 * len(prompts) - 4) * 9 * engine.layers
    # What is read of the source is read once, at the last position of one block.
    read = (len(prompts) - 1) * 1
    assert engine.work.token_layers - before == sum(cost.token_layers for cost in costs) - again - read


def test_progress_is_that_of_the_whole(gpt2: Host) -> None:
    questions = [asked(gpt2, changed(ids_of(n, 5 + n % 7), ABLATED)) for n in range(20)]
    told = [part for part in answers(gpt2, together(questions)) if isinstance(part, Progress)]
    assert (told[0].done, told[0].cases_done) == (0, 0)
    assert (told[-1].done, told[-1].cases_done) == (40, 20)
    assert all(one.runs and (one.total, one.cases) == (40, 20) for one in told)
    assert all(one.done <= other.done and one.cases_done <= other.cases_done for one, other in pairwise(told))


def test_a_dry_run_runs_nothing(gpt2: Host) -> None:
    engine = gpt2.server.scheduler.engine
    before = engine.work.batches
    questions = [replace(asked(gpt2, changed(ids_of(n, 5), ABLATED)), dry_run=True) for n in range(5)]
    parts = answers(gpt2, together(questions, dry_run=True))
    (context,) = parts
    assert isinstance(context, Context)
    assert (context.clean, context.tokens, context.cost.cases) == (None, (), 5)
    costs = [question.cost(gpt2.server.scheduler.engine.decoder) for question in questions]
    assert context.cost.runs == sum(cost.runs for cost in costs)
    assert context.cost.token_layers == sum(cost.token_layers for cost in costs)
    assert engine.work.batches == before


def test_no_cases_at_all_have_no_answer(gpt2: Host) -> None:
    with session_of(gpt2) as session:
        assert [part for part in methods.trace(Cases((), ()), session) if not isinstance(part, Progress)] == []


def test_large_cases_come_one_after_another(hosts: Hosts) -> None:
    """Sweeps of several batches each: what is computed ahead of the first is less than a few batches."""
    wide = hosts["gpt2-wide"]
    engine = wide.server.scheduler.engine
    sweep = Sweep(Edit(Site("NEURON", (0,)), Scale(0.0)))
    questions = [asked(wide, changed(ids_of(number, 7), sweep)) for number in range(3)]
    whole = questions[0].cost(engine.decoder).token_layers
    batch = engine.memory.batch_positions * engine.layers
    assert whole > 4 * batch
    done = 0
    with session_of(wide) as session:
        before = engine.work.token_layers
        for part in methods.intervene(together(questions), session):
            if isinstance(part, Progress) and part.cases_done > done:
                done = part.cases_done
                assert engine.work.token_layers - before < done * whole + 5 * batch
    assert done == len(questions)


def test_cases_hold_little_at_a_time(gpt2: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded by what cases that advance together may hold, and never by how many there are."""
    engine = gpt2.server.scheduler.engine
    questions = [asked(gpt2, changed(ids_of(number, 40), ABLATED)) for number in range(30)]
    each = questions[0].held_bytes(engine.decoder)
    monkeypatch.setattr("sonde_server.sharing.cases.live_bytes", lambda device: 6 * each)
    monkeypatch.setattr(engine.cache, "limit", 0)
    engine.cache.clear()
    settle(gpt2)
    others = alive()
    most, looks = 0, {1, 10, 20, 29}
    with session_of(gpt2) as session:
        for part in methods.intervene(together(questions), session):
            if isinstance(part, Progress) and part.cases_done in looks:
                looks.remove(part.cases_done)
                most = max(most, alive() - others)
    # A state for each case that is live, and those of rows that the model's thread has just computed.
    assert 2 <= most <= 2 * 6
    assert not looks


def alive() -> int:
    """States that were computed and are held by anything."""
    gc.collect()
    return sum(type(one) is State and bool(one.residual) for one in gc.get_objects())


def settle(host: Host) -> None:
    with session_of(host) as session:
        complete(session.call(lambda: None), session)


def test_cases_that_are_given_up_leave_nothing_behind(gpt2: Host) -> None:
    scheduler = gpt2.server.scheduler
    engine = scheduler.engine
    engine.cache.clear()
    questions = [asked(gpt2, changed(ids_of(number, 20), SWEEP)) for number in range(40)]
    with session_of(gpt2) as session, closing(methods.intervene(together(questions), session)) as parts:  # type: ignore[type-var]
        for part in parts:
            if isinstance(part, CaseAnswer) and isinstance(part.part, Readings):
                break
    settle(gpt2)
    counted = engine.work.token_layers
    settle(gpt2)
    assert engine.work.token_layers == counted
    assert not scheduler.queue._lines
    assert not scheduler.backlog.owners
    assert not scheduler._shared.bases._begun
    # What was begun is begun again by who asks next.
    assert len(answers(gpt2, questions[-1])) > 2


def test_cases_stop_when_they_are_cancelled_or_late(gpt2: Host) -> None:
    questions = [asked(gpt2, changed(ids_of(number, 20), SWEEP)) for number in range(9)]
    scheduler = gpt2.server.scheduler
    cancelled = threading.Event()
    with scheduler.session(caller="test", cancelled=cancelled) as session:
        parts = methods.intervene(together(questions), session)
        assert any(isinstance(part, CaseAnswer) for part in parts)
        cancelled.set()
        with pytest.raises(Stopped):
            list(parts)
    with pytest.raises(Stopped), scheduler.session(caller="t", cancelled=threading.Event(), deadline=0.0) as session:
        list(methods.intervene(together(questions), session))
    settle(gpt2)
    assert not scheduler.queue._lines


def test_an_error_names_its_case(gpt2: Host) -> None:
    questions = [asked(gpt2, changed(ids_of(number, 7), ABLATED)) for number in range(9)]
    loud = [[Edit(Site("RESIDUAL_POST", (1,), (), (-1,)), Scale(1e38))], *ABLATED]
    questions[3] = asked(gpt2, changed(ids_of(3, 7), loud))
    with pytest.raises((InvalidQuestion, NotFinite), match="case 3: in run 0"):
        answers(gpt2, together(questions))
    settle(gpt2)
    assert not gpt2.server.scheduler.queue._lines


def test_small_questions_pass_the_batches_of_many_cases(gpt2: Host) -> None:
    """Another caller's question is answered while the cases go on."""
    questions = [asked(gpt2, changed(ids_of(number, 30), ABLATED)) for number in range(200)]
    small = asked(gpt2, changed(ids_of(77, 8), ABLATED[:1]))
    batch = gpt2.server.scheduler.engine.work
    with session_of(gpt2, "cases") as session:
        parts = methods.intervene(together(questions), session)
        seen = next(part for part in parts if isinstance(part, CaseAnswer))
        before = batch.batches
        with session_of(gpt2, "small") as other:
            assert any(isinstance(part, Readings) for part in methods.intervene(small, other))
        assert batch.batches - before <= 6
        rest = [part for part in parts if isinstance(part, CaseAnswer)]
    assert seen.case == 0
    assert rest[-1].case == 199


def test_another_question_about_the_same_prompt_waits_for_no_reader(gpt2: Host) -> None:
    """A base run that cases hold back, while nobody reads them, is not waited for by others."""
    engine = gpt2.server.scheduler.engine
    engine.cache.clear()
    questions = [asked(gpt2, traced(ids_of(number, 30))) for number in range(300)]
    with session_of(gpt2, "cases") as session:
        parts = methods.trace(together(questions), session)
        next(part for part in parts if isinstance(part, CaseAnswer))
        # Nobody reads on. Some of these are computed, some under way, some held back, some not begun.
        for question in questions[::20]:
            assert answers(gpt2, question)


def test_a_round_is_sent_at_once_and_by_work_alone(gpt2: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rounds each time, whatever the model's speed: the cases decide, and not the clock."""
    queue = gpt2.server.scheduler.queue
    questions = [asked(gpt2, KINDS["patched heads"](ids_of(number, 4 + number % 9))) for number in range(30)]
    put = queue.put

    def rounds(delay: float) -> list[int]:
        sizes: list[int] = []

        def watched(jobs: Iterable[Job]) -> None:
            sent = list(jobs)
            sizes.append(len(sent))
            put(sent)
            threading.Event().wait(delay)

        gpt2.server.scheduler.engine.cache.clear()
        monkeypatch.setattr(queue, "put", watched)
        answers(gpt2, together(questions))
        return sizes

    assert rounds(0.0) == rounds(0.005)


def test_what_generates_is_told_case_by_case(gpt2: Host) -> None:
    generation = pb.Generation(max_new_tokens=3, ignore_end_token=True)
    questions = [asked(gpt2, changed(ids_of(n, 5), ABLATED[:1], generation=generation)) for n in range(3)]
    found = by_case(answers(gpt2, together(questions)))
    assert all(sum(isinstance(part, Generated) for part in parts) == 3 for parts in found.values())
