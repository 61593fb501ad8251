"""Small work passes a large batch between two of its blocks: counted by hooks in the model's own modules."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from sonde.v1 import inspection_pb2 as pb
from sonde_server.engine import Base, Capture, Change, PlacedEdit, Reading, Run
from sonde_server.engine.layout import Row
from sonde_server.engine.memory import FEWEST_POSITIONS, MOST_POSITIONS, OPERATIONS
from sonde_server.errors import Stopped
from sonde_server.questions.places import Component
from sonde_server.questions.prompts import Target
from sonde_server.sharing.driving import complete
from sonde_server.sharing.jobs import Call, Job, Portion
from sonde_server.sharing.session import Session

from tests.conftest import Host, Hosts
from tests.support import wire
from tests.support.oracle import Edit, Scale, Site, Sweep
from tests.support.replicas import wait_for

LAYERS = 4
LONG, SHORT = tuple(range(3, 23)), (61, 62, 63, 64, 65, 66, 67)
COPIES = 60
LARGE, SMALL = COPIES * len(LONG), len(SHORT)
# In the last block only what is read goes through the MLP: the last position of each run.
LARGE_BLOCKS = [(0, LARGE), (1, LARGE), (2, LARGE), (3, COPIES)]
SMALL_BLOCKS = [(0, SMALL), (1, SMALL), (2, SMALL), (3, 1)]

Arrival = Callable[[int, int], None]


@pytest.fixture
def wide(hosts: Hosts) -> Host:
    return hosts["gpt2-wide"]


@contextmanager
def watched(host: Host, arrive: Arrival = lambda layer, positions: None) -> Iterator[list[tuple[int, int]]]:
    """Yields what each block's MLP computes, as (layer, positions), in order; `arrive` is called before it does."""
    seen: list[tuple[int, int]] = []

    def hook(layer: int) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def before(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen.append((layer, inputs[0].shape[-2]))
            arrive(*seen[-1])

        return before

    blocks = host.server.model.transformer.h
    handles = [block.mlp.register_forward_pre_hook(hook(layer)) for layer, block in enumerate(blocks)]  # type: ignore[union-attr,arg-type,operator]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def sessions(host: Host, *callers: str) -> Iterator[list[Session]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(host.server.scheduler.session(caller=caller, cancelled=threading.Event()))
            for caller in callers
        ]


def rows_of(session: Session, tokens: tuple[int, ...], copies: int) -> list[Row]:
    """Runs through all blocks at all positions, each with another edit."""
    (state,) = complete(session.states([Base(tokens)]), session)
    reading = Reading(len(tokens) - 1, (Target(7),))
    edits = [
        PlacedEdit(Component.RESIDUAL_PRE, 0, (0,), None, Change("multiply", 1 + number / copies))
        for number in range(copies)
    ]
    return [session.engine.run_row(Run(state, [edit], reading)) for edit in edits]


def values_of(rows: list[Row]) -> list[float]:
    return [float(row.result.log_probabilities[0]) for row in rows if row.result.log_probabilities is not None]


@pytest.mark.parametrize("other", ["same", "other"])
def test_small_work_passes_a_large_batch_between_two_blocks(wide: Host, other: str) -> None:
    """That of the same caller too; it is executed to its end, and the large batch continues as it was."""
    portions: list[Portion] = []

    def arrive(layer: int, positions: int) -> None:
        if (layer, positions) == (1, LARGE) and not portions:
            portions.append(asking.submit(few))

    with sessions(wide, "same", other) as (sweeping, asking):
        few, many = rows_of(asking, SHORT, 1), rows_of(sweeping, LONG, COPIES)
        with watched(wide) as undisturbed:
            sweeping.wait(sweeping.submit(many))
        expected = values_of(many)
        many = rows_of(sweeping, LONG, COPIES)
        with watched(wide, arrive) as seen:
            sweeping.wait(sweeping.submit(many))
            asking.wait(portions[0])
        assert undisturbed == LARGE_BLOCKS
        assert seen == LARGE_BLOCKS[:2] + SMALL_BLOCKS + LARGE_BLOCKS[2:]
        # Bit for bit.
        assert values_of(many) == expected
        assert len(values_of(few)) == 1


def test_one_batch_passes_between_two_blocks(wide: Host) -> None:
    portions: list[Portion] = []

    def arrive(layer: int, positions: int) -> None:
        if (layer, positions) == (0, LARGE):
            portions.append(asking.submit(few))
        if (layer, positions) == (0, SMALL) and len(portions) == 1:
            portions.append(following.submit(more))

    with sessions(wide, "sweep", "other", "another") as (sweeping, asking, following):
        few, more = rows_of(asking, SHORT, 1), rows_of(following, SHORT, 1)
        many = rows_of(sweeping, LONG, COPIES)
        with watched(wide, arrive) as seen:
            sweeping.wait(sweeping.submit(many))
            following.wait(portions[1])
    assert seen == LARGE_BLOCKS[:1] + SMALL_BLOCKS + LARGE_BLOCKS[1:2] + SMALL_BLOCKS + LARGE_BLOCKS[2:]


def test_what_passes_a_large_batch_takes_no_longer_than_that_in_all(wide: Host) -> None:
    """So a stream of small questions leaves it half of the time."""
    copies, first, second = 28, 72, 41
    portions: list[Portion] = []

    def arrive(layer: int, positions: int) -> None:
        if (layer, positions) == (0, copies * len(LONG)):
            portions.append(asking.submit(some))
        if (layer, positions) == (1, copies * len(LONG)):
            portions.append(following.submit(more))

    with sessions(wide, "sweep", "other", "another") as (sweeping, asking, following):
        # About 3/4 of the large batch's work, and 2/5. Each is less than what remains when it comes.
        some, more = rows_of(asking, SHORT, first), rows_of(following, SHORT, second)
        many = rows_of(sweeping, LONG, copies)
        with watched(wide, arrive) as seen:
            sweeping.wait(sweeping.submit(many))
            for session, portion in zip((asking, following), portions, strict=True):
                session.wait(portion)
    large, passing = copies * len(LONG), first * SMALL
    assert seen[:-LAYERS] == [
        (0, large), (0, passing), (1, passing), (2, passing), (3, first), (1, large), (2, large), (3, copies)
    ]  # fmt: skip
    assert seen[-LAYERS] == (0, second * SMALL)


def test_what_is_not_smaller_than_the_rest_does_not_pass(wide: Host) -> None:
    portions: list[Portion] = []

    def arrive(layer: int, positions: int) -> None:
        if (layer, positions) == (2, LARGE) and not portions:
            portions.append(asking.submit(few))

    with sessions(wide, "sweep", "other") as (sweeping, asking):
        many = rows_of(sweeping, LONG, COPIES)
        # Only the last block is left then.
        copies = LARGE // (SMALL * (LAYERS - 1)) + 1
        few = rows_of(asking, SHORT, copies)
        with watched(wide, arrive) as seen:
            sweeping.wait(sweeping.submit(many))
            asking.wait(portions[0])
    assert seen[:4] == LARGE_BLOCKS
    assert seen[4] == (0, copies * SMALL)


def test_a_question_does_not_pass_itself(wide: Host) -> None:
    """Its second portion may build upon the first."""
    portions: list[Portion] = []

    def arrive(layer: int, positions: int) -> None:
        if (layer, positions) == (1, LARGE) and not portions:
            portions.append(sweeping.submit(few))

    with sessions(wide, "sweep") as (sweeping,):
        few, many = rows_of(sweeping, SHORT, 1), rows_of(sweeping, LONG, COPIES)
        with watched(wide, arrive) as seen:
            sweeping.wait(sweeping.submit(many))
            sweeping.wait(portions[0])
    assert seen == LARGE_BLOCKS + SMALL_BLOCKS


def test_the_large_batch_can_be_cancelled_while_a_small_one_passes(wide: Host) -> None:
    portions: list[Portion] = []

    def arrive(layer: int, positions: int) -> None:
        if (layer, positions) == (1, LARGE) and not portions:
            portions.append(asking.submit(few))
        if (layer, positions) == (2, SMALL):
            sweeping.cancelled.set()

    with sessions(wide, "sweep", "other") as (sweeping, asking):
        few, many = rows_of(asking, SHORT, 1), rows_of(sweeping, LONG, COPIES)
        with watched(wide, arrive) as seen:
            with pytest.raises(Stopped):
                sweeping.wait(sweeping.submit(many))
            asking.wait(portions[0])
    assert seen == LARGE_BLOCKS[:2] + SMALL_BLOCKS


def test_the_small_one_can_be_cancelled_while_it_passes(wide: Host) -> None:
    portions: list[Portion] = []

    def arrive(layer: int, positions: int) -> None:
        if (layer, positions) == (1, LARGE) and not portions:
            portions.append(asking.submit(few))
        if (layer, positions) == (0, SMALL):
            asking.cancelled.set()

    with sessions(wide, "sweep", "other") as (sweeping, asking):
        few, many = rows_of(asking, SHORT, 1), rows_of(sweeping, LONG, COPIES)
        with watched(wide, arrive) as seen:
            sweeping.wait(sweeping.submit(many))
            with pytest.raises(Stopped):
                asking.wait(portions[0])
    assert seen == LARGE_BLOCKS[:2] + SMALL_BLOCKS[:1] + LARGE_BLOCKS[2:]


def test_what_finds_no_memory_beside_a_large_batch_waits_for_its_end(wide: Host) -> None:
    portions: list[Portion] = []
    refused = []

    def arrive(layer: int, positions: int) -> None:
        if (layer, positions) == (1, LARGE) and not portions:
            portions.append(asking.submit(few))
        if (layer, positions) == (2, SMALL) and not refused:
            refused.append(positions)
            raise torch.OutOfMemoryError("beside the large batch this does not fit")

    with sessions(wide, "sweep", "other") as (sweeping, asking):
        few, many = rows_of(asking, SHORT, 1), rows_of(sweeping, LONG, COPIES)
        with watched(wide, arrive) as seen:
            sweeping.wait(sweeping.submit(many))
            asking.wait(portions[0])
    assert seen == LARGE_BLOCKS[:2] + SMALL_BLOCKS[:3] + LARGE_BLOCKS[2:] + SMALL_BLOCKS
    assert len(values_of(few)) == 1


def test_the_error_of_a_small_one_is_its_own(wide: Host) -> None:
    portions: list[Portion] = []

    def arrive(layer: int, positions: int) -> None:
        if (layer, positions) == (1, LARGE) and not portions:
            portions.append(asking.submit(few))
        if positions == SMALL:
            raise ValueError("this prompt cannot be computed")

    with sessions(wide, "sweep", "other") as (sweeping, asking):
        few, many = rows_of(asking, SHORT, 1), rows_of(sweeping, LONG, COPIES)
        with watched(wide, arrive) as seen:
            sweeping.wait(sweeping.submit(many))
            with pytest.raises(ValueError, match="this prompt"):
                asking.wait(portions[0])
    assert [block for block in seen if block[1] != SMALL] == LARGE_BLOCKS


@pytest.mark.parametrize(("positions", "passes"), [(1, True), (None, False)])
def test_a_call_passes_if_it_is_known_to_be_small(wide: Host, positions: int | None, passes: bool) -> None:
    calls: list[Call] = []

    def arrive(layer: int, size: int) -> None:
        if (layer, size) == (1, LARGE) and not calls:
            calls.append(Call(asking, lambda: len(seen), positions))
            wide.server.scheduler.queue.put(calls)

    with sessions(wide, "sweep", "other") as (sweeping, asking):
        many = rows_of(sweeping, LONG, COPIES)
        with watched(wide, arrive) as seen:
            sweeping.wait(sweeping.submit(many))
            assert asking.wait(calls[0]) == (2 if passes else 4)


def test_a_sweep_has_the_same_bits_whoever_asks_beside_it(wide: Host) -> None:
    """Its portions share no batches."""
    request = wire.intervene(list(LONG), Sweep(Edit(Site("NEURON", (1, 2)), Scale(0.0)), together=("POSITION",)))

    def answer() -> dict[str, bytes]:
        return {name: values.tobytes() for name, values in wide.intervene(request).columns.items()}

    alone = answer()
    stop = threading.Event()

    def ask(number: int) -> None:
        asked = 0
        while not stop.is_set():
            asked += 1
            ids = [number + 5, asked % 50 + 5, *range(40, 48)]
            wide.intervene(wire.intervene(ids, [[Edit(Site("NEURON", (2,), (5,), (-1,)), Scale(0.0))]]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        beside = [answer() for _ in range(2)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert beside == [alone, alone]


def test_a_batch_is_as_large_as_the_model_allows(wide: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger model has smaller batches, which take as long."""
    memory = wide.server.scheduler.engine.memory
    assert memory.batch_positions == MOST_POSITIONS["cpu"]
    assert memory.batch_bytes + memory.passing_bytes <= memory._budget
    monkeypatch.setattr(memory, "_operations", OPERATIONS["cpu"] / 1500)
    assert memory.batch_positions == 1500
    monkeypatch.setattr(memory, "_operations", OPERATIONS["cpu"])
    assert memory.batch_positions == FEWEST_POSITIONS["cpu"]


def test_a_large_batch_under_way_counts_by_the_share_of_its_work(wide: Host) -> None:
    """Before block 0 nothing is done; the last block has little work, since only one position of it is read."""
    reached: list[int] = []

    def arrive(_: int, positions: int) -> None:
        if positions in (LARGE, COPIES):
            reached.append(sweeping.runs_done())

    with sessions(wide, "sweep") as (sweeping,):
        many = rows_of(sweeping, LONG, COPIES)
        with watched(wide, arrive):
            sweeping.wait(sweeping.submit(many))
        sweeping.finish(COPIES)
        assert reached == [0, COPIES // 4, COPIES // 2, COPIES * 3 // 4]
        assert sweeping.runs_done() == COPIES


def queued(host: Host, session: Session) -> bool:
    lines = host.server.scheduler.queue._lines
    return any(session in questions for questions in list(lines.values()))


def test_what_is_read_again_of_a_base_run_shares_no_batch_and_passes(wide: Host) -> None:
    """Runs that are given these values inherit their last bits, which would depend on who else asks."""
    places = tuple(range(9))
    threads: list[threading.Thread] = []
    portions: list[Portion] = []

    def arrive(layer: int, positions: int) -> None:
        if (layer, positions) == (0, LARGE) and not threads:
            wanted = [Capture(Component.MLP_OUT, 1, places)]
            threads.append(threading.Thread(target=complete, args=(reading.values(state, wanted), reading)))
            threads[0].start()
            assert wait_for(lambda: queued(wide, reading))
            portions.append(asking.submit(few))

    with sessions(wide, "sweep", "other", "another") as (sweeping, asking, reading):
        (state,) = complete(reading.states([Base(tuple(range(70, 70 + len(places))))]), reading)
        few, many = rows_of(asking, SHORT, 1), rows_of(sweeping, LONG, COPIES)
        with watched(wide, arrive) as seen:
            sweeping.wait(sweeping.submit(many))
            asking.wait(portions[0])
            threads[0].join()
    assert [one for one in seen if one in LARGE_BLOCKS] == LARGE_BLOCKS
    assert seen.count((1, len(places))) == seen.count((1, SMALL)) == 1
    # Both passed: the last block of the large batch was not computed yet.
    assert seen[-1] == LARGE_BLOCKS[-1]


@pytest.mark.parametrize(
    "method",
    [
        {"token_probability": pb.TokenProbability(gradient_norms=True)},
        {
            "attribution_patching": pb.AttributionPatching(
                source=wire.prompt(SHORT[::-1]), components=[pb.COMPONENT_MLP_OUT], integration_steps=2
            )
        },
    ],
    ids=lambda method: next(iter(method)),
)
def test_gradients_may_pass(wide: Host, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any]) -> None:
    """Each block is a call of its own, and would otherwise wait for a batch of a sweep."""
    queue = wide.server.scheduler.queue
    calls: list[Call] = []
    put = queue.put

    def watch(jobs: Iterable[Job]) -> None:
        jobs = list(jobs)
        calls.extend(job for job in jobs if isinstance(job, Call))
        put(jobs)

    monkeypatch.setattr(queue, "put", watch)
    wide.trace(pb.TraceRequest(prompt=wire.prompt(SHORT), **method))
    assert len(calls) > LAYERS
    assert all(call.positions is not None and call.positions < LARGE for call in calls)
