"""Causal scrubbing: does a prediction survive when everything but what is claimed comes from other examples?

Chan et al. 2022 (alignmentforum.org/posts/JvZhhzycHu2Yd57RN).
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from sonde._answers.predictions import Prediction
from sonde._answers.scrubbing import ScrubbedNode, ScrubbingResult, classes_of
from sonde._arrays import Floats
from sonde._ask.cases import CasesLike, as_cases
from sonde._ask.hypotheses import CausalScrubbing, Claim
from sonde._connection.progress import Progress
from sonde.client import Client


def causal_scrubbing(  # noqa: PLR0913 - what is drawn and what is measured, by keyword
    client: Client,
    examples: CasesLike,
    hypothesis: Claim,
    *,
    samples: int | None = None,
    seed: int | None = None,
    draws: npt.NDArray[np.int32] | None = None,
    by: Literal["logit", "log_probability"] = "logit",
    target: int = 0,
    progress: Progress = False,
) -> ScrubbingResult:
    """Test a hypothesis on examples, each of which is the reference once.

    `print(result)` says how much is recovered; `result.plot()` draws the tree.

    Args:
        client: the client to use.
        examples: cases of as many tokens each, with a target, best one with a contrast: `(answer, wrong)`.
        hypothesis: the tree, made by `sonde.prediction` and `sonde.claim`.
        samples: how many times examples are drawn for each reference; the default is 1.
        seed: the seed of the draws; the default is 1.
        draws: the examples of each run, to replay those of a result.
        by: what is measured: the target's logit, a difference where it has a contrast, or its log-probability.
        target: the target's index.
        progress: True for a line on standard error, or a function that is called with (done, total).

    Raises:
        SondeError: as `Client.intervene` does.
    """
    cases = as_cases(examples)
    assert cases is not None
    plan = CausalScrubbing(hypothesis, samples, seed, draws)
    found = client.intervene(cases, plan, top_k=0, progress=progress)

    def measured(values: Floats | None) -> Floats:
        assert values is not None
        chosen: Floats = values[..., target]
        return chosen

    def of(prediction: Prediction) -> Floats:
        return measured(prediction.logits if by == "logit" else prediction.log_probabilities)

    scrubbed, random, drawn = [], [], []
    for one in found:
        assert one.examples is not None
        assert one.draws is not None
        scrubbed.append(measured(one.logits if by == "logit" else one.log_probabilities))
        random.append(measured(one.examples.logits if by == "logit" else one.examples.log_probabilities).mean())
        drawn.append(one.draws)
    return ScrubbingResult(
        np.stack(scrubbed),
        np.stack([of(one.clean) for one in found]),
        np.array(random, np.float32),
        np.stack(drawn),
        plan.asked or tuple(range(len(found))),
        tuple(_node(claim, parent) for claim, parent in hypothesis.flat()),
        by.replace("_", " "),
    )


def _node(claim: Claim, parent: int | None) -> ScrubbedNode:
    classes, forced = classes_of(claim.labels)
    others, _ = classes_of(claim.other_labels)
    name = "prediction"
    if claim.site is not None:
        place = claim.site
        parts = (("layer", place.layers), ("unit", place.units), ("position", place.positions))
        said = [f"{word} {', '.join(map(str, entries))}" for word, entries in parts if entries]
        name = "\n".join([place.component.replace("_", " "), *said])
    return ScrubbedNode(name, -1 if parent is None else parent, claim.direct, classes, others, forced)
