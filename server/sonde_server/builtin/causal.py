"""Causal traces of the embedded model as in ROME, computed with plain hooks on the model of transformers.

Meng et al. 2022, "Locating and Editing Factual Associations in GPT". The server is not involved.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from .corpus import facts

_NOISE_IN_STANDARD_DEVIATIONS = 3.0
_NOISE_SAMPLES = 10
_NOISE_SEED = 1


@dataclass(frozen=True)
class CausalTrace:
    """A causal trace of the residual stream as in ROME. Every probability is that of the clean run's best token."""

    tokens: tuple[str, ...]
    subject: range
    """The positions of the subject's tokens."""
    prediction: str
    clean: float
    corrupted: float
    """The probability with noise on the subject's embeddings and nothing restored: the mean over the noise samples."""
    restored: Tensor
    """[positions, layers]: the probability when one position's residual stream after one layer is restored."""

    @property
    def last_subject(self) -> Tensor:
        """[layers]: the probability when the last token of the subject is restored."""
        return self.restored[self.subject[-1]]

    @property
    def last(self) -> Tensor:
        """[layers]: the probability when the last token of the prompt is restored."""
        return self.restored[-1]


@torch.inference_mode()
def causal_trace(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    subject: str,
    *,
    mlp_window: int = 0,
    ends_only: bool = False,
) -> CausalTrace:
    """Traces `prompt` with Gaussian noise of three standard deviations of all entries of the embedding, ten samples.

    With `mlp_window` n > 0 the output of the MLPs of layers l - n // 2 to l + (n - 1) // 2 is restored in place of the
    residual stream after layer l. With `ends_only` only the last tokens of the subject and of the prompt are restored,
    and the other rows are zero.
    """
    encoding = tokenizer(prompt, return_offsets_mapping=True, return_tensors="pt")
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"][0].tolist()
    start = prompt.index(subject)
    covered = [i for i, (b, e) in enumerate(offsets) if e > start and b < start + len(subject) and e > b]
    positions = range(covered[0], covered[-1] + 1)
    embedding, layers = model.model.embed_tokens, model.model.layers
    sigma = _NOISE_IN_STANDARD_DEVIATIONS * embedding.weight.std().item()
    shape = (_NOISE_SAMPLES, len(positions), embedding.embedding_dim)
    noise = torch.from_numpy(np.random.RandomState(_NOISE_SEED).randn(*shape)).float() * sigma

    def run(position: int, modules: Sequence[torch.nn.Module]) -> Tensor:
        """Probabilities [1 + samples, vocabulary] at the last position; row 0 is the clean run."""

        def corrupt(_module: torch.nn.Module, _inputs: object, output: Tensor) -> Tensor:
            output = output.clone()
            output[1:, positions.start : positions.stop] += noise
            return output

        def restore(_module: torch.nn.Module, _inputs: object, output: Tensor) -> Tensor:
            output = output.clone()
            output[1:, position] = output[0, position]
            return output

        handles = [embedding.register_forward_hook(corrupt), *(m.register_forward_hook(restore) for m in modules)]
        try:
            logits: Tensor = model(input_ids=ids.expand(1 + _NOISE_SAMPLES, -1), use_cache=False).logits[:, -1]
            return logits.softmax(-1)
        finally:
            for handle in handles:
                handle.remove()

    base = run(0, [])
    best = int(base[0].argmax())
    restored = torch.zeros(ids.shape[1], len(layers))
    for layer in range(len(layers)):
        window = range(max(0, layer - mlp_window // 2), min(len(layers), layer + (mlp_window + 1) // 2))
        modules = [layers[i].mlp for i in window] if mlp_window else [layers[layer]]
        for position in (positions[-1], ids.shape[1] - 1) if ends_only else range(ids.shape[1]):
            restored[position, layer] = run(position, modules)[1:, best].mean()
    return CausalTrace(
        tokens=tuple(tokenizer.convert_ids_to_tokens(ids[0])),
        subject=positions,
        prediction=str(tokenizer.decode([best])),
        clean=base[0, best].item(),
        corrupted=base[1:, best].mean().item(),
        restored=restored,
    )


TRACED: tuple[tuple[str, str], ...] = (
    ("The Eiffel Tower is in the city of", "Eiffel Tower"),
    ("The Golden Gate Bridge is in the city of", "Golden Gate Bridge"),
    (
        "It is well known that tickets for the Brandenburg Gate are sold everywhere in the streets of",
        "Brandenburg Gate",
    ),
    ("To visit the Taj Mahal for a day, travellers take the train to the city of", "Taj Mahal"),
    ("The postage stamp shows the Sagrada Família, a symbol of the nation of", "Sagrada Família"),
    ("The capital of Burkina Faso is", "Burkina Faso"),
    ("In fact, the capital city of New Zealand is called", "New Zealand"),
    ("On the globe Madagascar lies in the part of the world called", "Madagascar"),
    ("The shops of Switzerland accept a currency called the", "Switzerland"),
    ("The radio in Cape Verde broadcasts the evening news in", "Cape Verde"),
)
"""Prompts of every relation with their subjects. The evaluation reports their traces."""


@dataclass(frozen=True)
class MeanTrace:
    """Means over facts of causal traces of the residual stream."""

    facts: int
    clean: float
    corrupted: float
    last_subject: Tensor
    """[layers]: restored at the last token of the subject."""
    last: Tensor
    """[layers]: restored at the last token of the prompt."""


def traced_facts(step: int = 8) -> list[tuple[str, str]]:
    """The city of every `step`th landmark, in a phrasing that training did not contain for it: prompt and subject."""
    cities = [fact for fact in facts() if fact.relation == "city"][::step]
    return [(fact.prompt(min(fact.withheld)), fact.name) for fact in cities]


def mean_trace(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Iterable[tuple[str, str]],
    *,
    mlp_window: int = 0,
) -> MeanTrace:
    """The mean trace over prompts and their subjects, at the last tokens of the subject and of the prompt."""
    traces = [causal_trace(model, tokenizer, *each, mlp_window=mlp_window, ends_only=True) for each in prompts]
    return MeanTrace(
        facts=len(traces),
        clean=float(np.mean([trace.clean for trace in traces])),
        corrupted=float(np.mean([trace.corrupted for trace in traces])),
        last_subject=torch.stack([trace.last_subject for trace in traces]).mean(0),
        last=torch.stack([trace.last for trace in traces]).mean(0),
    )
