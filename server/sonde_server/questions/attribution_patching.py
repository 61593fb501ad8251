"""Attribution patching: estimates of what every patch would do."""

from dataclasses import dataclass

from .places import EDGE_ENDS, LAYERLESS, Component
from .prompts import Metric, Prompt


@dataclass(frozen=True, slots=True)
class AttributionPatching:
    """Estimate what patching each place from `source` would do. `edges`: how many are answered; 0: all, None: none."""

    source: Prompt
    components: tuple[Component, ...]
    integration_steps: int
    metric: Metric
    verify_top: int
    recompute_softmax: bool = False
    drop_layers: bool = False
    edges: int | None = None

    @property
    def inside(self) -> frozenset[Component]:
        """The components within a block whose values are compared; a kept run has the others of itself."""
        wanted = frozenset(self.components) - {Component.RESIDUAL_PRE, Component.RESIDUAL_POST} - LAYERLESS
        if self.recompute_softmax:
            wanted |= {Component.QUERY, Component.KEY}
        return wanted if self.edges is None else wanted | EDGE_ENDS

    def runs(self, targets: int, layers: int) -> int:
        """Passes through the model, forwards or backwards, whole or in part."""
        integrated = self.integration_steps > 1
        # The two prompts, and once more the values that are patched; the prompt's own come with its gradient.
        prompts = 4 if integrated else 3
        forward = 2 if integrated else 1
        backward = targets * (layers if self.drop_layers else 1)
        verified = self.verify_top + 1 if self.verify_top else 0
        return prompts + self.integration_steps * (forward + backward) + verified
