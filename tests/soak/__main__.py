"""The long proofs: `make soak`, or `python -m tests.soak --requests 5000 --minutes 1 --kills 3` for shorter ones.

Prints what was done and what came of it; the exit status is 1 if anything was not as it should be.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import grpc
import torch
from sonde.v1 import inspection_pb2 as pb

from tests.soak import fuzzing
from tests.soak.kills import kill_repeatedly
from tests.soak.load import load
from tests.soak.serving import serving
from tests.support.models import save_model

# What mutated requests may take, so that those which are valid do not take long.
BOUNDS = ("--max-runs", "300", "--max-answer-bytes", str(8 << 20), "--max-working-bytes", str(64 << 20))
MOST_GROWTH = 1.1


def main() -> int:
    """Runs what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="mutated requests (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of load (default: %(default)s)")
    parser.add_argument("--callers", type=int, default=64, help="at the same time (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=20, help="at random moments (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**31), help="to repeat a run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"seed {options.seed}", flush=True)
    failures = []
    with tempfile.TemporaryDirectory() as directory:
        model = save_model("llama", Path(directory) / "llama")
        if options.requests:
            failures += _fuzz(model, options.requests, options.seed)
        if options.minutes:
            failures += _load(model, options.callers, 60 * options.minutes, options.seed)
        if options.kills:
            failures += _kill(model, options.kills, options.seed)
    for failure in failures:
        print("FAILED", failure)
    return 1 if failures else 0


def _fuzz(model: Path, requests: int, seed: int) -> list[str]:
    began = time.monotonic()
    with serving(model, 0, *BOUNDS) as server, grpc.insecure_channel(server.address) as channel:
        call = channel.unary_stream("/sonde.v1.InspectionService/Intervene")
        valid = fuzzing.seeds()[5].SerializeToString()
        first = list(call(valid, timeout=fuzzing.SECONDS))

        def healthy() -> bool:
            return list(call(valid, timeout=fuzzing.SECONDS)) == first

        outcome = fuzzing.assault(channel, islice(_supply(seed), requests), healthy)
        code = server.stop()
    print(f"mutated requests, {time.monotonic() - began:.0f} s: {outcome}; exit code after SIGTERM: {code}", flush=True)
    return [f"{code} from {method} for {data.hex()}" for code, method, data in outcome.faults[:20]]


def _supply(seed: int) -> Iterator[tuple[str, bytes]]:
    """Mutated requests; what was mutated last may be mutated again."""
    fuzzer = fuzzing.Fuzzer(seed)
    kinds: dict[str, type[pb.TraceRequest | pb.InterveneRequest]]
    kinds = {"Trace": pb.TraceRequest, "Intervene": pb.InterveneRequest}
    originals = len(fuzzer.valid)
    while True:
        method, data = fuzzer.request()
        yield method, data
        if fuzzer.random.random() < 0.05 and len(data) < 5000:
            try:
                again = kinds[method].FromString(data)
            except Exception:  # noqa: BLE001, S112 - protobuf's own error differs by its build
                continue
            fuzzer.valid = [*fuzzer.valid[:originals], *fuzzer.valid[originals:][-20:], again]


def _load(model: Path, callers: int, seconds: float, seed: int) -> list[str]:
    flags = ("--max-requests", "0", "--workers", str(callers + 8))
    with serving(model, 0, *flags) as server:
        report = load(server, callers=callers, seconds=seconds, seed=seed)
        code = server.stop()
    print(f"{callers} callers: {report}; exit code after SIGTERM: {code}", flush=True)
    failures = list(report.wrong[:20])
    if report.growth > MOST_GROWTH:
        failures.append(f"resident memory grew {report.growth:.2f} times")
    if report.holdings[-1].hooks:
        failures.append(f"{report.holdings[-1].hooks} hooks are left")
    return failures + ([f"exit code {code}"] if code else [])


def _kill(model: Path, kills: int, seed: int) -> list[str]:
    report = kill_repeatedly(model, kills=kills, seed=seed)
    print(report, flush=True)
    return report.wrong[:20]


if __name__ == "__main__":
    sys.exit(main())
