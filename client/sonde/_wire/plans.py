"""Encoding of plans that are not made of edits: circuits, and hypotheses to scrub."""

import numpy as np
import numpy.typing as npt

from sonde._ask.circuits import Circuits
from sonde._ask.given import array, refusal
from sonde._ask.hypotheses import CausalScrubbing, Claim, numbered
from sonde._ask.indices import index
from sonde._wire.edits import EditEncoder
from sonde._wire.encoding import encode_site
from sonde.v1 import inspection_pb2 as pb


def encode_circuits(circuits: Circuits, edits: EditEncoder) -> pb.Circuits:
    """Encode circuits; the prompts that they patch from are added to the sources of the call."""
    message = pb.Circuits(senders=int_tensor(circuits.senders), sizes=circuits.sizes)
    if circuits.receivers is not None:
        message.receivers.CopyFrom(int_tensor(circuits.receivers))
    if circuits.patch is not None:
        message.patch.CopyFrom(edits.patch(circuits.patch))
    return message


def encode_scrubbing(plan: CausalScrubbing) -> pb.CausalScrubbing:
    """Encode a hypothesis and how examples are drawn.

    Raises:
        InvalidRequest: if the hypothesis is not one, or both `draws` and `seed` or `samples` are given.
    """
    tree: object = plan.hypothesis
    if not isinstance(tree, Claim) or tree.site is not None:
        raise refusal("hypothesis", "a tree such as sonde.prediction(inputs=[...])", plan.hypothesis)
    message = pb.CausalScrubbing(references=plan.asked)
    for claim, parent in plan.hypothesis.flat():
        message.nodes.append(
            pb.CausalScrubbing.Node(
                parent=parent,
                site=None if claim.site is None else encode_site(claim.site),
                direct=claim.direct,
                labels=numbered(claim.labels),
                other_labels=numbered(claim.other_labels),
            )
        )
    if plan.draws is not None:
        if plan.samples is not None or plan.seed is not None:
            raise refusal("draws", "no samples and no seed beside them", plan.samples)
        draws = array(plan.draws, "draws", "whole numbers")
        if draws.dtype.kind not in "iu":
            raise refusal("draws", "whole numbers", plan.draws)
        message.draws.CopyFrom(int_tensor(draws))
        return message
    message.samples = 1 if plan.samples is None else index(plan.samples, "samples")
    if plan.seed is not None:
        message.seed = index(plan.seed, "seed", 64)
    return message


def int_tensor(numbers: npt.NDArray[np.integer]) -> pb.Tensor:
    """An int32 tensor."""
    data = np.ascontiguousarray(numbers, dtype="<i4")
    return pb.Tensor(data_type=pb.DATA_TYPE_INT32, shape=data.shape, data=data.tobytes())
