"""The recorded requests and numbers, and how what a program prints is held to them."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format
from google.protobuf.message import Message
from sonde.v1 import inspection_pb2 as pb

from tests.golden.cases import CASES

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("atlas.json").read_text(encoding="ascii"))
TOLERANCE = 1e-5
"""Absolute, and relative to numbers beyond 1: float32 on another machine or in another batch."""
REQUESTS: dict[str, type[Message]] = {
    "GetModel": pb.GetModelRequest,
    "Trace": pb.TraceRequest,
    "Intervene": pb.InterveneRequest,
}
ANSWERS: dict[str, type[Message]] = {
    "GetModel": pb.GetModelResponse,
    "Trace": pb.TraceResponse,
    "Intervene": pb.InterveneResponse,
}


def canonical(method: str, data: bytes) -> bytes:
    """The bytes of the same request in the one order of fields that they are compared in."""
    request = REQUESTS[method]()
    request.ParseFromString(data)
    return request.SerializeToString(deterministic=True)


def assert_request(name: str, data: bytes) -> None:
    """The bytes mean what was recorded, unset and zero told apart."""
    method, recorded = RECORDED[name]["method"], base64.b64decode(RECORDED[name]["request"])
    assert canonical(method, data) == canonical(method, recorded), name


def assert_values(name: str, values: Mapping[str, Sequence[float]]) -> None:
    """The numbers are those recorded: as many, in the same order, within the tolerance."""
    recorded = RECORDED[name]["values"]
    assert set(values) == set(recorded), name
    for field, expected in recorded.items():
        given, wanted = (np.asarray(row, dtype=np.float64) for row in (values[field], expected))
        np.testing.assert_allclose(
            given, wanted, rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"{name}.{field}", strict=True
        )


def assert_json(output: str) -> None:
    """Lines of a program without stubs: CASE.request JSON, CASE.message JSON for each message, and the refusal."""
    lines: dict[str, dict[str, list[str]]] = {name: {"request": [], "message": [], "refusal": []} for name in RECORDED}
    for line in output.splitlines():
        key, _, rest = line.partition(" ")
        name, field = key.split(".")
        lines[name][field].append(rest)
    for name, recorded in RECORDED.items():
        (request,) = lines[name]["request"]
        assert_request(name, json_format.Parse(request, REQUESTS[recorded["method"]]()).SerializeToString())
    for case in CASES:
        answer = ANSWERS[case.method]
        assert_values(case.name, case.join(json_format.Parse(one, answer()) for one in lines[case.name]["message"]))
    (refusal,) = map(json.loads, lines["refused"]["refusal"])
    assert {one["field"]: one["description"] for one in refusal["violations"]} == RECORDED["refused"]["violations"]
    assert (refusal["code"], [refusal["reason"]]) == ("invalid_argument", RECORDED["refused"]["reasons"])


def assert_printed(output: str) -> None:
    """Lines as the programs in examples/ print them: CASE.request BASE64, CASE.NAME NUMBERS, and the refusal."""
    values: dict[str, dict[str, list[float]]] = {name: {} for name in RECORDED}
    refusal: dict[str, Any] = {"violations": {}}
    requests = set()
    for line in output.splitlines():
        key, _, rest = line.partition(" ")
        name, field = key.split(".")
        if field == "request":
            assert_request(name, base64.b64decode(rest))
            requests.add(name)
        elif name != "refused":
            values[name][field] = [float(one) for one in rest.split()]
        elif field == "violation":
            path, _, description = rest.partition(" ")
            refusal["violations"][path] = description
        else:
            refusal[field] = int(rest) if field == "code" else rest.split()
    assert requests == set(RECORDED)
    recorded = RECORDED["refused"]
    assert refusal == {name: recorded[name] for name in ("code", "reasons", "violations")}
    del values["refused"]
    for name, fields in values.items():
        assert_values(name, fields)
