"""The logit lens at each position: the model's prediction if it ended after each block (nostalgebraist 2020).

https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens
"""

from sonde._answers.findings import LensTable
from sonde._ask.named import PositionsLike
from sonde._ask.prompts import PromptLike
from sonde._methods.token_probability import TokenProbability
from sonde.client import Client


def logit_lens(client: Client, prompt: PromptLike, *, positions: PositionsLike = None) -> LensTable:
    """Find the most probable next token at each depth and position.

    Args:
        client: the client to use.
        prompt: the prompt to run.
        positions: the positions to read, by number or by name; None means all.
    """
    method = TokenProbability(positions="all" if positions is None else positions)
    return client.trace(prompt, method=method, top_k=1).table
