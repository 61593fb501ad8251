"""Questions, their runs and their cost: no torch, no protobuf. The only room that counts.

Everything here is resolved and checked: positions count from the start, layers and units exist, texts are token ids,
values are finite and broadcast. The question of a method is in a file of that name, as in `wire` and `methods`.
"""
