"""The examples of the ready-made questions, asked of the embedded model: each finds what it says that it looks for."""

import re
from collections.abc import Iterator

import pytest
import sonde
import torch
from sonde import questions
from sonde_server.config import Settings
from sonde_server.serving.server import Server

from tests.support.examples import load_example
from tests.support.installation import ROOT

EXAMPLES = ROOT / "examples" / "questions"

FOUND: dict[str, tuple[str, ...]] = {
    "steering": (r"unchanged: Paris", r"steered after block [67]: Rome"),
    "directional_ablation": (r"Eiffel.* Paris\.?  becomes  (?!Paris)", r"Colosseum.* Rome\.?  becomes  Rome"),
    "activation_patching": (r"layer 0, head 1: brings back 0\.9",),
    "attention_knockout": (r"without the subject .*-\d+\.\d %", r"around block"),
    "path_patching": (r"MLPs, of [\s\S]*head 0\.1: -1\d\.\d", r"head 0\.6: -4\.\d"),
    "find_circuit": (r"4557 edges", r" 0 edges alone: -?0\.00", r"1000 edges alone: (1\.0|0\.9)"),
    "causal_scrubbing": (r"tell the giver: recovered (1\.0|0\.9)", r"tell the answer: recovered 0\.[0-4]"),
    "mean_ablation": (r"mean of layer 0, head 1: -",),
    "logit_attribution": (r"mlp 0 +\+",),
    "logit_lens": (r" 8 .* Paris\n", r" 7 .* Paris\n"),
    "patchscopes": (r"unchanged: .* Paris", r"block 0 of the source: .* Rome", r"block 6 of the source: .* Rome"),
    "average_trace": (r"4 of 4 prompts", r"last subject token +4  \+0\.[789]", r"last token .*\+0\.[89]\d\n"),
}


@pytest.fixture(scope="module")
def client() -> Iterator[sonde.Client]:
    torch.set_num_threads(1)
    with Server(Settings(port=0, device="cpu")) as server, sonde.Client(server.address) as client:
        yield client


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(FOUND)


@pytest.mark.parametrize("name", FOUND)
def test_an_example_finds_what_it_looks_for(
    name: str, client: sonde.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    load_example(f"questions/{name}").ask(client)
    output = capsys.readouterr().out
    for pattern in FOUND[name]:
        assert re.search(pattern, output), f"{pattern} is not in\n{output}"


def test_every_question_is_in_the_table_of_questions() -> None:
    page = (ROOT / "docs" / "reference" / "questions.md").read_text(encoding="utf-8")
    functions = [name for name in questions.__all__ if name.islower()]
    assert [name for name in functions if f"`{name}`" not in page] == []
    assert [path.name for path in EXAMPLES.glob("*.py") if f"/{path.name})" not in page] == []
