"""Protobuf to questions, answers to protobuf. Beside `service` the only place that sees the contract's messages."""

from .decode import decode_intervene, decode_trace
from .encode import encode_intervene, encode_model, encode_trace

__all__ = ["decode_intervene", "decode_trace", "encode_intervene", "encode_model", "encode_trace"]
