"""Questions, what they come to and what they cost: no torch, no protobuf. The only room that counts.

Everything here is resolved and checked: positions count from the start, layers and units exist, texts are token ids,
values are finite and broadcast.
"""
