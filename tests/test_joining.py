"""Runs that touch their first block behind attention share what they have in common there, and give the same."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sonde.v1 import inspection_pb2 as pb
from sonde_server.engine import Base
from sonde_server.questions.costs import MIDWAY_KEPT

from tests.conftest import Host
from tests.support import wire
from tests.support.oracle import Edit, Patch, Scale, Site, Sweep, Target
from tests.support.tolerance import assert_close

IDS = [5, 130, 77, 301, 9, 260, 41]
SOURCE = [8, 131, 70, 12, 299, 261, 40]
TARGETS = [Target(41), Target(200, contrast=12)]
NEURON = Edit(Site("NEURON", (1,), (3,), (-1,)), Scale(0.0))
BEHIND = ("HEAD_OUT", "ATTENTION_OUT", "RESIDUAL_MID", "NEURON", "MLP_OUT")


def modules(host: Host, layer: int) -> dict[str, str]:
    """Where a block makes queries, mixes heads, and begins and ends its MLP."""
    if host.family == "gpt2":
        block = f"transformer.h.{layer}"
        return {
            "queries": f"{block}.attn.c_attn", "heads": f"{block}.attn.c_proj",
            "up": f"{block}.mlp.c_fc", "down": f"{block}.mlp.c_proj",
        }  # fmt: skip
    block = f"model.layers.{layer}"
    return {
        "queries": f"{block}.self_attn.q_proj", "heads": f"{block}.self_attn.o_proj",
        "up": f"{block}.mlp.up_proj", "down": f"{block}.mlp.down_proj",
    }  # fmt: skip


@contextmanager
def rows(host: Host, layer: int) -> Iterator[Counter[str]]:
    """Counts the positions that have gone through the parts of a block meanwhile."""
    counted: Counter[str] = Counter()
    hooks = []
    for name, path in modules(host, layer).items():

        def count(_: object, __: object, output: np.ndarray, name: str = name) -> None:
            counted[name] += int(np.prod(output.shape[:-1]))

        hooks.append(host.server.model.get_submodule(path).register_forward_hook(count))
    try:
        yield counted
    finally:
        for hook in hooks:
            hook.remove()


def asked(host: Host, ids: list[int]) -> None:
    """Has the unchanged run of a prompt kept, and nothing else of it."""
    host.server.scheduler.engine.cache.clear()
    host.intervene(wire.intervene(ids, [[Edit(Site("LOGITS"), Scale(1.0))]], TARGETS))


def test_neurons_of_a_block_share_all_but_the_end_of_the_mlp(host: Host) -> None:
    asked(host, IDS)
    count = host.oracle.model.config.hidden_size
    sweep = Sweep(Edit(Site("NEURON", (1,), tuple(range(count)), (-1,)), Scale(0.0)))
    with rows(host, 1) as counted:
        host.intervene(wire.intervene(IDS, sweep, TARGETS))
    assert counted == {"queries": 1, "heads": 1, "up": 1, "down": count}


def test_heads_of_a_block_share_its_attention(host: Host) -> None:
    asked(host, IDS)
    heads, length = host.oracle.model.config.num_attention_heads, len(IDS)
    sweep = Sweep(Edit(Site("HEAD_OUT", (1,)), Scale(0.0)), together=frozenset({"POSITION"}))
    with rows(host, 1) as counted:
        host.intervene(wire.intervene(IDS, sweep, TARGETS))
    expected = heads * length
    assert counted == {"queries": length, "heads": expected, "up": expected, "down": expected}


def test_a_lone_run_goes_through_its_block_once(host: Host) -> None:
    asked(host, IDS)
    with rows(host, 1) as counted:
        host.intervene(wire.intervene(IDS, [[NEURON]], TARGETS))
    assert counted == dict.fromkeys(("queries", "heads", "up", "down"), 1)


def test_who_asks_about_the_same_block_again_goes_on_inside_it(host: Host) -> None:
    asked(host, IDS)
    host.intervene(wire.intervene(IDS, [[NEURON]], TARGETS))
    other = replace(NEURON, site=replace(NEURON.site, units=(4,)), operation=Scale(2.0))
    with rows(host, 1) as counted:
        host.intervene(wire.intervene(IDS, [[other]], TARGETS))
    assert counted == {"down": 1}
    heads = [[Edit(Site("HEAD_OUT", (1,), (head,)), Scale(0.0))] for head in range(2)]
    host.intervene(wire.intervene(IDS, heads[:1], TARGETS))
    with rows(host, 1) as counted:
        host.intervene(wire.intervene(IDS, heads[1:], TARGETS))
    assert counted == dict.fromkeys(("heads", "up", "down"), len(IDS))


def test_what_is_kept_of_a_block_changes_no_bit(host: Host) -> None:
    """Others of the same block, at other positions, are asked in between."""
    questions = [
        [Edit(Site(component, (1,), (0,), positions), Scale(0.5))]
        for component in BEHIND for positions in ((-1,), (), (2, 4))
    ]  # fmt: skip
    first = []
    for one in questions:
        asked(host, IDS)
        first.append(host.intervene(wire.intervene(IDS, [one], TARGETS)))
    for one, before in [*zip(questions, first, strict=True)] * 2:
        after = host.intervene(wire.intervene(IDS, [one], TARGETS))
        for name, column in before.columns.items():
            np.testing.assert_array_equal(after.columns[name], column, f"{name} of {one}")


def test_what_is_kept_of_a_block_is_a_small_part_of_the_run(host: Host) -> None:
    asked(host, IDS)
    cache = host.server.scheduler.engine.cache
    state = cache.find(Base(tuple(IDS)))
    assert state is not None
    alone, most = state.bytes, 0
    for layer in range(host.oracle.layers):
        for component in BEHIND:
            host.intervene(wire.intervene(IDS, [[Edit(Site(component, (layer,)), Scale(0.5))]], TARGETS))
            assert state.bytes <= (1 + MIDWAY_KEPT) * alone
            most = max(most, state.bytes)
    assert cache.find(Base(tuple(IDS))) is state
    assert cache.bytes == state.bytes
    assert most > alone


def test_neurons_and_outputs_of_an_mlp_share_its_first_half(host: Host) -> None:
    asked(host, IDS)
    with rows(host, 1) as counted:
        host.intervene(wire.intervene(IDS, [[NEURON], [Edit(Site("MLP_OUT", (1,), (), (-1,)), Scale(0.0))]], TARGETS))
    # Both runs are in one batch: the second half once for the base, and once for the neuron.
    assert counted == {"queries": 1, "heads": 1, "up": 1, "down": 2}


def together_and_alone(host: Host, plan: list[list[Edit]], **readout: Any) -> tuple[wire.Answer, list[wire.Answer]]:
    together = host.intervene(wire.intervene(IDS, plan, TARGETS, [SOURCE], **readout))
    return together, [host.intervene(wire.intervene(IDS, [one], TARGETS, [SOURCE], **readout)) for one in plan]


@pytest.mark.parametrize("last", [False, True], ids=["before the last block", "in the last block"])
def test_what_joins_together_is_as_alone(host: Host, *, last: bool) -> None:
    """Every place behind attention, at several positions, edits of later blocks and of the same one beside it."""
    layer = host.oracle.layers - 1 if last else 1
    places = [Site(component, (layer,), (0,), at) for component in BEHIND for at in ((2, -1), (4,))]
    plan = [[Edit(site, change)] for site in places for change in (Scale(-0.5), Patch((0,)))]
    plan += [[*first, *second] for first, second in zip(plan, plan[5:], strict=False)]
    plan += [[*one, Edit(Site("RESIDUAL_PRE", (host.oracle.layers - 1,), (), (5,)), Scale(0.5))] for one in plan[:6]]
    together, alone = together_and_alone(host, plan)
    for name, column in together.columns.items():
        for number, one in enumerate(alone):
            mine = column[number]
            if name == "edit_norms":
                # As wide as the longest list of edits.
                mine = mine[: len(plan[number])]
            assert_close(mine, one.columns[name][0], f"{name} of {plan[number]}")


def test_what_is_read_inside_the_block_is_the_runs_own(host: Host) -> None:
    """Captures at and behind the edit are of the edited run, each of its own."""
    sites = [wire.site(Site(component, (1,), (), (-1,))) for component in BEHIND]
    plan = [[Edit(Site("HEAD_OUT", (1,), (head,)), Scale(2.0))] for head in range(2)]
    together = host.intervene(wire.intervene(IDS, plan, TARGETS, activations=sites)).activations
    seen = set()
    for number, one in enumerate(plan):
        alone = host.intervene(wire.intervene(IDS, [one], TARGETS, activations=sites)).activations
        for (run, site, layer), values in alone.items():
            whose = number if run == 0 else -1
            assert_close(together[whose, site, layer], values, f"site {site} of run {whose}")
            seen.add((whose, site, layer))
    assert seen == set(together)


def test_prompts_and_blocks_do_not_mix(host: Host) -> None:
    """Restorations in a causal trace have many corrupted bases in one batch."""
    components = [pb.COMPONENT_MLP_OUT, pb.COMPONENT_ATTENTION_OUT]
    grids = []
    for positions in ([], [2], [6]):
        method = pb.CausalTracing(
            gaussian=pb.CausalTracing.Gaussian(samples=3), subject_positions=pb.PositionList(positions=[2, 3]),
            window=2, components=components, positions=positions,
        )  # fmt: skip
        request = pb.TraceRequest(
            prompt=wire.prompt(IDS), targets=[wire.target(one) for one in TARGETS], causal_tracing=method
        )
        grids.append(host.trace(request))
    whole, *parts = grids
    for position, part in zip((2, 6), parts, strict=True):
        for name, cells in part.cells.items():
            for (at, layer), values in cells.items():
                assert at == position
                for field, column in values.items():
                    assert_close(whole.cells[name][at, layer][field], column, f"{field} of {name} {layer} at {at}")
