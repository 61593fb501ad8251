"""`python -m tests.bench`: measures Sonde and its peers, prints a table, and writes JSON and a chart."""

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sonde_server.builtin import ATLAS_DIRECTORY
from transformers import PreTrainedModel

from tests.bench import smollm2
from tests.bench.agreement import TOLERANCE, Disagreement
from tests.bench.case_field import case_contenders
from tests.bench.case_rounds import CasePlan, measure_cases
from tests.bench.case_sonde import CaseSocket
from tests.bench.case_workloads import CASE_NAMES, COUNTS, QUICK_COUNTS, Subject
from tests.bench.case_workloads import make as make_cases
from tests.bench.chart import draw
from tests.bench.circuit_field import circuit_contenders
from tests.bench.circuit_sonde import CircuitSocket
from tests.bench.circuit_workloads import CIRCUIT_COUNTS, CIRCUIT_NAMES, QUICK_CIRCUIT_COUNTS
from tests.bench.circuit_workloads import make as make_circuits
from tests.bench.contender import Entry, ask
from tests.bench.elsewhere import Elsewhere
from tests.bench.field import PEERS, taking_part
from tests.bench.memory import growth, serving_process
from tests.bench.minimum import Rates, rates
from tests.bench.report import Outcome, Setting, markdown, omissions, write_json
from tests.bench.rounds import Numbers, Plan, measure
from tests.bench.shapes import SHAPES, load, save
from tests.bench.sonde_socket import serving
from tests.bench.workloads import NAMES, Sizes, make

THREADS = 2
# A prompt of the datasets has about so many tokens; the rates of the counted minimum are taken there.
CASE_LENGTH = 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 when two contenders disagree."""
    options = _options(sys.argv[1:] if arguments is None else arguments)
    torch.set_num_threads(THREADS)
    # The servers take it from here.
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    # Ends the servers too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    began = time.monotonic()
    settings: list[Setting] = []
    outcomes: list[Outcome] = []
    try:
        for shape in options.shapes if options.prompts else ():
            _measure_shape(shape, options, settings, outcomes)
        for name in options.models:
            if options.circuits or (options.cases and name == "smollm2"):
                _measure_model(name, options, settings, outcomes)
    except Disagreement as error:
        print(f"disagreement: {error}", file=sys.stderr)
        return 1
    text = markdown(settings, outcomes)
    if left_out := omissions(outcomes):
        text += "\n".join(("## Left out", "", *(f"- {line}" for line in left_out))) + "\n"
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "results.json", settings, outcomes)
    _write_page(options.output / "results.md", text, settings, outcomes)
    if options.keep:
        _write_page(Path(__file__).with_name("RESULTS.md"), text, settings, outcomes)
    print(f"{time.monotonic() - began:.0f} s; everybody agreed; written to {options.output}/")
    return 0


def _write_page(page: Path, text: str, settings: Sequence[Setting], outcomes: Sequence[Outcome]) -> None:
    """The tables, and the chart beside them."""
    chart = page.with_suffix(".png")
    page.write_text(f"# Results\n\n![Times of every contender]({chart.name})\n\n{text}", encoding="utf-8")
    draw(chart, settings, outcomes)


def _measure_shape(name: str, options: argparse.Namespace, settings: list[Setting], outcomes: list[Outcome]) -> None:
    shape = SHAPES[name]
    with tempfile.TemporaryDirectory() as folder:
        directory = save(shape, Path(folder))
        plain = load(directory)
        sizes = Sizes.of(plain)
        measured = {length: rates(plain, length) for length in options.lengths}
        del plain
        with taking_part(directory, options.peers) as entries:
            numbers = Numbers()
            in_process = entries[1].contender
            assert isinstance(in_process, Elsewhere)
            for length in options.lengths:
                settings.append(Setting(name, shape.title, length, measured[length]))
                for workload in options.prompts:
                    _say(f"{name}, {length} tokens, {workload}")
                    rounds = options.rounds or (3 if length <= 16 else 2)
                    plan = Plan(
                        lambda number, workload=workload, length=length: make(workload, shape, sizes, length, number),  # type: ignore[misc]
                        rounds,
                        TOLERANCE,
                        numbers,
                    )
                    timings = measure(plan, entries, workload, _say)
                    token_layers, readings = in_process.cost(plan.make(numbers()))
                    minimum = measured[length].minimum(token_layers, readings)
                    seen = in_process.profiled(workload, plan.make(numbers()), sizes.vocabulary)
                    outcomes.append(
                        Outcome(name, length, workload, tuple(timings), token_layers, readings, minimum, seen)
                    )


def _measure_model(name: str, options: argparse.Namespace, settings: list[Setting], outcomes: list[Outcome]) -> None:
    """The workloads over datasets, and those about circuits, on a model that has learnt something."""
    title, saved = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        directory = saved(Path(folder))
        plain = load(directory)
        measured = rates(plain, CASE_LENGTH)
        subject = _subject(plain, directory)
        del plain
        settings.append(Setting(name, title, CASE_LENGTH, measured))
        numbers = Numbers()
        if name == "smollm2" and options.cases:
            counts = QUICK_COUNTS if options.quick else COUNTS
            with case_contenders(directory, options.peers, serving(directory)) as (sonde, entries):
                for workload in options.cases:
                    # The average trace takes minutes.
                    rounds = options.rounds or (1 if workload == "W8" else 3)
                    plan = CasePlan(workload, partial(make_cases, workload, subject, counts[workload]), rounds)
                    grown = partial(_memory, sonde) if workload == "W7" else None
                    outcomes.append(_measured(name, plan, sonde, entries, numbers, measured, options, grown))
        if options.circuits:
            counts = QUICK_CIRCUIT_COUNTS if options.quick else CIRCUIT_COUNTS
            with circuit_contenders(directory, options.peers, serving(directory)) as (asked, entries):
                for workload in options.circuits:
                    make = partial(make_circuits, workload, subject, counts[workload])
                    plan = CasePlan(workload, make, options.rounds or 3)
                    outcomes.append(_measured(name, plan, asked, entries, numbers, measured, options))


def _measured(
    name: str,
    plan: CasePlan,
    sonde: CaseSocket | CircuitSocket,
    entries: Sequence[Entry],
    numbers: Numbers,
    measured: Rates,
    options: argparse.Namespace,
    memory: Callable[[CasePlan], tuple[tuple[int, int], ...]] | None = None,
) -> Outcome:
    """One workload: everybody's times, and the counted minimum."""
    _say(f"{name}, {plan.name}")
    timings = measure_cases(plan, entries, numbers, _say)
    # Each kind of contender is asked about its own kind of workload.
    count: Callable[[Any], tuple[int, int]] = sonde.cost
    token_layers, readings = count(plan.make(numbers()))
    return Outcome(
        name, CASE_LENGTH, plan.name, tuple(timings), token_layers, readings,
        measured.minimum(token_layers, readings),
        judged=not options.quick,
        memory=() if memory is None else memory(plan),
    )  # fmt: skip


def _subject(plain: PreTrainedModel, directory: Path) -> Subject:
    config, sizes = plain.config, Sizes.of(plain)
    return Subject(
        smollm2.tokenizer(directory),
        sizes.layers,
        sizes.heads,
        int(config.num_key_value_heads),
        int(config.hidden_size),
        sizes.embedding_deviation,
    )


def _atlas(_: Path) -> Path:
    return ATLAS_DIRECTORY


MODELS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "smollm2": (smollm2.TITLE, smollm2.save),
    "atlas": ("atlas, the embedded model (8 blocks, D 160, 8 heads, vocabulary 2048)", _atlas),
}
"""By name, a title, and how a directory of the model is had, in a folder for what is made."""


def _memory(sonde: CaseSocket, plan: CasePlan) -> tuple[tuple[int, int], ...]:
    """By how much the server's memory grows for a quarter of the cases, and for all."""
    process, workload = serving_process(sonde.address), plan.make(0)
    parts = (workload.share(len(workload) // 4), workload)
    return tuple((len(part), growth(process, partial(ask, sonde, part))) for part in parts)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="one round, 16 tokens, the GPT-2 shape; of the datasets a part"
    )
    every = (*NAMES, *CASE_NAMES, *CIRCUIT_NAMES)
    parser.add_argument(
        "--only", type=_among(every), default=list(every), help=f"of {', '.join(every)}; W4 is all three"
    )
    parser.add_argument("--peers", type=_among(PEERS), default=list(PEERS), help=f"of {', '.join(PEERS)}; or none")
    parser.add_argument("--models", type=_among(tuple(MODELS)), default=list(MODELS), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--shapes", type=_among(tuple(SHAPES)), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--lengths", type=lambda text: [int(part) for part in text.split(",")], help="tokens")
    parser.add_argument("--rounds", type=int, help="default: 3, of long prompts 2")
    parser.add_argument("--output", type=Path, default=Path("out/bench"))
    parser.add_argument("--keep", action="store_true", help="also write tests/bench/RESULTS.md and its chart")
    options = parser.parse_args(arguments)
    options.shapes = options.shapes or (["gpt2"] if options.quick else ["gpt2", "llama"])
    options.lengths = options.lengths or ([16] if options.quick else [16, 128])
    options.prompts = [name for name in options.only if name in NAMES]
    options.cases = [name for name in options.only if name in CASE_NAMES]
    options.circuits = [name for name in options.only if name in CIRCUIT_NAMES]
    options.rounds = options.rounds or (1 if options.quick else None)
    return options


def _among(names: Sequence[str]) -> Callable[[str], list[str]]:
    """Reads "a,b"; "none" is nobody. W4 stands for all of its questions."""

    def parse(text: str) -> list[str]:
        chosen: list[str] = []
        for part in [] if text == "none" else text.split(","):
            found = [name for name in names if name == part or name.startswith(f"{part} ")]
            if not found:
                raise argparse.ArgumentTypeError(f"{part!r} is none of {', '.join(names)}")
            chosen += found
        return chosen

    return parse


if __name__ == "__main__":
    sys.exit(main())
