"""Makes the tokenizer of a GGUF file cut texts as the model's own tokenizer does.

Such a file names the rule by which texts are cut before pairs of a byte-level vocabulary are merged, but does not hold
it. transformers' reader knows some of the rules, and cuts by GPT-2's where it knows none: then "a  1" would silently be
other tokens than those that the model was trained on. So the rules stand here, and an unknown one is refused.
"""

from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import UnsupportedModel
from .gguf_file import GgufFile

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True)
class _Rule:
    """How a text is cut.

    `pattern`: a regular expression of the parts; None means GPT-2's. `digits`: each digit is cut out first. `composed`:
    a letter and its accent become one character first. `whole`: a part that is a token stays whole, whatever its pairs.
    `begins`: the begin token is put before a text unless the file says otherwise.
    """

    pattern: str | None = None
    digits: bool = False
    composed: bool = False
    whole: bool = False
    begins: bool = False


_LLAMA3 = _Rule(rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}", whole=True, begins=True)
_QWEN2 = _Rule(rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}", composed=True)
# By the names that llama.cpp's converter gives them.
_RULES = {
    "gpt-2": _Rule(),
    "smollm": _Rule(digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}
# Byte-level vocabularies, and SentencePiece's, by the names of GGUF files.
_BYTE_LEVEL, _SENTENCEPIECE = "gpt2", "llama"
_WITH_SENTENCEPIECE = ("gemma2", "gemma3", "llama")


def read_tokenizer(file: GgufFile) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file, with its chat template.

    Raises:
        UnsupportedModel: for one that would cut texts otherwise than the model's own.
    """
    kind, name = file.tokenizer.get("model"), file.tokenizer.get("pre", "default")
    by_rule = kind == _BYTE_LEVEL and name in _RULES
    if not by_rule and not (kind == _SENTENCEPIECE and file.architecture in _WITH_SENTENCEPIECE):
        known = ", ".join(_RULES)
        raise UnsupportedModel(
            f"expected a vocabulary of kind {_SENTENCEPIECE}, or of kind {_BYTE_LEVEL} cut by one of the rules "
            f"{known}; got one of kind {kind} cut by the rule {name}"
        )
    tokenizer: PreTrainedTokenizerBase = file.read(PreTrainedTokenizerFast.from_pretrained)
    if by_rule:
        rule = _RULES[name]
        _cut(tokenizer.backend_tokenizer, rule)
        if rule.begins and "add_bos_token" not in file.tokenizer:
            tokenizer.add_bos_token = True
    return tokenizer


def _cut(tokenizer: Tokenizer, rule: _Rule) -> None:
    parts: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Digits(individual_digits=True)] if rule.digits else []
    if rule.pattern is not None:
        parts.append(pre_tokenizers.Split(Regex(rule.pattern), behavior="isolated"))
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.normalizer = normalizers.NFC() if rule.composed else None
    tokenizer.model.ignore_merges = rule.whole
