"""The attention kernels that an answer names are those that computed its numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from sonde.v1 import inspection_pb2 as pb
from sonde_server.engine import attention
from sonde_server.questions.extents import Extent
from sonde_server.questions.kernels import FEW_KEYS, MANY_QUERIES, Kernel, attention_of, kernels

from tests.conftest import Host, Hosts
from tests.support import oracle, wire
from tests.support.oracle import Edit, Scale, Site, Sweep, Target

IDS = [5, 130, 77, 301, 9, 260, 41]
OTHER = [8, 131, 70, 12, 299, 261, 40]
TARGETS = [Target(41), Target(200)]
LONG = [(7 * position + 11) % 300 for position in range(48)]

SDPA, EAGER, BOTH = "sdpa", "eager", "sdpa+eager"


@contextmanager
def used() -> Iterator[set[str]]:
    """The kernels that are called meanwhile: torch's own, and the softmax that is written out."""
    found: set[str] = set()
    fused, softmax = torch.nn.functional.scaled_dot_product_attention, attention.softmax

    def one(*args: Any, **named: Any) -> torch.Tensor:
        found.add(SDPA)
        return fused(*args, **named)

    def other(*args: Any) -> torch.Tensor:
        found.add(EAGER)
        return softmax(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", one)
        patch.setattr(attention, "softmax", other)
        yield found


def trace(ids: list[int] = IDS, **method: Any) -> pb.TraceRequest:
    return pb.TraceRequest(prompt=wire.prompt(ids), targets=[wire.target(one) for one in TARGETS], **method)


def activations(*sites: Site) -> pb.TraceRequest:
    return trace(activations=pb.Activations(sites=[wire.site(site) for site in sites]))


def patching(*names: str, ids: list[int] = IDS, source: list[int] = OTHER, **fields: Any) -> pb.TraceRequest:
    components = [wire.component(name) for name in names]
    method = pb.AttributionPatching(source=wire.prompt(source), components=components, **fields)
    return trace(ids, attribution_patching=method)


def causal(*names: str, subject: tuple[int, ...] = (1, 2), **fields: Any) -> pb.TraceRequest:
    method = pb.CausalTracing(
        gaussian=pb.CausalTracing.Gaussian(samples=2),
        subject_positions=pb.PositionList(positions=subject),
        components=[wire.component(name) for name in names],
        **fields,
    )
    return trace(causal_tracing=method)


def heads(*at: int) -> Sweep:
    """Every head of every block set to zero at these positions together."""
    return Sweep(Edit(Site("HEAD_OUT", (), (), at), Scale(0.0)), together=frozenset({"POSITION"}))


def listed(name: str, layer: int, *positions: int, count: int = 1) -> list[list[Edit]]:
    """Runs that are alike but for a factor."""
    layers = () if name in oracle.UNLAYERED else (layer,)
    return [[Edit(Site(name, layers, (0,), positions), Scale(0.5 + number))] for number in range(count)]


def generating(plan: list[list[Edit]], tokens: int) -> pb.InterveneRequest:
    return wire.intervene(IDS, plan, TARGETS, generation=pb.Generation(max_new_tokens=tokens, ignore_end_token=True))


BY_ACTIVATIONS: dict[str, Any] = {
    "edges": pb.AttributionPatching.Edges(), "integration": pb.INTEGRATION_ACTIVATIONS, "integration_steps": 2,
}  # fmt: skip
# What is asked, what the answer says, and whether every kernel that it names has a share for certain.
QUESTIONS: dict[str, tuple[pb.TraceRequest | pb.InterveneRequest, str, bool]] = {
    "the prediction": (trace(), SDPA, True),
    "lens": (trace(token_probability=pb.TokenProbability()), SDPA, True),
    "gradients": (trace(token_probability=pb.TokenProbability(gradient_norms=True)), SDPA, True),
    "kept activations": (activations(Site("RESIDUAL_PRE"), Site("KEY", (), (), (3,))), SDPA, True),
    "activations of whole prompts": (activations(Site("MLP_OUT"), Site("ATTENTION_OUT")), SDPA, True),
    "activations of late positions": (activations(Site("MLP_OUT", (1,), (), (4,))), BOTH, False),
    "a pattern": (activations(Site("ATTENTION_PATTERN", (1,))), BOTH, True),
    "scores of a last position": (activations(Site("ATTENTION_SCORES", (1,), (), (-1,))), BOTH, True),
    "a causal trace": (causal("RESIDUAL_POST", "MLP_OUT"), BOTH, True),
    "a causal trace of patterns": (causal("ATTENTION_PATTERN"), BOTH, True),
    "a causal trace from the first position": (causal("TOKEN_EMBEDDING", subject=(0,), positions=[0]), SDPA, True),
    "attributions": (patching("RESIDUAL_POST", "HEAD_OUT"), SDPA, True),
    "attributions of scores": (patching("ATTENTION_SCORES"), BOTH, True),
    "attributions with the softmax recomputed": (patching("KEY", recompute_softmax=True), BOTH, True),
    "edges": (patching(edges=pb.AttributionPatching.Edges()), SDPA, True),
    "integrated attributions": (patching("MLP_OUT", integration_steps=2), SDPA, True),
    "integrated attributions of late tokens": (
        patching("MLP_OUT", integration_steps=2, source=[*IDS[:4], *OTHER[4:]]), BOTH, False,
    ),
    "edges by activations": (patching(**BY_ACTIVATIONS), SDPA, True),
    "edges by activations of late tokens": (
        patching(**BY_ACTIVATIONS, source=[*IDS[:4], *OTHER[4:]]), BOTH, False,
    ),
    "attributions at both ends": (patching("MLP_OUT", integration=pb.INTEGRATION_ENDS), SDPA, True),
    "verified attributions": (patching("MLP_OUT", verify_top=4), BOTH, False),
    "verified attributions of logits": (patching("LOGITS", verify_top=2), SDPA, True),
    "a sweep over heads": (wire.intervene(IDS, heads(-1), TARGETS), BOTH, True),
    "a sweep over heads at all positions": (wire.intervene(IDS, heads(), TARGETS), SDPA, True),
    "one run": (wire.intervene(IDS, listed("MLP_OUT", 1, -1), TARGETS), BOTH, False),
    "several runs": (wire.intervene(IDS, listed("MLP_OUT", 1, -1, count=3), TARGETS), BOTH, True),
    "runs from the first position": (wire.intervene(IDS, listed("MLP_OUT", 1, 0, count=3), TARGETS), SDPA, True),
    "runs of the logits": (wire.intervene(IDS, listed("LOGITS", 0, -1, count=3), TARGETS), SDPA, True),
    "runs of many positions": (wire.intervene(LONG, listed("MLP_OUT", 1, 9, count=3), TARGETS), BOTH, True),
    "a pattern that is changed": (wire.intervene(IDS, listed("ATTENTION_PATTERN", 1, -1), TARGETS), BOTH, True),
    "a run that is read inside": (
        wire.intervene(IDS, listed("MLP_OUT", 1, 0), TARGETS, activations=[wire.site(Site("ATTENTION_SCORES", (2,)))]),
        BOTH, True,
    ),
    "a patch from another prompt": (
        wire.intervene(IDS, [[Edit(Site("MLP_OUT", (0,), (), (0, 5)), oracle.Patch((0,)))]], TARGETS, [OTHER]),
        SDPA, True,
    ),
    "one token": (generating(listed("MLP_OUT", 1, 0), 1), SDPA, True),
    "several tokens": (generating(listed("LOGITS", 0, -1), 3), BOTH, True),
    "several tokens of runs from the first position": (generating(listed("MLP_OUT", 1, 0), 3), BOTH, False),
}  # fmt: skip


def ask(host: Host, request: pb.TraceRequest | pb.InterveneRequest) -> wire.Answer:
    return host.trace(request) if isinstance(request, pb.TraceRequest) else host.intervene(request)


@pytest.mark.parametrize("name", QUESTIONS)
def test_what_is_said_is_what_was_called(host: Host, name: str) -> None:
    request, expected, certain = QUESTIONS[name]
    host.server.scheduler.engine.cache.clear()
    with used() as found:
        said = ask(host, request).context.provenance.attention
    assert said == expected
    assert found <= set(said.split("+")), "a kernel that is not named"
    if certain:
        assert found == set(said.split("+"))
    dry: Any = type(request)()
    dry.CopyFrom(request)
    dry.dry_run = True
    assert ask(host, dry).context.provenance.attention == said


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_what_sdpa_cannot_compute_is_eager(hosts: Hosts, family: str) -> None:
    for request, _, _ in QUESTIONS.values():
        hosts[family].server.scheduler.engine.cache.clear()
        with used() as found:
            answer = ask(hosts[family], request)
        assert answer.context.provenance.attention == EAGER
        assert found == {EAGER}


def test_long_prefixes_are_never_copied() -> None:
    """A prefix longer than the copy is worth: a lone row has its scores made as well."""
    assert kernels(1, FEW_KEYS, eager=False) == {Kernel.SDPA, Kernel.EAGER}
    assert kernels(1, FEW_KEYS + 1, eager=False) == {Kernel.EAGER}
    assert kernels(MANY_QUERIES, MANY_QUERIES, eager=False) == {Kernel.SDPA}
    assert kernels(MANY_QUERIES, 0, eager=True) == {Kernel.EAGER}


def test_a_run_is_named_by_all_its_blocks() -> None:
    """In its last block a run has fewer queries than in those before."""
    narrow = Extent(0, 3, 40, 90, (89,))
    assert attention_of("sdpa", [narrow]) == BOTH
    assert attention_of("sdpa", [Extent(0, 3, 40, 90, tuple(range(40, 90)))]) == SDPA
    assert attention_of("sdpa", [Extent(3, 3, 40, 90, (89,))]) == SDPA
    assert attention_of("eager", [narrow]) == EAGER
