"""Nothing that is loaded or sent runs: no pickles, no code of checkpoints, no paths or addresses in requests."""

import dataclasses
import json
import pickle
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from safetensors.torch import load_file
from sonde.v1 import inspection_pb2 as pb
from sonde_server.config import Settings
from sonde_server.errors import UnsupportedModel
from sonde_server.serving.server import Server

from tests.support import wire
from tests.support.models import save_model

REQUESTS = (pb.TraceRequest, pb.InterveneRequest, pb.GetModelRequest)
# Every text or string of bytes that a request can hold, and what is done with it.
TEXTS = {
    "Prompt.text": "cut into tokens",
    "Prompt.image": "the image itself; refused without being looked at",
    "Target.text": "cut into tokens",
    "Target.contrast_text": "cut into tokens",
    "CausalTracing.subject_text": "searched for in the prompt",
    "Tensor.data": "numbers, by their type and shape",
    "ChatMessage.role": "given to the checkpoint's own chat template, and compared with names of spans",
    "ChatMessage.content": "given to the checkpoint's own chat template, as a value that it prints",
    "Span.name": "compared with the names in the request",
    "Span.text": "searched for in the prompt",
    "NamedPositions.span": "compared with the names of the prompt's spans",
    "Case.group": "answered as it is, with the statistics of the group",
    "Generation.stop": "searched for in what is generated",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("code") / "llama")


def fields(message: Descriptor, seen: set[str]) -> Iterator[FieldDescriptor]:
    """Every field that a message can hold, at any depth."""
    for field in message.fields:
        yield field
        if field.message_type is not None and field.message_type.full_name not in seen:
            seen.add(field.message_type.full_name)
            yield from fields(field.message_type, seen)


def test_every_text_in_a_request_is_known_and_none_names_a_place() -> None:
    texts = {
        f"{field.containing_type.name}.{field.name}"
        for request in REQUESTS
        for field in fields(request.DESCRIPTOR, set())
        if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
    }
    assert texts == set(TEXTS)
    # A message has no text but its fields': Edit.path is made of sites.
    every = {
        field.name
        for request in REQUESTS
        for field in fields(request.DESCRIPTOR, set())
        if field.type != FieldDescriptor.TYPE_MESSAGE
    }
    assert {"units", "positions", "text"} <= every
    place = re.compile(r"(^|_)(path|file|url|uri|host|address|repo|revision|code|script|trust|model)(_|s?$)")
    assert [name for name in every if place.search(name)] == []


class Watch:
    """What the interpreter's audit events tell of files, connections, pickles and programs, while it is on."""

    EVENTS = ("open", "socket.connect", "socket.getaddrinfo", "pickle.find_class", "subprocess.Popen", "os.system")

    def __init__(self) -> None:
        self.on = False
        self.seen: list[tuple[str, str]] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event in self.EVENTS:
            self.seen.append((event, repr(arguments)))


def test_what_looks_like_a_place_is_text(model: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("secret")
    watch = Watch()
    with socket.socket() as listener, Server(Settings(model=str(model), port=0, device="cpu")) as server:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with grpc.insecure_channel(server.address) as channel:
            trace: Any = channel.unary_stream(
                "/sonde.v1.InspectionService/Trace",
                request_serializer=pb.TraceRequest.SerializeToString,
                response_deserializer=pb.TraceResponse.FromString,
            )
            list(trace(pb.TraceRequest(prompt=wire.prompt("a b")), timeout=60))
            for text in (str(canary), f"file://{canary}", f"http://127.0.0.1:{port}/x", f"$(cat {canary})", "hf://a/b"):
                traced = pb.CausalTracing(subject_text=text[:3], layers=[0], positions=[0])
                requests = [
                    pb.TraceRequest(prompt=wire.prompt(text), top_k=1),
                    pb.TraceRequest(prompt=wire.prompt(text), causal_tracing=traced),
                    pb.TraceRequest(prompt=wire.prompt("a b"), targets=[pb.Target(text=text, contrast_text=text)]),
                    pb.TraceRequest(prompt=pb.Prompt(text="a", image=text.encode())),
                ]
                watch.on = True
                outcomes = [ended(trace(request, timeout=60)) for request in requests]
                watch.on = False
                assert outcomes[0].get("context") is not None
                assert [one.get("code") for one in outcomes[2:]] == [grpc.StatusCode.INVALID_ARGUMENT] * 2
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    touching = [(event, said) for event, said in watch.seen if "canary" in said or event != "open"]
    assert touching == []


def ended(call: Any) -> dict[str, Any]:
    """The context of an answer, or the code of a failure."""
    try:
        return {"context": next(iter(list(call))).context}
    except grpc.RpcError as error:
        return {"code": error.code()}


def test_the_watch_sees_what_it_would_have_to(tmp_path: Path) -> None:
    watch = Watch()
    watch.on = True
    (tmp_path / "canary").write_text("x")
    with socket.socket() as one, pytest.raises(OSError, match="refused"):
        one.connect(("127.0.0.1", 1))
    watch.on = False
    assert {event for event, _ in watch.seen} == {"open", "socket.connect"}


# ------------------------------------------------------------------ checkpoints


def as_pickles(model: Path, folder: Path) -> Path:
    """The same checkpoint with its weights as a pickle."""
    folder.mkdir()
    for file in model.iterdir():
        if file.suffix == ".json":
            (folder / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(model / "model.safetensors"), folder / "pytorch_model.bin")
    return folder


def load(folder: Path) -> None:
    with Server(Settings(model=str(folder), port=0, device="cpu")):
        pass


def test_pickles_are_refused_with_the_way_to_convert_them(model: Path, tmp_path: Path) -> None:
    old = as_pickles(model, tmp_path / "old")
    with pytest.raises(UnsupportedModel, match=r"pytorch_model\.bin.*can run code") as caught:
        load(old)
    # The way that it names, taken.
    said = re.search(r"(python -c \".*\")", str(caught.value))
    assert said is not None
    _, _, program = shlex.split(said[1].replace("OLD", str(old)).replace("NEW", str(tmp_path / "new")))
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    load(tmp_path / "new")


class Evil:
    """What a pickle can be: an instruction to run something."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.mark, "ran"))


def test_a_pickle_beside_or_instead_of_safetensors_is_never_read(model: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for folder, safe in ((tmp_path / "beside", True), (tmp_path / "instead", False)):
        as_pickles(model, folder)
        if safe:
            (folder / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
        for name in ("pytorch_model.bin", "model.pt", "training_args.bin", "vocab.pkl"):
            (folder / name).write_bytes(pickle.dumps(Evil(mark)))
        if safe:
            load(folder)
        else:
            with pytest.raises(UnsupportedModel):
                load(folder)
    assert not mark.exists()
    pickle.loads((tmp_path / "beside" / "vocab.pkl").read_bytes())  # noqa: S301 - it would have worked
    assert mark.exists()


def test_code_in_a_checkpoint_does_not_run(model: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"import pathlib\npathlib.Path({str(mark)!r}).write_text('ran')\n"
    folder = tmp_path / "evil"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for name in ("configuration_evil", "modeling_evil", "tokenization_evil"):
        (folder / f"{name}.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_evil.Evil",
        "AutoModelForCausalLM": "modeling_evil.Evil",
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    with suppress(UnsupportedModel):
        load(folder)
    assert not mark.exists()


def test_no_setting_and_no_request_trusts_code() -> None:
    assert [one.name for one in dataclasses.fields(Settings) if "trust" in one.name] == []
    sources = (Path(__file__).parents[1] / "server").rglob("*.py")
    said = [line.strip() for source in sources for line in source.read_text(encoding="utf-8").splitlines()]
    assert [line for line in said if "trust_remote_code" in line and "trust_remote_code=False" not in line] == []
    assert any("trust_remote_code=False" in line for line in said)
