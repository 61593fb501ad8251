"""Computes what questions about a large model cost and how many a thousand GPUs can answer, for docs/scale.md.

python examples/scale.py            prints its tables
python examples/scale.py --write    writes them into the page

The server itself counts the work, for a model whose sizes are public; no weights are needed.
Speeds are those of a data sheet times a stated share, so the times are estimates, not measurements.
"""

import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sonde_server.questions.causal_tracing import DEFAULT_WINDOW, CausalTracing, GaussianCorruption
from sonde_server.questions.costs import state_bytes
from sonde_server.questions.edits import Edit, Scale
from sonde_server.questions.interventions import InterveneQuestion, Readout
from sonde_server.questions.places import Component, ModelDescription, Site, Sized
from sonde_server.questions.plans import Sweep
from sonde_server.questions.prompts import Prompt, Target
from sonde_server.questions.traces import TraceQuestion

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"

# Llama 3.1 70B, from its config.json on the Hugging Face hub (meta-llama/Llama-3.1-70B).
MODEL = ModelDescription(
    name="Llama-3.1-70B", revision="", architecture="llama", data_type="bfloat16", device="cuda:0", attention="sdpa",
    layers=80, hidden_size=8192, heads=64, key_value_heads=8, head_size=128, neurons=28_672, vocabulary_size=128_256,
    max_positions=131_072, parameters=70_553_706_496,
)  # fmt: skip
GPUS_PER_REPLICA, GPUS = 4, 1_000
# NVIDIA H100 SXM, data sheet: dense bf16, HBM3 memory and its bandwidth.
PEAK_FLOPS, MEMORY_BYTES, MEMORY_BANDWIDTH = 989e12, 80e9, 3.35e12
UTILISATION = 0.4
"""The assumed share of the peak that large batches reach."""
SAMPLES, TOKENS, SUBJECT = 10, 16, (1, 2, 3, 4, 5)
FLOAT16 = 2


@dataclass(frozen=True)
class Work:
    """The work that a question causes."""

    runs: int
    token_layers: int
    """Positions x blocks."""
    full_token_layers: int
    """Positions x blocks if every run were computed in full."""
    passes: float
    """The smallest number of passes over the model, one after the other. Half a pass covers half of the blocks."""


def block_parameters(model: ModelDescription) -> int:
    """Count the weights of one block that every position uses: queries, keys, values, output, and the gated MLP."""
    attention = 2 * model.heads * model.head_size + 2 * model.key_value_heads * model.head_size
    return model.hidden_size * (attention + 3 * model.neurons)


def flops(work: Work, model: ModelDescription, tokens: int = TOKENS) -> float:
    """Count FLOPs: two per weight and position, attention scores and sums over the keys, and the logits of each run."""
    attention = 4 * tokens * model.heads * model.head_size
    read = 2.0 * model.hidden_size * model.vocabulary_size
    return work.token_layers * (2.0 * block_parameters(model) + attention) + work.runs * read


def seconds(work: Work, model: ModelDescription) -> float:
    """Estimate the time on one replica. Each GPU holds some of the blocks, and one GPU computes at a time.

    A question takes at least its arithmetic, and at least the time to read the weights once in each pass.
    """
    return max(computing(work, model), work.passes * FLOAT16 * model.parameters / MEMORY_BANDWIDTH)


def computing(work: Work, model: ModelDescription) -> float:
    """Estimate the seconds of arithmetic: the cost of a question that shares its passes with enough others."""
    return flops(work, model) / (UTILISATION * PEAK_FLOPS)


def causal_trace(model: Sized, tokens: int = TOKENS, subject: tuple[int, ...] = SUBJECT) -> Work:
    """ROME's three grids over all layers and positions, of a prompt that is new.

    Three passes follow one another: the clean run, the corrupted ones, and the cells.
    """
    cost = traced(model, tokens, subject).cost(model)
    return Work(cost.runs, cost.token_layers, cost.full_token_layers, passes=3)


def traced(model: Sized, tokens: int, subject: tuple[int, ...]) -> TraceQuestion:
    """The question, as the server reads it from a request."""
    method = CausalTracing(
        corruption=GaussianCorruption(samples=SAMPLES),
        replace=False,
        subject=subject,
        components=(Component.RESIDUAL_POST, Component.ATTENTION_OUT, Component.MLP_OUT),
        window=DEFAULT_WINDOW,
        layers=tuple(range(model.layers)),
        positions=tuple(range(tokens)),
        per_sample=False,
    )
    return TraceQuestion(Prompt(tuple(range(tokens))), (Target(0),), tokens - 1, 0, method)


def sweep(model: Sized, component: Component, layers: Sequence[int], units: int) -> Work:
    """One unit after the other at the last position, in these layers; the prompt is known already."""
    last = (TOKENS - 1,)
    site = Site(component, tuple(layers), tuple(range(units)), last)
    plan = Sweep(Edit(site, Scale(0.0)), site.layers, site.units, last, frozenset(), 1, ())
    question = InterveneQuestion(Prompt(tuple(range(TOKENS))), (), plan, Readout((Target(0),), TOKENS - 1))
    cost, known = question.cost(model), TOKENS * model.layers
    return Work(cost.runs, cost.token_layers - known, cost.full_token_layers, passes=1 - min(layers) / model.layers)


def questions(model: ModelDescription) -> dict[str, Work]:
    """List typical questions."""
    middle = model.layers // 2
    return {
        "a prediction, a new prompt": Work(1, TOKENS * model.layers, TOKENS * model.layers, passes=1),
        f"one neuron of block {middle}, a known prompt": sweep(model, Component.NEURON, [middle], 1),
        f"all {model.neurons:,} neurons of block {middle}": sweep(model, Component.NEURON, [middle], model.neurons),
        f"all {model.layers * model.heads:,} heads": sweep(model, Component.HEAD_OUT, range(model.layers), model.heads),
        "a causal trace, ROME's three grids": causal_trace(model),
    }


# ---------------------------------------------------------------------- the tables


def sizes() -> list[str]:
    """Make the table of memory sizes."""
    weights = FLOAT16 * MODEL.parameters
    left = GPUS_PER_REPLICA * MEMORY_BYTES - weights
    # The difference for a long prompt: the logits of the read positions do not depend on its length.
    token = state_bytes(101, MODEL) - state_bytes(100, MODEL)
    held = traced(MODEL, TOKENS, SUBJECT).held_bytes(MODEL)
    activations = TOKENS * MODEL.layers * MODEL.hidden_size * 4
    rows = {
        "weights": f"{weights / 1e9:.0f} GB",
        f"left on {GPUS_PER_REPLICA} GPUs of {MEMORY_BYTES / 1e9:.0f} GB": f"{left / 1e9:.0f} GB",
        "one position x one block": f"{(2 * block_parameters(MODEL) + 4 * TOKENS * MODEL.hidden_size) / 1e9:.2f} GFLOP",
        "logits of one run": f"{2 * MODEL.hidden_size * MODEL.vocabulary_size / 1e9:.2f} GFLOP",
        "cached of an unchanged run, per token, at most": f"{token / 1e6:.2f} MB",
        "prompts of 128 tokens in a cache of 16 GiB": f"{(16 << 30) / (128 * token):.0f}",
        "memory of a causal trace beside the weights, at most": f"{held / 1e9:.2f} GB",
        f"the residual stream of {TOKENS} tokens, all blocks, as an answer": f"{activations / 1e6:.0f} MB",
    }
    return ["| What | How much |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())]


def costs() -> list[str]:
    """Make the table of what each question costs one replica."""
    lines = [
        "| Question | Runs | Positions x blocks | Share of full runs | PFLOP | Alone, s | Arithmetic only, s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, work in questions(MODEL).items():
        share = work.token_layers / work.full_token_layers
        lines.append(
            f"| {name} | {work.runs:,} | {work.token_layers:,} | {share:.1%} | {_rounded(flops(work, MODEL) / 1e15)} "
            f"| {_rounded(seconds(work, MODEL))} | {_rounded(computing(work, MODEL))} |"
        )
    return lines


def fleet() -> list[str]:
    """Make the table of how many questions all replicas answer."""
    replicas = GPUS // GPUS_PER_REPLICA
    lines = [
        f"| {replicas} replicas that answer only | Questions per second, alone | Sharing passes | Runs per second |",
        "| --- | --- | --- | --- |",
    ]
    for name, work in questions(MODEL).items():
        alone, shared = replicas / seconds(work, MODEL), replicas / computing(work, MODEL)
        lines.append(f"| {name} | {_rounded(alone)} | {_rounded(shared)} | {_rounded(shared * work.runs)} |")
    return lines


def _rounded(number: float) -> str:
    """Round to three digits."""
    decimals = 2 - math.floor(math.log10(number))
    return f"{round(number, decimals):,.{max(0, decimals)}f}"


TABLES: dict[str, Callable[[], list[str]]] = {"sizes": sizes, "costs": costs, "fleet": fleet}


def page(text: str) -> str:
    """Return the page with fresh tables."""
    for name, make in TABLES.items():
        inside = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = inside.subn(lambda found, make=make: found[1] + "\n".join(make()) + "\n" + found[2], text)
        if count != 1:
            raise SystemExit(f"{PAGE} has {count} places for the table {name!r}")
    return text


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(*("\n".join(make()) for make in TABLES.values()), sep="\n\n")
