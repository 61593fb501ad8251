"""`python -m tests.bench.gpu`: an 8B-parameter Llama shape in bfloat16, random weights drawn on the GPU.

Sonde in process, nnsight and plain transformers, on the same weights. There is no socket here: the weights of a real
server come from files, and 16 GB of noise are not worth writing. Without a GPU it says so and is done.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from sonde_server.engine import Engine
from sonde_server.model.anatomy import Decoder
from sonde_server.sharing.scheduler import Scheduler
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.bench.agreement import Disagreement
from tests.bench.contender import Entry
from tests.bench.minimum import rates
from tests.bench.plain import PrefixCache
from tests.bench.report import Outcome, Setting, markdown, write_json
from tests.bench.rounds import Numbers, Plan, measure
from tests.bench.shapes import SHAPES
from tests.bench.sonde_in_process import InProcess
from tests.bench.workloads import Sizes, make

WORKLOADS = ("W1", "W2", "W3", "W4 first", "W4 again", "W4 last")
# bfloat16 keeps 8 bits, and batches of another size round otherwise: answers differ by percents of their spread.
TOLERANCES = {torch.bfloat16: 0.2, torch.float32: 1e-3}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 when two contenders disagree."""
    options = _options(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here that torch can use; nothing was measured")
        return 0
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    shape, dtype = SHAPES[options.shape], getattr(torch, options.dtype)
    model = _draw(options.shape, options.device, dtype)
    sizes = Sizes.of(model)
    scheduler = Scheduler(lambda: Engine(Decoder(model)))
    sonde = InProcess(scheduler, scheduler.stop)
    settings: list[Setting] = []
    outcomes: list[Outcome] = []
    try:
        entries = [Entry(sonde, "sonde"), Entry(PrefixCache(model), "hand"), *_nnsight(model)]
        numbers = Numbers()
        for length in options.lengths:
            measured = rates(model, length, tokens=16384 if options.device == "cuda" else 2048)
            settings.append(Setting(options.shape, shape.title, length, measured))
            for workload in WORKLOADS:
                plan = Plan(
                    lambda number, workload=workload, length=length: make(workload, shape, sizes, length, number),  # type: ignore[misc]
                    options.rounds,
                    TOLERANCES[dtype],
                    numbers,
                )
                timings = tuple(measure(plan, entries, workload, lambda _: None))
                token_layers, readings = sonde.cost(plan.make(numbers()))
                minimum = measured.minimum(token_layers, readings)
                outcomes.append(
                    Outcome(
                        options.shape, length, workload, timings, token_layers, readings, minimum, None, judged=False
                    )
                )
    except Disagreement as error:
        print(f"disagreement: {error}", file=sys.stderr)
        return 1
    finally:
        sonde.close()
    options.output.mkdir(parents=True, exist_ok=True)
    print(text := markdown(settings, outcomes))
    (options.output / "results.md").write_text(f"# Results\n\n{text}", encoding="utf-8")
    write_json(options.output / "results.json", settings, outcomes)
    return 0


def _draw(name: str, device: str, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(SHAPES[name].config(), dtype=dtype)
    model.eval().requires_grad_(requires_grad=False)
    return model


def _nnsight(model: PreTrainedModel) -> list[Entry]:
    try:
        from tests.bench.nnsight_contenders import Loop, Skipping
    except ImportError:
        print("nnsight is not installed here; it is left out", file=sys.stderr)
        return []
    return [Entry(Skipping(model), "library"), Entry(Loop(model), "library", loop=True)]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--shape", default="llama-8b", choices=tuple(SHAPES))
    parser.add_argument("--lengths", type=lambda text: [int(part) for part in text.split(",")], default=[16, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("out/bench-gpu"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
