"""The logit lens at each position: the model's prediction if it ended after each block (nostalgebraist 2020).

https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens
"""

from sonde._answers.findings import LensTable
from sonde._ask.indices import Indices, indices
from sonde._ask.prompts import PromptLike
from sonde._methods.token_probability import TokenProbability, TokenProbabilityResult
from sonde.client import Client
from sonde.questions.pipeline import each


def logit_lens(client: Client, prompt: PromptLike, *, positions: Indices = None) -> LensTable:
    """Find the most probable next token at each depth and position.

    Args:
        client: the client to use.
        prompt: the prompt to run.
        positions: the positions to read; None means all.
    """
    described = client.trace(prompt, top_k=0, dry_run=True)
    count = len(described.tokens)
    chosen = [p % count if -count <= p < count else p for p in indices(positions, "positions")] or list(range(count))

    def read(position: int) -> TokenProbabilityResult:
        return client.trace(prompt, method=TokenProbability(), position=position, top_k=1)

    results = list(each(read, chosen))
    depths = results[0].depths
    cells = tuple(tuple(result.top_at(depth, 1)[0] for result in results) for depth in depths)
    tokens = tuple(described.tokens[p] for p in chosen)
    return LensTable(tokens, tuple(chosen), depths, cells, described.provenance)
