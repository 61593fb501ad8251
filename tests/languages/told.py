"""What every example's tour must have told, whatever its language."""

import re

import numpy as np
import sonde

from tests.golden.vectors import RECORDED

TRACE = re.compile(r"^trace: (\d+) of (\d+)$", re.MULTILINE)
CELL = re.compile(r"^  (0\.\d{3}) with (RESIDUAL_POST|MLP_OUT|ATTENTION_OUT) restored at layer (\d), ", re.MULTILINE)
FACT = re.compile(
    r"^  (\d\.\d{3}) \+- (\d\.\d{3}) over (\d+) with layer (\d) restored at the last token of the (\w+)$", re.MULTILINE
)
CITIES = {"The Eiffel Tower": " Paris", "The Louvre": " Paris", "The Colosseum": " Rome", "Big Ben": " London"}
SWEEP = re.compile(
    r"^sweep: (\d+) of 4608 runs; the least so far is 0\.(\d{3}) without neuron \d+ of layer 3", re.MULTILINE
)
REFUSED = re.compile(r"^refused: (\w+) \(INVALID_REQUEST\)$", re.MULTILINE)
VIOLATION = re.compile(r"^  (list\S+): (.+)$", re.MULTILINE)
CANCELLED = re.compile(r"^cancelled: (\w+) after (\d+) of (\d+) runs$", re.MULTILINE)


def assert_tour(output: str) -> None:
    """The model, a causal trace with progress, a sweep with partial results, an error with its violations, a cancel."""
    assert output.startswith("atlas: 8 layers of 8 heads and 384 neurons, 2747040 parameters\n"), output
    _assert_trace(output)
    _assert_sweep(output)
    refused, cancelled = REFUSED.search(output), CANCELLED.search(output)
    assert refused, output
    assert plain(refused[1]) == "INVALIDARGUMENT"
    assert dict(VIOLATION.findall(output)) == RECORDED["refused"]["violations"]
    assert cancelled, output
    assert plain(cancelled[1]) in {"CANCELED", "CANCELLED"}
    done, total = int(cancelled[2]), int(cancelled[3])
    assert 0 < done < total
    assert total == 8 * 384 * 12


def _assert_trace(output: str) -> None:
    steps = [(int(done), int(total)) for done, total in TRACE.findall(output)]
    assert len(steps) > 1, output
    assert steps == sorted(steps)
    assert steps[-1] == (5760, 5760)
    assert '" Paris": 0.997 clean, 0.239 corrupted' in output
    assert set(CELL.findall(output)) == {
        ("0.997", "RESIDUAL_POST", "7"),
        ("0.792", "MLP_OUT", "1"),
        ("0.993", "ATTENTION_OUT", "5"),
    }


def assert_facts(output: str, address: str) -> None:
    """What is joined from the parts of a reduction: the same as over the answers to the single cases."""
    cases = [
        sonde.Case(f"{name} is in the city of", targets=city, spans={"subject": name}) for name, city in CITIES.items()
    ]
    method = sonde.CausalTracing(
        sonde.span("subject"),
        samples=5,
        components="residual_post",
        layers=[3, 6],
        positions=["subject.last", "end"],
    )
    with sonde.Client(address) as client:
        single = client.trace(cases, method=method).restored["residual_post"][..., 0].astype(np.float64)
    mean, deviation = single.mean(0), single.std(0)
    assert "\nfacts: 4 cases in 2 parts\n" in output, output
    found = FACT.findall(output)
    places = [(layer, row) for row in ("subject", "prompt") for layer in ("3", "6")]
    assert [(layer, row) for _, _, _, layer, row in found] == places
    for (told, spread, count, _, _), number in zip(found, np.ndindex(2, 2), strict=True):
        assert int(count) == len(cases)
        assert abs(float(told) - mean[number]) < 0.00051
        assert abs(float(spread) - deviation[number]) < 0.00051


def _assert_sweep(output: str) -> None:
    parts = [(int(arrived), int(least)) for arrived, least in SWEEP.findall(output)]
    assert len(parts) > 1, output
    assert [arrived for arrived, _ in parts] == sorted({arrived for arrived, _ in parts})
    assert [least for _, least in parts] == sorted((least for _, least in parts), reverse=True)
    assert parts[-1] == (4608, 991)


def plain(code: str) -> str:
    """A status code's name as languages write it, without their conventions."""
    return code.replace("_", "").upper()
