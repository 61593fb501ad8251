"""The page about scale has the numbers of its script, and the script counts as the server does."""

from typing import Any

import pytest
from sonde.v1 import inspection_pb2 as pb
from sonde_server.questions.places import Component

from tests.conftest import Host
from tests.support import wire
from tests.support.examples import load_example
from tests.support.installation import ROOT
from tests.support.oracle import Edit, Scale, Site, Sweep, Target


@pytest.fixture(scope="module")
def scale() -> Any:
    return load_example("scale")


def test_the_page_has_the_numbers_of_the_script(scale: Any) -> None:
    written = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert scale.page(written) == written, "examples/scale.py --write puts them there"
    assert written.count("<!-- end -->") == len(scale.TABLES)


def test_a_causal_trace_is_counted_as_the_server_counts_it(scale: Any, llama: Host) -> None:
    hosted = llama.server.scheduler.engine.decoder
    request = pb.TraceRequest(
        prompt=wire.prompt(range(5, 5 + scale.TOKENS)),
        targets=[wire.target(Target(5))],
        causal_tracing=pb.CausalTracing(
            gaussian=pb.CausalTracing.Gaussian(samples=scale.SAMPLES),
            subject_positions=pb.PositionList(positions=scale.SUBJECT),
        ),
        dry_run=True,
    )
    announced = llama.trace(request).context.cost
    work = scale.causal_trace(hosted)
    assert (work.runs, work.token_layers, work.full_token_layers) == (
        announced.runs,
        announced.token_layers,
        announced.full_token_layers,
    )


def test_a_sweep_is_counted_as_the_server_counts_it(scale: Any, llama: Host) -> None:
    hosted = llama.server.scheduler.engine.decoder
    ids = list(range(5, 5 + scale.TOKENS))
    plan = Sweep(Edit(Site("HEAD_OUT", positions=(scale.TOKENS - 1,)), Scale(0.0)))
    request = wire.intervene(ids, plan, [Target(5)])
    request.dry_run = True
    announced = llama.intervene(request).context.cost
    work = scale.sweep(hosted, Component.HEAD_OUT, range(hosted.layers), hosted.heads)
    new = scale.TOKENS * hosted.layers  # a dry run counts the prompt's own run
    assert announced.token_layers == work.token_layers + new
    assert announced.full_token_layers == work.full_token_layers


def test_a_block_of_the_model_has_as_many_parameters_as_the_script_says(scale: Any, llama: Host) -> None:
    hosted = llama.server.scheduler.engine.decoder
    block = llama.server.model.model.layers[0]
    matrices = sum(one.numel() for one in block.parameters() if one.ndim == 2)
    assert scale.block_parameters(hosted) == matrices
    # All of them, and the embedding with its counterpart, are the parameters that the page names; norms are left out.
    model = scale.MODEL
    named = model.layers * scale.block_parameters(model) + 2 * model.vocabulary_size * model.hidden_size
    assert named + (2 * model.layers + 1) * model.hidden_size == model.parameters
