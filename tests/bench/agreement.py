"""Whether two contenders computed the same."""

import numpy as np

from tests.bench.workloads import Answer

# Largest difference, as a share of the spread of the answer (largest less smallest). float32 through twelve blocks,
# with attention and products in another order, was seen to differ by up to 3e-5 of it.
TOLERANCE = 5e-4


class Disagreement(AssertionError):
    """Two answers differ by more than rounding."""


def check(reference: Answer, answer: Answer, tolerance: float) -> float:
    """The largest difference where both have a value, as a share of the reference's spread. Raises Disagreement."""
    if reference.shape != answer.shape:
        raise Disagreement(f"an answer of shape {answer.shape}, where the others have {reference.shape}")
    both = ~np.isnan(reference) & ~np.isnan(answer)
    if not both.any():
        raise Disagreement("no value in common with the others")
    spread = float(np.nanmax(reference) - np.nanmin(reference))
    if spread <= 0.0:
        raise Disagreement("all values of the reference are alike, so that they show nothing")
    error = float(np.abs(reference[both] - answer[both]).max()) / spread
    # The comparison is also false for a NaN.
    if not error <= tolerance:
        raise Disagreement(f"differs by {error:.2g} of the answer's spread {spread:.3g}; {tolerance:.2g} is allowed")
    return error
