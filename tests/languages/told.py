"""What every example's tour must have told, whatever its language."""

import re

from tests.golden.vectors import RECORDED

TRACE = re.compile(r"^trace: (\d+) of (\d+)$", re.MULTILINE)
CELL = re.compile(r"^  (0\.\d{3}) with (RESIDUAL_POST|MLP_OUT|ATTENTION_OUT) restored at layer (\d), ", re.MULTILINE)
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


def _assert_sweep(output: str) -> None:
    parts = [(int(arrived), int(least)) for arrived, least in SWEEP.findall(output)]
    assert len(parts) > 1, output
    assert [arrived for arrived, _ in parts] == sorted({arrived for arrived, _ in parts})
    assert [least for _, least in parts] == sorted((least for _, least in parts), reverse=True)
    assert parts[-1] == (4608, 991)


def plain(code: str) -> str:
    """A status code's name as languages write it, without their conventions."""
    return code.replace("_", "").upper()
