"""Writes atlas.json anew, from a server of this working tree: `python -m tests.golden.regenerate`."""

import base64
import json
from pathlib import Path

import grpc
import torch
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub
from sonde_server.config import Settings
from sonde_server.serving.server import Server

from tests.golden import cases

GOLDEN = Path(__file__).with_name("atlas.json")
DIGITS = 9
"""Significant digits: as many as tell any two float32 numbers apart."""


def recorded(stub: InspectionServiceStub) -> dict[str, object]:
    """Every case's request as bytes and the numbers of its answer, by name."""
    golden: dict[str, object] = {
        case.name: {
            "method": case.method,
            "request": encoded(case.request.SerializeToString(deterministic=True)),
            "values": {name: [rounded(one) for one in row] for name, row in case.ask(stub).items()},
        }
        for case in cases.CASES
    }
    golden["refused"] = {
        "method": "Intervene",
        "request": encoded(cases.refused().SerializeToString(deterministic=True)),
        **cases.refusal(stub),
    }
    return golden


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")


def main() -> None:
    torch.set_num_threads(1)
    settings = Settings(port=0, device="cpu", dtype="float32")
    with Server(settings) as server, grpc.insecure_channel(server.address) as channel:
        golden = recorded(InspectionServiceStub(channel))
    rows = [f" {json.dumps(name)}: {json.dumps(case)}" for name, case in golden.items()]
    GOLDEN.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="ascii")


if __name__ == "__main__":
    main()
