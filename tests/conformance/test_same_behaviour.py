"""Progress, timeouts, cancellation and closing are those of a call over a socket, whichever client asks."""

import asyncio
import gc
import inspect
import math
import threading
import time
from itertools import zip_longest
from typing import Any

import numpy as np
import pytest
import sonde
import sonde_server
from sonde_server.in_process import AsyncLocalClient, LocalClient

from tests.conformance.conftest import Asker, Askers, AsyncAsker, SyncAsker
from tests.conftest import Host

IDS = list(range(5, 45))
LONG = sonde.sweep(sonde.scale(sonde.neuron(), 0.0), layers=[4, 3, 2, 1, 0])
"""16,000 runs: minutes, if nothing stops them. The cheapest come first."""
QUICK = 20.0
"""Seconds in which a call that is stopped must be over, on a machine that is busy."""


def idle(scheduler: Any) -> bool:
    """Whether the model has nothing to do, now or soon."""
    end = time.monotonic() + QUICK
    while scheduler.queued_runs and time.monotonic() < end:
        threading.Event().wait(0.01)
    return not scheduler.queued_runs


def scheduler_of(asker: Any, host: Host) -> Any:
    stop = getattr(asker.client, "_stop", None)
    if stop is None:
        return host.server.scheduler
    _, function, _, _ = stop.peek()
    return function.__self__.scheduler


@pytest.mark.parametrize("local", [LocalClient, AsyncLocalClient])
def test_a_local_client_is_a_client(local: type) -> None:
    remote = local.__mro__[1]
    assert remote in {sonde.Client, sonde.AsyncClient}
    assert {name for name in vars(local) if not name.startswith("_")} == {"close"}
    for name, member in inspect.getmembers(remote, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.signature(member) == inspect.signature(getattr(local, name)), name


def test_progress_counts_up_to_the_end(asker: Asker) -> None:
    seen: list[tuple[int, int]] = []
    plan = sonde.sweep(sonde.scale(sonde.neuron(), 0.0), layers=[3, 4], positions=range(26))
    result = asker.ask("intervene", IDS, plan, top_k=20, progress=lambda *now: seen.append(now))
    assert seen[-1] == (len(result), len(result))
    assert seen == sorted(seen)
    assert len(seen) > 1


def test_a_timeout_ends_the_call_and_the_work(asker: Asker, llama: Host) -> None:
    began = time.monotonic()
    with pytest.raises(sonde.DeadlineExceeded) as caught:
        asker.ask("intervene", IDS, LONG, timeout=0.5)
    assert isinstance(caught.value, TimeoutError)
    assert time.monotonic() - began < QUICK
    assert idle(scheduler_of(asker, llama))


def test_a_clients_own_timeout_holds_for_its_calls(askers: Askers, kind: str) -> None:
    asker = askers.another(kind, timeout=0.5)
    with pytest.raises(sonde.DeadlineExceeded):
        asker.ask("intervene", IDS, LONG)
    asker.ask("trace", IDS, timeout=None)
    with pytest.raises(sonde.InvalidSettings, match="timeout"):
        asker.ask("trace", IDS, timeout=-1)


@pytest.mark.parametrize("timeout", [None, math.inf, 1e12, 10**400, np.float32(60)], ids=lambda value: repr(value)[:12])
def test_long_times_and_numbers_of_numpy_are_times(asker: Asker, timeout: Any) -> None:
    assert asker.ask("trace", IDS, timeout=timeout).tokens
    assert asker.serving(timeout).layers


def test_leaving_a_stream_ends_the_work(asker: Asker, llama: Host) -> None:
    (part,) = asker.stream("stream_intervene", IDS, LONG, most=1)
    assert not part.complete
    assert idle(scheduler_of(asker, llama))
    asker.ask("trace", IDS)


def test_an_error_in_the_progress_function_ends_the_work(asker: Asker, llama: Host) -> None:
    class Enough(Exception):
        pass

    def stop(*_: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        asker.ask("intervene", IDS, LONG, progress=stop)
    assert idle(scheduler_of(asker, llama))


def test_closing_cancels_what_runs_and_refuses_what_comes(askers: Askers, kind: str) -> None:
    asker = askers.another(kind)
    begun = threading.Event()
    caught: list[Exception] = []

    def ask() -> None:
        try:
            asker.ask("intervene", IDS, LONG, progress=lambda *_: begun.set())
        except sonde.SondeError as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(QUICK)
    asker.close()
    thread.join(QUICK)
    assert [type(error) for error in caught] == [sonde.Cancelled]
    with pytest.raises(sonde.Cancelled, match="closed"):
        asker.ask("trace", IDS)
    with pytest.raises(sonde.Cancelled, match="closed"):
        asker.stream("stream_trace", IDS)
    asker.close()


@pytest.mark.parametrize("kind", ["remote async", "local async"])
def test_cancelling_a_task_ends_the_work(askers: Askers, kind: str, llama: Host) -> None:
    asker = askers[kind]
    assert isinstance(asker, AsyncAsker)

    async def cancelled() -> None:
        begun = asyncio.Event()
        call = asker.client.intervene(IDS, LONG, progress=lambda *_: begun.set())
        task = asyncio.create_task(call)
        await asyncio.wait_for(begun.wait(), QUICK)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asker._wait(cancelled())
    assert idle(scheduler_of(asker, llama))


@pytest.mark.parametrize("kind", ["remote async", "local async"])
def test_the_loop_goes_on_while_the_model_computes(askers: Askers, kind: str) -> None:
    asker = askers[kind]
    assert isinstance(asker, AsyncAsker)

    async def both() -> int:
        turns = 0
        task = asyncio.create_task(
            asker.client.intervene(IDS, sonde.sweep(sonde.scale(sonde.neuron(), 0.0), positions=[-1]))
        )
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        await task
        return turns

    assert asker._wait(both()) > 100


def test_threads_share_a_client(asker: Asker) -> None:
    answers: list[Any] = []

    def ask(unit: int) -> None:
        answers.append((unit, asker.ask("intervene_on_neuron", IDS, 1, unit)))

    threads = [threading.Thread(target=ask, args=(unit,)) for unit in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(QUICK)
    assert len(answers) == 8
    for unit, answer in answers:
        alone = asker.ask("intervene_on_neuron", IDS, 1, unit)
        assert answer.log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-5)


@pytest.mark.parametrize("kind", ["remote", "local"])
def test_streams_of_one_thread_do_not_mix(asker: Asker) -> None:
    assert isinstance(asker, SyncAsker)
    client = asker.client
    plans = [sonde.sweep(sonde.scale(sonde.neuron(), factor), positions=[-1]) for factor in (0.0, 2.0)]
    streams = [client.stream_intervene(IDS, plan) for plan in plans]
    # In turn; how many parts an answer comes in depends on how long it takes.
    last: list[sonde.InterventionResult | None] = [None] * len(plans)
    for parts in zip_longest(*streams):
        last = [before if part is None else part for part, before in zip(parts, last, strict=True)]
    for plan, part in zip(plans, last, strict=True):
        assert part is not None
        assert part.log_probabilities == pytest.approx(client.intervene(IDS, plan).log_probabilities, abs=1e-5)


# ---------------------------------------------------------------------- what only a local client has


def test_a_setting_that_is_not_a_models_is_refused() -> None:
    with pytest.raises(sonde.InvalidSettings, match=r"port.*it may be revision, device"):
        sonde_server.local("atlas", port=1)
    with pytest.raises(sonde.InvalidSettings, match="float8"):
        sonde_server.local("atlas", dtype="float8")
    with pytest.raises(sonde.InvalidSettings, match="timeout"):
        sonde_server.local("atlas", timeout=0)


def test_a_model_that_is_not_there_is_unsupported(tmp_path: Any) -> None:
    with pytest.raises(sonde.Unsupported, match=str(tmp_path)):
        sonde_server.local(str(tmp_path), device="cpu")


def test_the_settings_reach_the_model(llama: Host) -> None:
    folder = llama.server.settings.model
    with sonde_server.local(folder, device="cpu", dtype="bfloat16", max_runs=7) as client:
        assert client.model.dtype == "bfloat16"
        assert client.model.limits.max_runs == 7
        assert repr(client) == f"LocalClient({folder!r})"
        with pytest.raises(sonde.InvalidRequest, match="7"):
            client.intervene(IDS, [sonde.scale(sonde.neuron(layer=0, unit=0), 0.0)] * 8)
    assert repr(client).endswith(", closed)")


def test_a_client_that_is_dropped_lets_its_model_go(llama: Host) -> None:
    client = sonde_server.local(llama.server.settings.model, device="cpu")
    client.trace(IDS)
    _, function, _, _ = client._stop.peek()  # type: ignore[misc]
    thread = function.__self__.scheduler._thread
    del client, function
    gc.collect()
    thread.join(QUICK)
    assert not thread.is_alive()
