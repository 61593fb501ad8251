"""A model that exists on paper alone, to read requests with."""

from dataclasses import replace
from typing import Any

import pytest
from sonde_server.config import Limits
from sonde_server.errors import InvalidQuestion
from sonde_server.model.vocabulary import Vocabulary
from sonde_server.questions.places import ModelDescription
from sonde_server.wire.fields import Reader

from tests.support.models import byte_level_tokenizer

VOCABULARY = Vocabulary(byte_level_tokenizer(), 420)
MODEL = ModelDescription(
    name="on paper", revision="1", architecture="llama", data_type="float32", device="cpu", attention="sdpa",
    layers=4, hidden_size=16, heads=4, key_value_heads=2, head_size=4, neurons=32, vocabulary_size=420,
    max_positions=512, parameters=2**20,
)  # fmt: skip


def reader(vocabulary: Vocabulary = VOCABULARY, limits: Limits | None = None) -> Reader:
    """A reader that has noted no fault yet."""
    return Reader(replace(MODEL, vocabulary_size=vocabulary.size), vocabulary, limits or Limits())


def violations(problems: Reader) -> dict[str, str]:
    """The faults that a reader has noted, description by field."""
    with pytest.raises(InvalidQuestion) as caught:
        problems.problems.settle()
    return told(caught.value)


def told(error: Any) -> dict[str, str]:
    """The descriptions of a refusal by field."""
    return {violation.field: violation.description for violation in error.violations}
