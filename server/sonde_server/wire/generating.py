"""How every run is continued."""

import math

from sonde.v1 import inspection_pb2 as pb

from ..questions.interventions import Generation
from .fields import Reader


def read_generation(message: pb.Generation, path: str, tokens: int | None, reader: Reader) -> Generation:
    """The continuation of a prompt of so many tokens."""
    most = reader.model.max_positions - (tokens or 1) + 1
    if not 1 <= message.max_new_tokens <= most:
        # The last token is added and not read, so it needs no position.
        reader.problems.add(
            f"{path}.max_new_tokens",
            f"{message.max_new_tokens} tokens cannot be added to {tokens or 1}: the model has "
            f"{reader.model.max_positions} positions; give 1 to {most}",
        )
    temperature = message.temperature
    if not math.isfinite(temperature) or temperature < 0:
        reader.problems.add(
            f"{path}.temperature", f"{temperature} is not a temperature; give a finite number of 0 or more"
        )
    seed = reader.seed(message.seed, f"{path}.seed") if message.HasField("seed") else 1
    return Generation(message.max_new_tokens, temperature, seed, message.ignore_end_token)
