"""The two clients on a real connection."""

import asyncio
import inspect
import io
import sys
import threading
from typing import Any

import grpc
import numpy as np
import pytest
import sonde
from sonde.v1 import inspection_pb2 as pb

EDIT = sonde.scale(sonde.neuron(layer=0, unit=1), 0.0)


def runs(answers: Any, count: int) -> list[Any]:
    """An answer in as many messages as it has runs, with progress."""
    messages = [
        pb.InterveneResponse(readings=answers.readings(i, [[-float(i)]]), progress=pb.Progress(done=i + 1, total=count))
        for i in range(count)
    ]
    messages[0].context.CopyFrom(answers.context())
    return messages


def test_both_clients_have_the_same_surface() -> None:
    def surface(kind: type) -> dict[str, Any]:
        return {name: member for name, member in vars(kind).items() if not name.startswith("_") or name == "__init__"}

    sync, asynchronous = surface(sonde.Client), surface(sonde.AsyncClient)
    assert set(sync) == set(asynchronous)
    for name, member in sync.items():
        if inspect.isfunction(member):
            here, there = inspect.signature(member), inspect.signature(asynchronous[name])
            assert list(here.parameters.values()) == list(there.parameters.values()), name
            if name not in {"stream_trace", "stream_intervene"}:
                assert here.return_annotation == there.return_annotation, name


def test_the_model_is_asked_for_once(peer: Any, answers: Any) -> None:
    peer.steps = [answers.model()]
    with sonde.Client(peer.address) as client:
        model = client.model
        assert client.model is model
    assert len(peer.requests) == 1
    assert (model.layers, model.hidden_size, model.heads, model.key_value_heads) == (2, 16, 4, 2)
    assert (model.head_size, model.neurons, model.vocabulary_size) == (4, 32, 50)
    assert (model.name, model.dtype, model.device, model.architecture) == ("atlas", "bfloat16", "cuda", "llama")
    assert model.components["neuron"].available
    assert not model.components["residual_mid"]
    assert model.components["residual_mid"].reason == "parallel"
    assert (model.limits.max_runs, model.limits.max_prompt_tokens) == (100, None)
    assert repr(model) == (
        "<Model atlas: llama of 12,345 parameters; 2 layers of 4 heads and 32 neurons; hidden size 16; vocabulary 50; "
        "bfloat16 on cuda; without residual_mid>"
    )


def test_a_model_without_a_decoder_is_refused(peer: Any) -> None:
    peer.steps = [pb.GetModelResponse()]
    with sonde.Client(peer.address) as client, pytest.raises(sonde.ProtocolError, match="decoder"):
        client.model  # noqa: B018


def test_waiting_for_a_server_that_loads(peer: Any, fail: Any, answers: Any) -> None:
    loading = fail(grpc.StatusCode.UNAVAILABLE, "loading the model")

    def step(context: Any) -> None:
        if len(peer.requests) < 6:
            loading(context)

    peer.steps = [step, answers.model()]
    with sonde.Client(peer.address) as client:
        assert client.wait_until_serving(30).layers == 2
    assert len(peer.requests) == 6


def test_waiting_ends() -> None:
    with sonde.Client("127.0.0.1:1") as client, pytest.raises(sonde.NotServing):
        client.wait_until_serving(0.3)


def test_the_token_goes_with_every_call(peer: Any, answers: Any) -> None:
    peer.steps = [answers.model()]
    with sonde.Client(peer.address, token="secret") as client:  # noqa: S106 - not a secret
        assert client.model.layers == 2
        assert "secret" not in repr(client)
        assert "secret" not in repr(client._connection)
    assert peer.metadata[0]["authorization"] == "Bearer secret"
    assert "sonde-python/" in str(peer.metadata[0]["user-agent"])


def test_a_result_in_one_call(peer: Any, answers: Any) -> None:
    peer.steps = runs(answers, 3)
    with sonde.Client(peer.address) as client:
        result = client.intervene("a", [EDIT] * 3, targets=[" Paris"])
    assert result.log_probabilities[:, 0].tolist() == [0.0, -1.0, -2.0]
    assert list(peer.requests[0].readout.targets) == [pb.Target(text=" Paris")]


def test_the_two_short_calls(peer: Any, answers: Any) -> None:
    with sonde.Client(peer.address) as client:
        peer.steps = [answers.lens(4)]
        traced = client.trace_token_probability(np.array([[1, 2]]), np.int64(7))
        assert [round(probability, 4) for probability, _ in traced] == [0.2625, 0.475, 0.6875, 0.9]
        peer.steps = runs(answers, 1)
        changed = client.intervene_on_neuron([1, 2], 0, 5)
        assert changed.clean.top(1)[0].text == " Paris"
        assert changed[0].log_probabilities.tolist() == [0.0]
    tracing, intervening = peer.requests
    assert tracing.token_probability.gradient_norms
    assert list(tracing.targets) == [pb.Target(id=7)]
    assert list(tracing.prompt.token_ids.ids) == [1, 2]
    edit = intervening.list.interventions[0].edits[0]
    assert (list(edit.site.layers), list(edit.site.units), list(edit.site.positions)) == ([0], [5], [])
    assert edit.WhichOneof("operation") == "scale"
    assert edit.scale == 0


def test_a_stream_gives_what_has_come(peer: Any, answers: Any) -> None:
    peer.steps = runs(answers, 3)
    with sonde.Client(peer.address) as client:
        seen = [int(partial.arrived.sum()) for partial in client.stream_intervene("a", [EDIT] * 3)]
        peer.steps = answers.causal()
        grids = [sorted(partial.restored) for partial in client.stream_trace("a", method=sonde.CausalTracing("a"))]
    assert seen == [1, 2, 3]
    assert grids[0] == ["residual_post"]
    assert grids[-1] == ["attention_out", "mlp_out", "residual_post"]


def test_a_stream_cut_short_ends_in_an_error(peer: Any, answers: Any) -> None:
    peer.steps = runs(answers, 3)[:2]
    with sonde.Client(peer.address) as client, pytest.raises(sonde.ProtocolError, match="ended early"):
        list(client.stream_intervene("a", [EDIT] * 3))


def test_leaving_a_stream_cancels_the_call(peer: Any, answers: Any) -> None:
    peer.steps = [runs(answers, 3)[0], peer.wait_for_cancel]
    with sonde.Client(peer.address) as client:
        stream = client.stream_intervene("a", [EDIT] * 3)
        next(stream)
        stream.close()
        assert peer.ended.wait(10)


def test_an_error_in_the_progress_function_cancels_the_call(peer: Any, answers: Any) -> None:
    class Enough(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Enough(done, total)

    peer.steps = [runs(answers, 3)[0], peer.wait_for_cancel]
    with sonde.Client(peer.address) as client:
        with pytest.raises(Enough) as caught:
            client.intervene("a", [EDIT] * 3, progress=stop)
        assert caught.value.args == (1, 3)
        assert peer.ended.wait(10)


def test_closing_cancels_what_runs_and_refuses_what_comes(peer: Any, answers: Any) -> None:
    begun = threading.Event()
    errors: list[Exception] = []
    peer.steps = [runs(answers, 3)[0], lambda _: begun.set(), peer.wait_for_cancel]
    client = sonde.Client(peer.address)

    def ask() -> None:
        try:
            client.intervene("a", [EDIT] * 3)
        except sonde.SondeError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(10)
    client.close()
    thread.join(10)
    assert [type(error) for error in errors] == [sonde.Cancelled]
    assert peer.ended.wait(10)
    with pytest.raises(sonde.Cancelled, match="closed"):
        client.trace("a")


@pytest.mark.parametrize("where", ["client", "call"])
def test_the_timeout_is_kept_on_both_sides(peer: Any, where: str) -> None:
    peer.steps = [peer.wait_for_cancel]
    arguments: dict[str, Any] = {"timeout": 0.3}
    with sonde.Client(peer.address, **(arguments if where == "client" else {})) as client:
        with pytest.raises(sonde.DeadlineExceeded, match="timeout") as caught:
            client.trace("a", **(arguments if where == "call" else {}))
        assert isinstance(caught.value, TimeoutError)
        assert peer.ended.wait(10)


def test_a_timeout_of_none_overrides_the_clients(peer: Any, answers: Any) -> None:
    remaining: list[float | None] = []
    peer.steps = [lambda context: remaining.append(context.time_remaining()), *runs(answers, 1)]
    with sonde.Client(peer.address, timeout=60) as client:
        client.intervene("a", EDIT)
        client.intervene("a", EDIT, timeout=None)
        with pytest.raises(sonde.InvalidSettings, match="timeout"):
            client.intervene("a", EDIT, timeout=-1)
    # gRPC rounds a timeout up on its way, so a little more than was given may be left.
    assert remaining[0] == pytest.approx(60, abs=5)
    assert remaining[1] is None or remaining[1] > 1e6


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("rich", [True, False])
def test_progress_goes_to_standard_error(
    peer: Any, answers: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rich: bool
) -> None:
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    peer.steps = runs(answers, 3)
    with sonde.Client(peer.address) as client:
        client.intervene("a", [EDIT] * 3, progress=True)
    assert "3 of 3" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_progress_in_a_log_is_lines(peer: Any, answers: Any, capsys: pytest.CaptureFixture[str]) -> None:
    peer.steps = runs(answers, 40)
    with sonde.Client(peer.address) as client:
        client.intervene("a", [EDIT] * 40, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "40 of 40"


# ---------------------------------------------------------------------- asyncio


def test_the_asynchronous_client_gives_the_same(peer: Any, answers: Any) -> None:
    async def main() -> None:
        async with sonde.AsyncClient(peer.address, token="secret") as client:  # noqa: S106
            peer.steps = [answers.model()]
            assert (await client.model).layers == 2
            assert (await client.wait_until_serving()).layers == 2
            done: list[tuple[int, int]] = []
            peer.steps = runs(answers, 3)
            result = await client.intervene("a", [EDIT] * 3, progress=lambda *seen: done.append(seen))
            assert result.log_probabilities[:, 0].tolist() == [0.0, -1.0, -2.0]
            assert done == [(1, 3), (2, 3), (3, 3)]
            seen = [int(partial.arrived.sum()) async for partial in client.stream_intervene("a", [EDIT] * 3)]
            assert seen == [1, 2, 3]
            peer.steps = [answers.lens(4)]
            traced = await client.trace_token_probability([1], 7)
            assert len(list(traced)) == 4
            peer.steps = answers.causal()
            grids = await client.trace("a", method=sonde.CausalTracing(subject="a"))
            assert grids.restored["mlp_out"].shape == (8, 12, 1)
            peer.steps = runs(answers, 1)
            assert len(await client.intervene_on_neuron([1], 0, 1)) == 1
        with pytest.raises(sonde.Cancelled, match="closed"):
            await client.trace("a")

    asyncio.run(main())
    assert all(metadata["authorization"] == "Bearer secret" for metadata in peer.metadata)


def test_asynchronous_errors_have_their_kinds(peer: Any, fail: Any) -> None:
    async def main() -> None:
        async with sonde.AsyncClient(peer.address) as client:
            for call in (client.trace("a"), client.intervene("a", EDIT)):
                with pytest.raises(sonde.PermissionDenied, match="not you"):
                    await call
            with pytest.raises(sonde.PermissionDenied):
                await client.model
            peer.steps = [peer.wait_for_cancel]
            with pytest.raises(sonde.DeadlineExceeded):
                await client.trace("a", timeout=0.3)

    peer.steps = [fail(grpc.StatusCode.PERMISSION_DENIED, "not you")]
    asyncio.run(main())


def test_cancelling_a_task_cancels_the_call(peer: Any, answers: Any) -> None:
    async def main() -> None:
        begun = asyncio.Event()
        async with sonde.AsyncClient(peer.address) as client:
            call = client.intervene("a", [EDIT] * 3, progress=lambda *_: begun.set())
            task = asyncio.create_task(call)
            await asyncio.wait_for(begun.wait(), 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(peer.ended.wait, 10)

    peer.steps = [runs(answers, 3)[0], peer.wait_for_cancel]
    asyncio.run(main())


def test_interrupting_cancels_the_call(peer: Any, answers: Any, tmp_path: Any) -> None:
    import signal
    import subprocess
    import time

    script = tmp_path / "ask.py"
    script.write_text(
        "import sys, sonde\n"
        "with sonde.Client(sys.argv[1]) as client:\n"
        "    edit = sonde.scale(sonde.neuron(layer=0, unit=1), 0.0)\n"
        "    client.intervene('a', [edit] * 3, progress=lambda *seen: print(seen, flush=True))\n"
    )
    peer.steps = [runs(answers, 3)[0], peer.wait_for_cancel]
    process = subprocess.Popen(
        [sys.executable, str(script), peer.address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "(1, 3)\n"
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors
    assert time.monotonic() - started < 15
    assert peer.ended.wait(10)
