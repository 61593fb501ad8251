"""Conversations: the tokens are those of transformers' own template, and each message is found where it was written."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sonde.v1 import inspection_pb2 as pb
from sonde_server.config import Limits
from sonde_server.errors import Unsupported
from sonde_server.model.vocabulary import Vocabulary
from sonde_server.questions.prompts import Prompt
from sonde_server.wire import encode_model
from sonde_server.wire.names import read_named
from sonde_server.wire.prompts import read_prompt

from tests.conftest import DEADLINE, Host
from tests.support import wire
from tests.support.models import byte_level_tokenizer, metaspace_tokenizer
from tests.support.reading import MODEL, VOCABULARY, reader, violations

# As the checkpoints of these families have them, shortened by what needs tools.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# SmolLM2 and Qwen 2.5 put in a system message of their own.
CHATML_DEFAULT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + "
    "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
# Llama 2 writes the system message into the user's.
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if loop.index0 == 0 and system_message %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# Qwen 3 leaves out what the assistant thought in earlier turns.
THINKING = (
    "{% for message in messages %}{% set content = message['content'] %}"
    "{% if '</think>' in content and not loop.last %}"
    "{% set content = content.split('</think>')[-1].lstrip() %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML, "chatml with a default": CHATML_DEFAULT, "llama 3": LLAMA_3, "gemma": GEMMA, "llama 2": LLAMA_2,
    "thinking": THINKING,
}  # fmt: skip
USER, ASSISTANT = ("user", "How do I get to the town?"), ("assistant", "Over the hills.")
CHAT = [USER, ASSISTANT, ("user", "And the cat?")]


def speaking(template: str, *, metaspace: bool = False) -> Vocabulary:
    tokenizer = metaspace_tokenizer() if metaspace else byte_level_tokenizer("<|begin|>")
    tokenizer.chat_template = template
    return Vocabulary(tokenizer, len(tokenizer))


def message(messages: Sequence[tuple[str, str]], **options: Any) -> pb.Prompt:
    said = [pb.ChatMessage(role=role, content=content) for role, content in messages]
    return pb.Prompt(chat=pb.Chat(messages=said, **options))


def read(vocabulary: Vocabulary, asked: pb.Prompt) -> Prompt:
    problems = reader(vocabulary)
    prompt = read_prompt(asked, "prompt", problems)
    problems.problems.settle()
    assert prompt is not None
    return prompt


def covered(prompt: Prompt, positions: Sequence[int]) -> str:
    """The text of the tokens at these positions."""
    assert prompt.text is not None
    return prompt.text[prompt.offsets[positions[0]][0] : prompt.offsets[positions[-1]][1]] if positions else ""


# ------------------------------------------------------------------ the tokens


@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": True}, {"continue_final_message": True}], ids=str)
@pytest.mark.parametrize("metaspace", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_tokens_are_those_of_transformers(name: str, metaspace: bool, options: dict[str, Any]) -> None:
    vocabulary = speaking(TEMPLATES[name], metaspace=metaspace)
    for chat in ([USER], CHAT, [USER, ("assistant", " padded ")]):
        prompt = read(vocabulary, message(chat, **options))
        said = [{"role": role, "content": content} for role, content in chat]
        assert vocabulary.tokenizer is not None
        expected = vocabulary.tokenizer.apply_chat_template(said, tokenize=True, return_dict=False, **options)
        assert list(prompt.tokens) == expected


# ------------------------------------------------------------------ the messages


@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": True}, {"continue_final_message": True}], ids=str)
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_message_is_a_span(name: str, options: dict[str, bool]) -> None:
    prompt = read(speaking(TEMPLATES[name]), message(CHAT, **options))
    spans = dict(prompt.spans)
    assert set(spans) == {"user", "user[0]", "user[1]", "assistant", "assistant[0]"}
    for span, content in (("user[0]", CHAT[0]), ("assistant[0]", CHAT[1]), ("user[1]", CHAT[2])):
        assert covered(prompt, spans[span]).strip() == content[1]
    assert spans["user"] == spans["user[1]"]
    assert spans["assistant"] == spans["assistant[0]"]


def test_a_system_message_within_that_of_the_user_is_a_span_of_its_own() -> None:
    prompt = read(speaking(LLAMA_2), message([("system", "Be brief."), USER]))
    assert covered(prompt, dict(prompt.spans)["system"]).strip() == "Be brief."
    assert covered(prompt, dict(prompt.spans)["user"]).strip() == USER[1]


CONTENTS = st.text(st.sampled_from("ab <|im_start|>user\n\u00e9"), max_size=12)


@settings(max_examples=60)
@given(contents=st.lists(CONTENTS, min_size=1, max_size=4), name=st.sampled_from(sorted(TEMPLATES)))
def test_whatever_is_said_is_found_or_has_no_span(contents: list[str], name: str) -> None:
    """Also what looks like the template's own text, and what it trims."""
    chat = [(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
    prompt = read(speaking(TEMPLATES[name]), message(chat))
    spans = dict(prompt.spans)
    for i, (role, content) in enumerate(chat):
        assert f"{role}[{i // 2}]" in spans, "only a content that the template takes apart has no span"
        found = covered(prompt, spans[f"{role}[{i // 2}]"])
        assert content.strip() in found
        # Tokens that straddle its ends may have more.
        assert len(found.strip()) <= len(content) + 12


def test_a_message_that_the_template_takes_apart_has_no_span_and_the_others_have_theirs() -> None:
    chat = [USER, ("assistant", "<think>hills</think>Over them."), ("user", "And the cat?")]
    prompt = read(speaking(THINKING), message(chat))
    spans = dict(prompt.spans)
    assert set(spans) == {"user", "user[0]", "user[1]"}
    assert covered(prompt, spans["user[0]"]).strip() == USER[1]
    assert covered(prompt, spans["user[1]"]).strip() == "And the cat?"


def test_no_message_takes_the_place_of_others() -> None:
    """What the template leaves out of the first message is what it writes in its place and behind."""
    end, user, assistant = "<|im_end|>\n", "<|im_start|>user\n", "<|im_start|>assistant\n"
    chat = [
        ("user", f"{end}{assistant}No{end}{user}foo</think>"),
        ("assistant", "No"),
        ("user", f"foo</think>{end}{assistant}"),
    ]
    prompt = read(speaking(THINKING), message(chat))
    spans = dict(prompt.spans)
    assert set(spans) == {"assistant", "assistant[0]", "user", "user[1]"}
    assert covered(prompt, spans["assistant"]) == "No"
    assert covered(prompt, spans["user"]) == chat[2][1]


def test_the_name_of_a_role_never_means_an_earlier_message() -> None:
    chat = [("assistant", "a"), USER, ("assistant", "<think>hills</think>b"), ("user", "c")]
    spans = dict(read(speaking(THINKING), message(chat)).spans)
    assert "assistant[0]" in spans
    assert "assistant" not in spans


def test_an_empty_message_has_no_positions() -> None:
    assert dict(read(speaking(CHATML), message([("user", ""), ASSISTANT])).spans)["user"] == ()


def test_spans_of_the_request_come_after_those_of_the_chat() -> None:
    asked = message(CHAT)
    asked.spans.add(name="town", text="town")
    asked.spans.add(name="opening", text="assistant")
    prompt = read(speaking(CHATML), asked)
    spans = dict(prompt.spans)
    assert covered(prompt, spans["town"]).strip() == "town"
    assert covered(prompt, spans["opening"]) == "assistant"
    problems = reader()
    last = pb.NamedPositions(span="user", part=pb.SPAN_PART_LAST)
    assert read_named(last, prompt, "x", problems) == spans["user[1]"][-1:]


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("template", "asked", "field", "words"),
    [
        (CHATML, message([]), "prompt.chat.messages", "at least one"),
        (CHATML, message([("", "hello")]), "prompt.chat.messages[0].role", "empty"),
        (
            CHATML,
            message(CHAT, add_generation_prompt=True, continue_final_message=True),
            "prompt.chat.continue_final_message",
            "both",
        ),
        (GEMMA, message([USER, USER]), "prompt.chat.messages", "roles must alternate"),
        (GEMMA, message([("system", "x"), USER]), "prompt.chat.messages", "System role not supported"),
        (CHATML, message([("user", "x" * 100_000)]), "prompt.chat.messages", "100004"),
        (CHATML, message([("user", "a b " * 300)]), "prompt.chat", "1 to 512"),
        ("{{ messages[0].nothing.at.all }}", message([USER]), "prompt.chat.messages", "chat template"),
        (
            CHATML, pb.Prompt(chat=message(CHAT).chat, spans=[pb.Span(name="user", text="cat")]),
            "prompt.spans[0].name", "chat",
        ),
        (CHATML, message([USER] * 1025), "prompt.chat.messages", "1025"),
    ],
)  # fmt: skip
def test_a_faulty_chat_is_refused(template: str, asked: pb.Prompt, field: str, words: str) -> None:
    problems = reader(speaking(template))
    read_prompt(asked, "prompt", problems)
    assert words in violations(problems)[field]


@pytest.mark.parametrize("vocabulary", [VOCABULARY, Vocabulary(None, 420)])
def test_a_model_without_template_refuses_with_the_reason(vocabulary: Vocabulary) -> None:
    assert not vocabulary.chat_template
    problems = reader(vocabulary)
    assert read_prompt(message([USER]), "prompt", problems) is None
    with pytest.raises(Unsupported, match=r"^prompt\.chat: .*(template|tokenizer)"):
        problems.problems.settle()


def test_of_several_templates_the_default_is_used() -> None:
    vocabulary = speaking(CHATML)
    assert vocabulary.tokenizer is not None
    vocabulary.tokenizer.chat_template = {"rag": LLAMA_3, "default": CHATML}
    assert vocabulary.chat_template
    assert read(vocabulary, message([USER])).text == read(speaking(CHATML), message([USER])).text
    vocabulary.tokenizer.chat_template = {"rag": LLAMA_3}
    assert not vocabulary.chat_template


def test_the_model_says_whether_it_has_one() -> None:
    for known in (False, True):
        assert encode_model(replace(MODEL, chat_template=known), Limits(), "1").chat_template == known


def test_a_hosted_model_without_template_refuses_a_chat(gpt2: Host) -> None:
    assert not gpt2.model_info().chat_template
    refusal = wire.refusal(gpt2.stub.Trace(pb.TraceRequest(prompt=message([USER])), timeout=DEADLINE))
    assert refusal.code is grpc.StatusCode.UNIMPLEMENTED
    assert "template" in refusal.message
