"""What is read of a model's tokenizer, where it comes in another form than tokenizer.json, or not at all."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import sentencepiece
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub
from sonde_server.config import Settings
from sonde_server.model.loading import load
from sonde_server.serving.server import Server
from transformers import AutoTokenizer

from tests.conftest import DEADLINE, Hosts
from tests.support import wire
from tests.support.architectures import ARCHITECTURES
from tests.support.models import save_model

IDS = [5, 130, 77]
SENTENCES = ["the cat sat on the mat", "the dog ran over the hills to the town of Paris", "a town, a hill: 12 cats?"]


def without_tokenizer(family: str, directory: Path) -> Path:
    """A tiny model, and none of the files that a tokenizer is read from."""
    save_model(family, directory)
    for file in directory.glob("*token*"):
        file.unlink()
    assert {file.suffix for file in directory.iterdir()} == {".json", ".safetensors"}
    return directory


@contextmanager
def serving(model: Path) -> Iterator[InspectionServiceStub]:
    with (
        Server(Settings(model=str(model), port=0, device="cpu", dtype="float32")) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield InspectionServiceStub(channel)


def traced(stub: InspectionServiceStub, prompt: pb.Prompt, *targets: pb.Target) -> wire.Answer:
    return wire.join_trace(stub.Trace(pb.TraceRequest(prompt=prompt, targets=targets), timeout=DEADLINE))


@pytest.mark.parametrize("family", ["gpt2", "llama", *ARCHITECTURES])
def test_a_model_without_one_has_none(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Many classes of transformers make one of special tokens alone, for which every text is empty or unknown."""
    directory = without_tokenizer(family, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert load(str(directory), device="cpu").vocabulary.tokenizer is None
    assert [record.getMessage() for record in caplog.records if str(directory) in record.getMessage()]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma"])
def test_it_is_asked_by_token_ids(family: str, tmp_path: Path) -> None:
    with serving(without_tokenizer(family, tmp_path)) as stub:
        refused = wire.refusal(stub.Trace(pb.TraceRequest(prompt=pb.Prompt(text="abc")), timeout=DEADLINE))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.violations == {"prompt.text": "this model has no tokenizer; give token ids"}
        named = pb.TraceRequest(prompt=wire.prompt(IDS), targets=[pb.Target(text="abc")])
        refused = wire.refusal(stub.Trace(named, timeout=DEADLINE))
        assert refused.violations == {"targets[0].text": "this model has no tokenizer; give token ids"}
        answer = traced(stub, wire.prompt(IDS))
        assert [token.id for token in answer.context.tokens] == IDS
        assert [token.text for token in answer.context.tokens] == [f"<{token}>" for token in IDS]


def test_tokens_that_the_model_does_not_have_are_refused_by_name(tmp_path: Path) -> None:
    """A tokenizer that was given more tokens than the model; on a GPU their embeddings would cost the process."""
    directory = save_model("gpt2", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    size = len(tokenizer)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(directory)
    prompt = pb.Prompt(text="the <two> of <one> and <two>")
    with serving(directory) as stub:
        refused = wire.refusal(stub.Trace(pb.TraceRequest(prompt=prompt), timeout=DEADLINE))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        told = f"which the model does not have; tokens are 0 to {size - 1}"
        assert refused.violations == {"prompt.text": f"'<one>' is token {size}, {told}"}
        target = pb.Target(text="<two>", contrast_text="<one>")
        refused = wire.refusal(stub.Trace(pb.TraceRequest(prompt=wire.prompt(IDS), targets=[target]), timeout=DEADLINE))
        assert refused.violations == {
            "targets[0].text": f"'<two>' is token {size + 1}, {told}",
            "targets[0].contrast_text": f"'<one>' is token {size}, {told}",
        }
        assert len(traced(stub, wire.prompt(IDS)).context.tokens) == len(IDS)


def test_tokens_that_the_tokenizer_does_not_have_are_named_by_their_number(hosts: Hosts) -> None:
    """Many models have more tokens than their tokenizer, to come to a round number."""
    llama = hosts["llama"]
    beyond = len(llama.tokenizer)
    answer = llama.trace(pb.TraceRequest(prompt=wire.prompt([5, beyond]), targets=[pb.Target(id=beyond + 1)]))
    assert answer.context.tokens[1].text == f"<{beyond}>"
    assert answer.context.targets[0].text == f"<{beyond + 1}>"


@pytest.fixture
def sentencepieces(tmp_path: Path) -> Path:
    """A tiny Llama whose tokenizer is SentencePiece's own file."""
    directory = without_tokenizer("llama", tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(20 * SENTENCES), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=320,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (directory / "tokenizer.vocab").unlink()
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory


def test_sentencepieces_own_file_is_read(sentencepieces: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(sentencepieces / "tokenizer.model"))
    prompt = SENTENCES[0]
    with serving(sentencepieces) as stub:
        context = traced(stub, pb.Prompt(text=prompt), pb.Target(text=" town")).context
    tokens = [token for token in context.tokens if token.id != processor.bos_id()]
    assert [token.id for token in tokens] == processor.encode(prompt)
    assert "".join(token.text for token in tokens).strip() == prompt
    assert [target.id for target in context.targets] == processor.encode("town")


def test_one_that_cannot_be_read_is_told_in_the_log(sentencepieces: Path, caplog: pytest.LogCaptureFixture) -> None:
    (sentencepieces / "tokenizer.model").write_bytes(b"no tokenizer")
    with caplog.at_level(logging.WARNING):
        assert load(str(sentencepieces), device="cpu").vocabulary.tokenizer is None
    (told,) = [record.getMessage() for record in caplog.records if record.name == "sonde_server.model.loading"]
    assert told.startswith(f"{sentencepieces} has no tokenizer that can be read, prompts have to be token ids: ")
