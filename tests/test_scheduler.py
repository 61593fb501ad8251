"""Many callers, one model: fair turns, shared batches, work that stops when nobody waits for it."""

import gc
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import grpc
import numpy as np
import pytest
import torch
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub
from sonde_server.engine.layout import Row
from sonde_server.questions.costs import state_bytes
from sonde_server.sharing.driving import complete
from sonde_server.sharing.jobs import Job, Portion
from sonde_server.sharing.results import AHEAD, WINDOW

from tests.conftest import DEADLINE, Host, Hosts
from tests.support import wire
from tests.support.oracle import Edit, Knockout, Patch, Scale, Site, Sweep, Target
from tests.support.tolerance import assert_close

TARGETS = [Target(7), Target(9, 11)]
# Batches of the sweep that a small question may have to wait for: one under way, one that it shares, one between.
FEW_BATCHES = 6


@pytest.fixture(scope="module")
def wide(hosts: Hosts) -> Host:
    """A model whose neurons x layers x positions are more than 100,000 runs."""
    return hosts["gpt2-wide"]


def long_sweep(length: int = 64) -> pb.InterveneRequest:
    """Each neuron of each layer at each position: 106,496 runs on the wide model at 64 tokens, the cheapest first."""
    return wire.intervene(list(range(3, 3 + length)), Sweep(Edit(Site("NEURON", (3, 2, 1, 0)), Scale(0.0))), TARGETS)


def small(number: int = 0) -> pb.InterveneRequest:
    ids = [number % 50 + 5, *range(40, 48)]
    return wire.intervene(ids, [[Edit(Site("NEURON", (2,), (5,), (-1,)), Scale(0.0))]], TARGETS, top_k=3)


@contextmanager
def under_way(host: Host, request: pb.InterveneRequest) -> Iterator[grpc.Call]:
    """A call that has begun to answer, and is cancelled at the end."""
    call = host.stub.Intervene(request)
    next(iter(call))
    try:
        yield call
    finally:
        call.cancel()


def wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.005)


def settle(host: Host) -> None:
    """Waits until no question is accepted any more, and nothing of one is on the model."""
    wait_until(lambda: not host.server.scheduler.queued_runs, "a cancelled question is still accepted")
    with host.server.scheduler.session(caller="test", cancelled=threading.Event()) as session:
        complete(session.call(lambda: None), session)


def batches_while_it_waits(host: Host, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on, how many batches each job of small questions waits for in the queue, its own among them.

    Counted while it is there: what a question takes on its way to the queue and back depends on the machine.
    """
    queue, work = host.server.scheduler.queue, host.server.scheduler.engine.work
    waits: list[int] = []
    put = queue.put

    def done(before: int, _: object) -> None:
        waits.append(work.batches - before)

    def watched(jobs: Iterable[Job]) -> None:
        jobs = list(jobs)
        for job in jobs:
            if not (isinstance(job, Portion) and job.alone):
                job.future.add_done_callback(partial(done, work.batches))
        put(jobs)

    monkeypatch.setattr(queue, "put", watched)
    return waits


def test_a_small_question_does_not_wait_for_a_long_sweep(wide: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = wide.intervene(small())
    with under_way(wide, long_sweep()), grpc.insecure_channel(wide.server.address) as channel:
        assert wide.server.scheduler.queued_runs > 100_000 - WINDOW * AHEAD
        waits = batches_while_it_waits(wide, monkeypatch)
        company = wire.join_intervene(InspectionServiceStub(channel).Intervene(small(1), timeout=DEADLINE))
        assert waits
        assert max(waits) <= FEW_BATCHES
        again = wire.join_intervene(InspectionServiceStub(channel).Intervene(small(), timeout=DEADLINE))
    assert company.columns["log_probabilities"].shape == (1, 2)
    assert_close(again.columns["log_probabilities"], alone.columns["log_probabilities"])


def test_cancelling_stops_the_work(wide: Host) -> None:
    work = wide.server.scheduler.engine.work
    before = work.rows
    with under_way(wide, long_sweep(63)) as call:
        call.cancel()
        settle(wide)
        counted = work.token_layers
        # Another question is answered, and nothing but it has been computed.
        cost = wide.intervene(small(40)).context.cost
        assert work.token_layers - counted == cost.token_layers
    assert work.rows - before < 50_000


def test_a_deadline_stops_the_work(wide: Host) -> None:
    work = wide.server.scheduler.engine.work
    before = work.rows
    with pytest.raises(grpc.RpcError) as caught:
        list(wide.stub.Intervene(long_sweep(59), timeout=1.0))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    settle(wide)
    counted = work.token_layers
    cost = wide.intervene(small(41)).context.cost
    assert work.token_layers - counted == cost.token_layers
    assert work.rows - before < 50_000


def test_a_long_sweep_holds_no_more_than_a_window(wide: Host) -> None:
    """Memory stays flat: rows are made as results are taken."""
    settle(wide)
    with under_way(wide, long_sweep(62)) as call:
        for _ in range(3):
            next(iter(call))
            gc.collect()
            alive = sum(type(one) is Row for one in gc.get_objects())
            # A window, and the batch that the model's thread has just computed.
            assert alive <= 2 * WINDOW


def test_a_slow_reader_slows_only_itself(wide: Host) -> None:
    engine = wide.server.scheduler.engine
    with under_way(wide, long_sweep(61)), ThreadPoolExecutor(4) as pool:
        # Nobody reads on: what fits between server and client is filled, and then the sweep stands still.
        answers = list(pool.map(lambda number: wide.intervene(small(number)), range(12)))
        assert all(len(answer.columns["log_probabilities"]) == 1 for answer in answers)
        assert engine.work.rows < 200_000


def requests() -> list[pb.InterveneRequest]:
    """Different prompts, lengths, kinds of edits and readouts, as many callers would send them at once."""
    prompts = [[number + 4, *range(20, 24 + number % 5)] for number in range(12)]
    sweep = Sweep(Edit(Site("HEAD_OUT"), Scale(0.0)))
    plans: list[tuple[list[list[Edit]] | Sweep, list[list[int]]]] = [
        ([[Edit(Site("NEURON", (1,), (3,), (-1,)), Scale(0.0))]], []),
        ([[Edit(Site("RESIDUAL_POST", (0,), (), (2,)), Patch((0,)))]], [[9, 8, 7, 6]]),
        (sweep, []),
        ([[Edit(Site("ATTENTION_SCORES", (2,), (1,), (-1,)), Knockout((0, 1)))]], []),
        ([[Edit(Site("KEY", (1,), (0,), (1,)), Scale(2.0)), Edit(Site("MLP_OUT", (3,), (), (-1,)), Scale(-1.0))]], []),
        ([[Edit(Site("FINAL_NORM", (), (), (-1,)), Scale(0.5))]], []),
    ]
    result = []
    for number, ids in enumerate(prompts):
        plan, sources = plans[number % len(plans)]
        result.append(wire.intervene(ids, plan, TARGETS, sources, top_k=4, kl_divergence=number % 2 == 0))
    return result


def test_alone_is_as_in_company(host: Host) -> None:
    """Every value of every answer, asked one after the other and all at once."""
    engine = host.server.scheduler.engine
    asked = requests()
    alone = [host.intervene(request) for request in asked]
    engine.cache.clear()
    before = engine.work.batches
    with ThreadPoolExecutor(len(asked)) as pool:
        company = list(pool.map(host.intervene, asked))
    shared = engine.work.batches - before
    for number, (first, second) in enumerate(zip(alone, company, strict=True)):
        assert first.columns.keys() == second.columns.keys()
        for name, values in first.columns.items():
            if values.dtype.kind == "f":
                assert_close(second.columns[name], values, f"{number} {name}")
    # A clean run and the edited ones for each would be more.
    assert shared < 2 * len(asked)


def test_a_lone_caller_gets_the_same_bits_whatever_is_kept(gpt2: Host) -> None:
    """The answer to one request does not depend on what was asked before it."""
    ids, cache = [3, 9, 30, 31, 32, 33, 34], gpt2.server.scheduler.engine.cache

    def traced(samples: int) -> pb.TraceRequest:
        method = pb.CausalTracing(
            gaussian=pb.CausalTracing.Gaussian(samples=samples), subject_positions=pb.PositionList(positions=[1, 2])
        )
        return pb.TraceRequest(prompt=wire.prompt(ids), targets=[wire.target(TARGETS[0])], causal_tracing=method)

    edits = [
        [Edit(Site("NEURON", (1,), (3,), (-1,)), Scale(0.0))],
        [Edit(Site("MLP_OUT", (1, 2), (), (3, 4)), Patch((0,)))],
        [Edit(Site("ATTENTION_PATTERN", (2,), (0,), (5,)), Patch((1,)))],
    ]
    patterns = wire.site(Site("ATTENTION_PATTERN", (1,)))
    questions = [
        wire.intervene(ids, edits, TARGETS, [[7, *ids[1:]], ids], top_k=3, kl_divergence=True),
        wire.intervene(ids, edits[:1], TARGETS, activations=[patterns]),
        wire.intervene(ids, edits[:1], TARGETS),
    ]
    cache.clear()
    grids = [part.SerializeToString() for one in gpt2.stub.Trace(traced(5)) for part in one.grids]
    list(gpt2.stub.Trace(traced(9)))
    assert [part.SerializeToString() for one in gpt2.stub.Trace(traced(5)) for part in one.grids] == grids
    kept = [gpt2.intervene(question) for question in questions]
    for question, answer in zip(questions, kept, strict=True):
        cache.clear()
        fresh = gpt2.intervene(question)
        assert fresh.columns.keys() == answer.columns.keys()
        for name, values in fresh.columns.items():
            np.testing.assert_array_equal(answer.columns[name], values, name)
        for place, values in fresh.activations.items():
            np.testing.assert_array_equal(answer.activations[place], values, str(place))


def details(error: grpc.RpcError, kind: type) -> list[object]:
    status = rpc_status.from_call(error)
    assert status is not None
    found = []
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            found.append(message)
    return found


def test_a_full_queue_says_when_to_come_again(wide: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    backlog = wide.server.scheduler.backlog
    with under_way(wide, long_sweep(60)):
        # Far fewer than the sweep still has: what it does meanwhile makes no room for the small question.
        monkeypatch.setattr(backlog, "max_runs", 2)
        with pytest.raises(grpc.RpcError) as caught:
            wide.intervene(small(3))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        (retry,) = details(caught.value, error_details_pb2.RetryInfo)
        assert retry.retry_delay.ToTimedelta().total_seconds() > 0
        assert f"{backlog.max_runs:,}" in caught.value.details()
    settle(wide)
    assert len(wide.intervene(small(3)).columns["log_probabilities"]) == 1


def test_what_can_never_be_held_is_refused_for_good(wide: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = state_bytes(9, wide.server._loaded.description)  # type: ignore[union-attr]
    monkeypatch.setattr(wide.server.scheduler.backlog, "max_bytes", needed - 1)
    with pytest.raises(grpc.RpcError) as caught:
        wide.intervene(small(4))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert f"{needed - 1:,}" in caught.value.details()


@contextmanager
def memory_for(model: torch.nn.Module, tokens: int) -> Iterator[list[int]]:
    """The model's first MLP finds no memory for more than so many tokens; yields the sizes that failed."""
    failed: list[int] = []

    def fail(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        size = inputs[0].shape[-2]
        if size > tokens:
            failed.append(size)
            raise torch.OutOfMemoryError(f"{size} tokens do not fit")

    handles = [block.mlp.register_forward_pre_hook(fail) for block in model.transformer.h]  # type: ignore[union-attr]
    try:
        yield failed
    finally:
        for handle in handles:
            handle.remove()


def test_too_large_a_batch_is_halved(gpt2: Host) -> None:
    request = wire.intervene([3, 1, 4, 1, 5, 9, 2, 6], Sweep(Edit(Site("HEAD_OUT"), Scale(0.0))), TARGETS)
    expected = gpt2.intervene(request)
    with memory_for(gpt2.server.model, 8) as failed:
        answer = gpt2.intervene(request)
    assert failed
    assert_close(answer.columns["log_probabilities"], expected.columns["log_probabilities"])
    assert_close(gpt2.intervene(request).columns["logits"], expected.columns["logits"])


def test_what_does_not_fit_alone_is_not_now(gpt2: Host) -> None:
    request = wire.intervene([8, 1, 4, 1, 5, 9, 2, 6], Sweep(Edit(Site("HEAD_OUT"), Scale(0.0))), TARGETS)
    with memory_for(gpt2.server.model, 3), pytest.raises(grpc.RpcError) as caught:
        gpt2.intervene(request)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(gpt2.intervene(request).columns["logits"]) == gpt2.oracle.layers * 4 * 8


def test_one_callers_failure_is_not_anothers(gpt2: Host) -> None:
    """Rows that fail beside others are computed apart: only whose they are is told."""
    engine = gpt2.server.scheduler.engine
    engine.cache.clear()
    requests = [
        wire.intervene([number, *range(30, 30 + length)], [[Edit(Site("MLP_OUT", (1,)), Scale(0.0))]], TARGETS)
        for number, length in ((1, 4), (2, 40), (3, 5), (4, 6))
    ]
    with memory_for(gpt2.server.model, 12), ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(gpt2.intervene, request) for request in requests]
        errors = [answer.exception() for answer in answers]
    assert [error is None for error in errors] == [True, False, True, True]
    assert isinstance(errors[1], grpc.RpcError)
    assert errors[1].code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_model_has_the_runs_of_a_small_question_before_anybody_reads_its_prediction(
    wide: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where targets and KL come from that prediction."""
    settle(wide)
    queue = wide.server.scheduler.queue
    put, handed_in = queue.put, []

    def watched(jobs: Iterable[Job]) -> None:
        together = list(jobs)
        handed_in.append(len(together))
        put(together)

    monkeypatch.setattr(queue, "put", watched)
    plan = [[Edit(Site("NEURON", (2,), (unit,), (-1,)), Scale(0.0))] for unit in (1, 2)]
    answer = wide.intervene(wire.intervene([53, 59, 61, 67, 71], plan, kl_divergence=True, top_k=3))
    assert handed_in == [2]
    assert list(answer.context.targets) == answer.context.clean.top_tokens[:1]
    assert answer.columns["kl_divergences"].min() > 0


def test_two_who_ask_about_a_new_prompt_at_once_have_it_run_once(wide: Host) -> None:
    settle(wide)
    scheduler = wide.server.scheduler
    ids = [11, 13, 17, 19, 23, 29, 31]
    requests = [
        wire.intervene(ids, [[Edit(Site("NEURON", (2,), (unit,), (-1,)), Scale(0.0))]], TARGETS) for unit in (1, 2)
    ]
    go_on, before = threading.Event(), scheduler.engine.work.token_layers
    with scheduler.session(caller="test", cancelled=threading.Event()) as session, ThreadPoolExecutor(3) as pool:
        # Both have asked before the model has a moment for either.
        blocking = pool.submit(complete, session.call(lambda: go_on.wait(DEADLINE)), session)
        hits = scheduler.engine.cache.hits
        asked = [pool.submit(wide.intervene, request) for request in requests]
        wait_until(lambda: scheduler.engine.cache.hits > hits, "the second has not found the first one's run")
        go_on.set()
        assert blocking.result()
        answers = [one.result() for one in asked]
    planned = [answer.context.cost.token_layers for answer in answers]
    base = len(ids) * scheduler.engine.layers
    assert scheduler.engine.work.token_layers - before == sum(planned) - base
    for answer, request in zip(answers, requests, strict=True):
        assert_close(answer.columns["log_probabilities"], wide.intervene(request).columns["log_probabilities"])


def test_a_run_that_its_caller_gave_up_is_begun_again_by_who_waits_for_it(wide: Host) -> None:
    settle(wide)
    scheduler = wide.server.scheduler
    ids = [37, 41, 43, 47, 5, 7]
    request = wire.intervene(ids, [[Edit(Site("NEURON", (2,), (3,), (-1,)), Scale(0.0))]], TARGETS)
    go_on = threading.Event()
    with scheduler.session(caller="test", cancelled=threading.Event()) as session, ThreadPoolExecutor(2) as pool:
        blocking = pool.submit(complete, session.call(lambda: go_on.wait(DEADLINE)), session)
        misses, hits = scheduler.engine.cache.misses, scheduler.engine.cache.hits
        first = wide.stub.Intervene(request)
        wait_until(lambda: scheduler.engine.cache.misses > misses, "the first has not begun")
        second = pool.submit(wide.intervene, request)
        wait_until(lambda: scheduler.engine.cache.hits > hits, "the second has not found the first one's run")
        first.cancel()
        # Nothing tells from outside that the server knows of a cancel.
        wait_until(
            lambda: any(one.stopped() for one in scheduler.backlog.owners),
            "the server has not heard that it was cancelled",
        )
        go_on.set()
        assert blocking.result()
        answer = second.result()
    assert_close(answer.columns["log_probabilities"], wide.intervene(request).columns["log_probabilities"])
