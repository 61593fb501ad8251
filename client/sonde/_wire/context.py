"""The context that begins an answer: the prompt's tokens, the unchanged run, the cost and the provenance."""

from collections.abc import Iterable, Sequence

import numpy as np

from sonde._answers.captured import Captured
from sonde._answers.images import ImageGrid
from sonde._answers.predictions import NO_TOKEN, Continuation, Prediction, Token, TokenPrediction
from sonde._answers.requests import Request
from sonde._answers.results import Common, Cost, Provenance
from sonde._wire.parts import token
from sonde.errors import ProtocolError
from sonde.v1 import inspection_pb2 as pb


def provenance(message: pb.Provenance) -> Provenance:
    """Decode where the numbers come from."""
    name = pb.DataType.Name(message.data_type) if message.data_type in pb.DataType.values() else "unknown"
    dtype = name.removeprefix("DATA_TYPE_").lower()
    return Provenance(
        message.model,
        message.revision,
        dtype,
        message.device,
        message.attention,
        message.server_version,
        message.image_processor,
    )


def image_grid(message: pb.ImageGrid) -> ImageGrid:
    """Decode a grid of positions over an image.

    Raises:
        ProtocolError: if it has not as many positions as cells.
    """
    if len(message.positions) != message.rows * message.columns:
        raise ProtocolError("the answer has a grid over the image that does not match its positions")
    return ImageGrid(
        message.rows,
        message.columns,
        tuple(message.positions),
        message.left,
        message.top,
        message.right,
        message.bottom,
    )


class Context:
    """The context of an answer, decoded.

    A statistic over cases has rows in place of positions. They stand where a prompt has its tokens.
    """

    def __init__(
        self, message: pb.RunContext, *, dry_run: bool, asked: Request | None = None, rows: Sequence[str] = ()
    ) -> None:
        if not dry_run and not message.HasField("clean"):
            raise ProtocolError("the answer's context has no unchanged run")
        self.message = message
        self.dry_run = dry_run
        self.asked = asked
        self.rows = tuple(rows)
        self.tokens = tuple(Token(NO_TOKEN, row) for row in rows) or tuple(map(token, message.tokens))
        self.targets = tuple(map(token, message.targets))
        cost = message.cost
        self.cost = Cost(
            cost.runs, cost.token_layers, cost.full_token_layers, cost.answer_bytes, cost.cases, cost.tokens
        )
        self.provenance = provenance(message.provenance)

    def texts(self) -> dict[int, str]:
        """The texts of the token ids in the context."""
        clean = self.message.clean
        return {t.id: t.text for t in (*self.message.tokens, *self.message.targets, *clean.top_tokens)}

    def positions(self, given: Iterable[int]) -> tuple[int, ...] | None:
        """Resolve requested positions: counted from 0, without repetition; None if there are none."""
        resolved = tuple(dict.fromkeys(p + len(self.tokens) if p < 0 else p for p in given))
        return resolved or None

    def common(self, activations: Captured | None = None, continuations: Sequence[Continuation] = ()) -> Common:
        """The fields that all results share."""
        captured = Captured((), ()) if activations is None else activations
        return {
            "tokens": self.tokens,
            "targets": self.targets,
            "position": NO_TOKEN if self.rows else self.message.position,
            "cost": self.cost,
            "provenance": self.provenance,
            "dry_run": self.dry_run,
            "request": self.asked,
            "spans": {span.name: tuple(span.positions) for span in self.message.spans},
            "images": tuple(image_grid(one) for one in self.message.images if one.stack == pb.STACK_DECODER),
            "_clean": None if self.dry_run else self._prediction(captured, continuations),
        }

    def _prediction(self, activations: Captured, continuations: Sequence[Continuation]) -> Prediction:
        clean = self.message.clean
        counts = [len(clean.log_probabilities), len(clean.logits), len(self.targets)]
        counts += [len(clean.probabilities)] if clean.probabilities else []
        if len(set(counts)) != 1 or len(clean.top_tokens) != len(clean.top_log_probabilities):
            raise ProtocolError("the answer's unchanged run does not match its targets or its top tokens")
        return Prediction(
            self.targets,
            np.array(clean.log_probabilities, np.float32),
            np.array(clean.logits, np.float32),
            tuple(
                TokenPrediction(t.id, t.text, p)
                for t, p in zip(clean.top_tokens, clean.top_log_probabilities, strict=True)
            ),
            activations,
            continuations[0] if continuations else None,
            tuple(continuations[1:]),
            _probabilities=np.array(clean.probabilities, np.float32) if clean.probabilities else None,
        )
