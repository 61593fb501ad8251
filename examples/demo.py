"""A tour of Sonde: starts a server with the embedded model and asks it, over gRPC, where a fact is stored.

`make demo` runs it. After the start, everything goes through the public client, as it would from another machine.
"""

import argparse
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import sonde

SUBJECT = "The Eiffel Tower"
PROMPT = f"{SUBJECT} is in the city of"
TARGET = " Paris"
WINDOW = 3
SLIGHT = 0.1
FACTORS = (0.0, 3.0, -3.0, 10.0, -10.0)
START_SECONDS = 120.0
STOP_SECONDS = 20.0
LISTENING = "listening on "
NO_BREAK = "\N{NO-BREAK SPACE}"


# ---------------------------------------------------------------------- the server


class LocalServer:
    """A server process. A thread reads its standard error, which contains its address and any error messages."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._last_lines: deque[str] = deque(maxlen=20)
        self._address: str | None = None
        self._known = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def address(self) -> str:
        """Return host and port as soon as the server has bound them.

        Raises:
            SystemExit: if the server ends before that, or takes too long. It contains the last lines that it wrote.
        """
        if not self._known.wait(START_SECONDS) or self._address is None:
            raise self._failure()
        return self._address

    def wait(self, client: sonde.Client) -> None:
        """Wait until the model is loaded.

        Raises:
            SystemExit: as for `address`.
        """
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                client.wait_until_serving(1.0)
            except sonde.NotServing:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise self._failure() from None
            else:
                return

    def _failure(self) -> SystemExit:
        if self._process.poll() is not None:
            self._reader.join(STOP_SECONDS)
        return SystemExit("the server did not start:\n" + "\n".join(self._last_lines))

    def _read(self) -> None:
        for line in self._process.stderr or ():
            self._last_lines.append(line.rstrip())
            _, found, rest = line.partition(LISTENING)
            if found and self._address is None:
                self._address = rest.split()[0]
                self._known.set()
        self._known.set()


@contextmanager
def running_server(model: str) -> Iterator[LocalServer]:
    """Run a server on a free port of this machine, and stop it whatever happens.

    The server has its own session. So Ctrl-C in the terminal reaches only the tour, which then stops the server.
    """
    command = [sys.executable, "-m", "sonde_server.cli", "--port", "0", "--model", model]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield LocalServer(process)
        finally:
            stop(process)


def stop(process: "subprocess.Popen[str]") -> None:
    """Stop the server with SIGTERM, which lets calls in progress finish, and kill it if it does not stop."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


# ---------------------------------------------------------------------- the tour


def show_model(client: sonde.Client) -> None:
    """Show the model that the server holds."""
    heading("1. The model", "GetModel")
    print(client.model.to_text())
    say(
        "You can read and change all components that are listed as available. This model is small and was trained on "
        "facts about places, so that a laptop can look for them."
    )


def show_layers(client: sonde.Client) -> None:
    """Show the target's probability through the layers."""
    heading("2. A token's probability through the layers", "Trace, method TokenProbability")
    say(f"The prompt is {PROMPT!r}, and the target is {quoted(TARGET)}.")
    result = client.trace(PROMPT, targets=[TARGET], method=sonde.TokenProbability(gradient_norms=True))
    print(result.to_text())
    say(
        f"The first table is the model's answer: it gives {quoted(TARGET)} a probability of {result.probability:.1%}. "
        "The second reads the residual stream at the last token after each block, as if the model ended there (the "
        f"logit lens). p is the probability of {quoted(TARGET)}, rank is the number of tokens that are more probable, "
        "and the last column shows the most probable token. Row 0 is the token embedding, before any block."
    )
    if result.gradient_norms is None:
        return
    norms = result.gradient_norms[0, :, 0]
    position = result.gradient_positions[int(norms.argmax())]
    say(
        "The gradient shows where a small change of a state would move that probability most. For the token "
        f"embeddings it is largest at {quoted(result.tokens[position].text)} (position {position}), with a norm of "
        f"{norms.max():.2g}."
    )


def show_causal_trace(client: sonde.Client, folder: Path) -> sonde.CausalTracingResult:
    """Run ROME's causal trace, which shows the states that carry the fact."""
    heading("3. A causal trace", "Trace, method CausalTracing")
    say(
        f"Noise corrupts the embeddings of {SUBJECT!r}, in ten samples, and removes most of the answer's probability. "
        "Then one clean state at a time is put back, at one token and after one block. If that alone brings the "
        "answer back, the state carries the fact (Meng et al. 2022). For the MLP and for attention, the outputs of "
        f"{WINDOW} neighbouring blocks are put back together."
    )
    method = sonde.CausalTracing(subject=SUBJECT, window=WINDOW)
    trace = client.trace(PROMPT, targets=[TARGET], method=method, progress=True)
    print(trace.heatmap_text())
    say(
        f"Each cell is the probability of {quoted(TARGET)}, the mean over samples, with the state of that token (row) "
        f"and that block (column) restored. It is {trace.clean[0]:.3f} in the clean run and {trace.corrupted[0]:.3f} "
        "in the corrupted runs. The last state of the last token always brings the answer back, because the answer "
        "is read there. The subject's own states show where the model looks the fact up:"
    )
    show_best_subject_states(trace)
    path = folder / "trace.png"
    trace.plot(path)
    say(f"One call made all {trace.cost.runs:,} runs. The picture is in {path}")
    return trace


def show_best_subject_states(trace: sonde.CausalTracingResult) -> None:
    """Show, for each component, the state within the subject that restores most of the answer."""
    rows: list[list[object]] = []
    for component, grid in trace.restored.items():
        cells = trace.strongest(grid[..., 0].size, component=component)
        best = next(cell for cell in cells if cell.position in trace.corrupted_positions)
        rows.append([component, best.layer, repr(best.token), best.probability, best.effect])
    print(table(["restored", "layer", "token", "p", "gain over corrupted"], rows))


def show_neurons(client: sonde.Client, position: int) -> sonde.Change:
    """Switch off every neuron of every layer in turn."""
    heading("4. The neurons that matter most", "Intervene, a sweep")
    model = client.model
    say(
        f"At the subject's last token (position {position}), the server sets each neuron to zero, one per run. Each of "
        f"the {model.layers} layers has {model.neurons:,} MLP neurons, so one call makes "
        f"{model.layers * model.neurons:,} runs."
    )
    plan = sonde.sweep(sonde.scale(sonde.neuron(), 0.0), positions=[position])
    result = client.intervene(PROMPT, plan, targets=[TARGET], top_k=1, progress=True)
    print(result.to_text(8))
    first = result.most_changed(1)[0]
    say(
        f"'changed' is the probability of {quoted(TARGET)} without the neuron. 'effect' is its logarithm minus that of "
        "the unchanged run, in nats: -0.69 would halve the probability, +0.69 would double it. "
        f"Without the first of them, neuron {first.unit} of layer {first.layer}, the model is "
        f"{'less' if first.effect < 0 else 'more'} sure by {abs(first.probability - first.clean_probability):.2%}. "
        + ("No single neuron holds the fact; many carry it together." if abs(first.effect) < SLIGHT else "")
    )
    return first


def show_scaling(client: sonde.Client, change: sonde.Change, position: int) -> None:
    """Scale one neuron by several factors, and show the predictions before and after."""
    heading("5. One neuron scaled", "Intervene, a list")
    layer, unit = int(change.layer or 0), int(change.unit or 0)
    place = sonde.neuron(layer=layer, unit=unit, position=position)
    result = client.intervene(PROMPT, [sonde.scale(place, factor) for factor in FACTORS], targets=[TARGET], top_k=5)
    rows: list[list[object]] = [["unchanged", float(result.clean.probabilities[0]), "", repr(result.clean.top(1)[0])]]
    for factor, run in zip(FACTORS, result, strict=True):
        moved = f"{float(run.edit_norms[0]):.2f}"
        rows.append([f"times {factor:g}", float(run.probabilities[0]), moved, repr(run.top(1)[0])])
    print(table([f"neuron {layer}:{unit}", f"p({TARGET!r})", "moved by", "top prediction"], rows))
    say(
        "A factor of 0 removes the neuron, and a negative factor reverses its sign. 'Moved by' is the edit's receipt: "
        "how far it moved the activation. The largest change, in full:"
    )
    largest = result.most_changed(1)[0].run
    pairs = zip(result.clean.top(5), result[largest].top(5), strict=True)
    ranks: list[list[object]] = [[repr(a.text), a.probability, repr(b.text), b.probability] for a, b in pairs]
    print(table(["before", "p", f"after, times {FACTORS[largest]:g}", "p"], ranks))


# ---------------------------------------------------------------------- the script


def heading(title: str, call: str) -> None:
    """Print the title of a part of the tour, with the call that it makes."""
    print(f"\n{title}  [{call}]\n{'─' * 79}")


def table(header: list[str], rows: list[list[object]]) -> str:
    """Columns under their names: numbers to the right, texts to the left."""
    cells = [header, *([f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numbers = [all(isinstance(cell, int | float) for cell in column) for column in zip(*rows, strict=True)]
    cells.insert(1, ["─" * width for width in widths])
    return "\n".join(
        "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numbers, strict=True)).rstrip()
        for row in cells
    )


def say(text: str) -> None:
    """Print a paragraph."""
    print("\n" + textwrap.fill(text, 79, break_on_hyphens=False).replace(NO_BREAK, " ") + "\n", flush=True)


def quoted(token: str) -> str:
    """Return a token in quotes, without a place to break the line."""
    return repr(token).replace(" ", NO_BREAK)


def tour(server: LocalServer, folder: Path) -> None:
    """Run all parts in order."""
    with sonde.Client(server.address(), timeout=300.0) as client:
        print(f"It listens on {server.address()} and is loading the model.", flush=True)
        server.wait(client)
        show_model(client)
        show_layers(client)
        trace = show_causal_trace(client, folder)
        last = max(trace.corrupted_positions)
        change = show_neurons(client, last)
        show_scaling(client, change, last)


def terminated(_number: int, _frame: FrameType | None) -> None:
    """Exit as if interrupted, so that the server is stopped on the way out."""
    raise SystemExit(143)


def main() -> int:
    """Run the tour and return the exit status."""
    parser = argparse.ArgumentParser(description="Take a tour of Sonde, with a server of its own.")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture (out)")
    parser.add_argument("--model", default="atlas", help="the embedded model, a directory or a hub id (atlas)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, terminated)
    began = time.monotonic()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        print("Starting a server on a free port of this machine ...", flush=True)
        with running_server(options.model) as server:
            tour(server, options.out)
            say("That was the tour. The server stops now.")
    except KeyboardInterrupt:
        print("\ninterrupted; the server is stopped", file=sys.stderr)
        return 130
    except (sonde.SondeError, OSError) as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(f"It took {time.monotonic() - began:.0f} seconds. Continue with docs/guides/start.md.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
