"""How a model's tokenizer is read, in whichever form it comes, and which token a text means."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from string import printable

import grpc
import pytest
import sentencepiece
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub
from sonde_server.config import Settings
from sonde_server.model.loading import load
from sonde_server.model.vocabulary import Vocabulary
from sonde_server.serving.server import Server
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

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
        assert refused.violations == {"prompt.text": "expected token ids, because this model has no tokenizer"}
        named = pb.TraceRequest(prompt=wire.prompt(IDS), targets=[pb.Target(text="abc")])
        refused = wire.refusal(stub.Trace(named, timeout=DEADLINE))
        assert refused.violations == {"targets[0].text": "expected token ids, because this model has no tokenizer"}
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
        told = f"expected tokens from 0 to {size - 1}, which the model has, got token"
        assert refused.violations == {"prompt.text": f"{told} {size}, '<one>'"}
        target = pb.Target(text="<two>", contrast_text="<one>")
        refused = wire.refusal(stub.Trace(pb.TraceRequest(prompt=wire.prompt(IDS), targets=[target]), timeout=DEADLINE))
        assert refused.violations == {
            "targets[0].text": f"{told} {size + 1}, '<two>'",
            "targets[0].contrast_text": f"{told} {size}, '<one>'",
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


def check_unreadable(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The model is loaded without a tokenizer, and the log says why."""
    with caplog.at_level(logging.WARNING):
        assert load(str(directory), device="cpu").vocabulary.tokenizer is None
    (told,) = [record.getMessage() for record in caplog.records if record.name == "sonde_server.model.loading"]
    assert told.startswith(f"{directory} has no readable tokenizer, so prompts must be token ids: ")
    assert len(told) > len(f"{directory} has no readable tokenizer, so prompts must be token ids: ")


def test_one_that_cannot_be_read_is_told_in_the_log(sentencepieces: Path, caplog: pytest.LogCaptureFixture) -> None:
    (sentencepieces / "tokenizer.model").write_bytes(b"no tokenizer")
    check_unreadable(sentencepieces, caplog)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("model", {"type": "Unheard"}),
        ("model", {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}),
        ("model", None),
        ("decoder", {"type": "Unheard"}),
        ("added_tokens", 5),
    ],
)
def test_a_faulty_tokenizer_json_is_told_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, part: str, value: object
) -> None:
    directory = save_model("llama", tmp_path)
    file = directory / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {part: value}), "utf-8")
    check_unreadable(directory, caplog)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_faulty_file_of_a_tokenizer_is_told_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: bytes
) -> None:
    directory = save_model("llama", tmp_path)
    (directory / name).write_bytes(content)
    check_unreadable(directory, caplog)


# ------------------------------------------------------------------ the token of a text

WORDS = 3 * [
    "in Paris-in is in France, (Paris) and -Paris; the town's 12 cats met a cat.\nThe cats met -Paris in 12 towns."
]
TEXT = "The cats of Paris, France, met (Paris) and -Paris.\nThe town's 12 cats in all"


def trained(tokenizer: Tokenizer, trainer: trainers.Trainer, unknown: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer that learned from WORDS."""
    tokenizer.train_from_iterator(WORDS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown)


def byte_pairs(pre_tokenizer: pre_tokenizers.PreTokenizer, decoder: decoders.Decoder) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    alphabet = pre_tokenizers.ByteLevel.alphabet() if isinstance(decoder, decoders.ByteLevel) else list(printable)
    trainer = trainers.BpeTrainer(vocab_size=350, initial_alphabet=alphabet, show_progress=False)
    return trained(tokenizer, trainer)


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    """As SentencePiece's models are converted, with a space put before a text or not."""
    parts = [pre_tokenizers.Metaspace(prepend_scheme=scheme), pre_tokenizers.Split(Regex(r"[^\w▁]"), "isolated")]
    return byte_pairs(pre_tokenizers.Sequence(parts), decoders.Metaspace(prepend_scheme=scheme))


def prepended() -> PreTrainedTokenizerFast:
    """As Llama 2's tokenizer is converted."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?\w+"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=350, initial_alphabet=["▁", *printable], show_progress=False)
    return trained(tokenizer, trainer)


def unigram() -> PreTrainedTokenizerFast:
    """Unigram pieces over a text whose spaces, line ends among them, are made one space each."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace("\n", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)  # noqa: S106
    return trained(tokenizer, trainer, "<unk>")


def word_level(unknown: str | None) -> PreTrainedTokenizerFast:
    """Whole words. Without an unknown token it fails on any other word."""
    special = [] if unknown is None else [unknown]
    tokenizer = Tokenizer(models.WordLevel(unk_token=unknown or "<none>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return trained(tokenizer, trainers.WordLevelTrainer(special_tokens=special, show_progress=False), unknown)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": lambda: byte_pairs(pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
    "byte-level with a space before": lambda: byte_pairs(pre_tokenizers.ByteLevel(), decoders.ByteLevel()),
    "metaspace always": lambda: metaspace("always"),
    "metaspace first": lambda: metaspace("first"),
    "metaspace never": lambda: metaspace("never"),
    "prepend": prepended,
    "unigram": unigram,
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_text_means_the_token_that_it_is_within_a_longer_text(name: str) -> None:
    """Every token of a text but its first, by its place there, whatever the tokenizer puts before a text."""
    tokenizer = TOKENIZERS[name]()
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    encoding = tokenizer(TEXT, return_offsets_mapping=True, add_special_tokens=False)
    pieces = [TEXT[start:end] for start, end in encoding.offset_mapping]
    for token, piece in list(zip(encoding.input_ids, pieces, strict=True))[1:]:
        expected = None if token == tokenizer.unk_token_id else token
        assert vocabulary.target(piece.replace("\n", " ") if name == "unigram" else piece) == expected, piece


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_text_of_a_token_means_that_token(name: str) -> None:
    """The text that an answer shows for a token asks for the same token."""
    tokenizer = TOKENIZERS[name]()
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    texts = [vocabulary.text(token) for token in range(len(tokenizer))]
    once = [token for token, text in enumerate(texts) if texts.count(text) == 1 and text]
    assert len(once) > len(texts) // 3
    assert [vocabulary.target(texts[token]) for token in once] == once
    known = {texts[token] for token in once}
    assert any(f" {text}" in known for text in known if text.isalpha())


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_text_of_which_only_the_one_after_a_space_is_a_token_is_refused(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    pieces = {vocabulary.text(token) for token in range(len(tokenizer))}
    spaced = [piece for piece in pieces if piece[:1] == " " and piece[1:].isalpha() and piece[1:] not in pieces]
    assert spaced
    for piece in spaced:
        assert vocabulary.target(piece) is not None
        assert vocabulary.target(piece[1:]) is None
        assert len(vocabulary.pieces(piece[1:])) > 1


@pytest.mark.parametrize("unknown", ["<unk>", None])
def test_in_a_vocabulary_of_whole_words_a_space_before_one_changes_nothing(unknown: str | None) -> None:
    tokenizer = word_level(unknown)
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    paris = tokenizer.convert_tokens_to_ids("Paris")
    assert vocabulary.target("Paris") == vocabulary.target(" Paris") == paris
    assert vocabulary.target("Pari") is None
    assert vocabulary.text(paris).strip() == "Paris"


def test_a_tokenizer_that_lower_cases_texts_is_followed() -> None:
    tokenizer = TOKENIZERS["byte-level"]()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    assert vocabulary.target(" CATS") == vocabulary.target(" cats") == tokenizer.convert_tokens_to_ids("Ġcats")


def test_a_target_without_a_space_is_another_token(hosts: Hosts) -> None:
    """For a model whose tokenizer puts a space before every text: the answer shows which token was taken."""
    host = hosts["llama-metaspace"]
    with_space, without = (host.tokenizer.convert_tokens_to_ids(piece) for piece in ("▁in", "in"))
    targets = [pb.Target(text=" in"), pb.Target(text="in")]
    answer = host.trace(
        pb.TraceRequest(prompt=wire.prompt(IDS), targets=[*targets, pb.Target(id=5, contrast_text="in")])
    )
    assert [(target.id, target.text) for target in answer.context.targets][:2] == [
        (with_space, " in"),
        (without, "in"),
    ]


# ------------------------------------------------------------------ texts that cannot be encoded


def test_a_text_that_the_tokenizer_fails_on_is_refused_by_field(tmp_path: Path) -> None:
    directory = without_tokenizer("llama", tmp_path)
    word_level(None).save_pretrained(directory)
    with serving(directory) as stub:
        target = pb.Target(text="nowhere", contrast_text="Lyon")
        request = pb.TraceRequest(prompt=pb.Prompt(text="Paris is nowhere"), targets=[target])
        refused = wire.refusal(stub.Trace(request, timeout=DEADLINE))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert set(refused.violations) == {"prompt.text", "targets[0].text", "targets[0].contrast_text"}
        assert all("[UNK]" in told for told in refused.violations.values())
        answer = traced(stub, pb.Prompt(text="Paris is in"), pb.Target(text="France"))
        assert [token.text.strip() for token in answer.context.tokens] == ["Paris", "is", "in"]
        assert [target.text.strip() for target in answer.context.targets] == ["France"]


def test_a_prompt_that_begins_with_the_begin_token_has_it_once(hosts: Hosts) -> None:
    host = hosts["llama"]
    plain = host.ids("The Eiffel Tower")
    begin = host.tokenizer.bos_token_id
    assert plain[0] == begin
    for text, expected in (("<s>The Eiffel Tower", plain), ("<s><s>The Eiffel Tower", [begin, *plain])):
        answer = host.trace(pb.TraceRequest(prompt=pb.Prompt(text=text)))
        assert [token.id for token in answer.context.tokens] == expected
    tracing = pb.CausalTracing(subject_text="Eiffel Tower", gaussian=pb.CausalTracing.Gaussian(samples=1), layers=[0])
    answer = host.trace(pb.TraceRequest(prompt=pb.Prompt(text="<s>The Eiffel Tower"), causal_tracing=tracing))
    assert answer.corruption is not None
    assert list(answer.corruption.positions) == [len(plain) - 2, len(plain) - 1]
