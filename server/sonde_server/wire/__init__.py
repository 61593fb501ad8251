"""Protobuf to questions, answers to protobuf. Beside `service` the only place that sees the contract's messages."""

from .decode import decode_intervene, decode_trace
from .encode import SMALL_RUNS, encode_intervene, encode_model, encode_trace

__all__ = ["SMALL_RUNS", "decode_intervene", "decode_trace", "encode_intervene", "encode_model", "encode_trace"]
