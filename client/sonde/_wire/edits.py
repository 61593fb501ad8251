"""Encoding of edits and plans."""

from collections.abc import Iterable, Sequence
from typing import Final

from sonde._ask.edits import Add, Edit, Knockout, Multiply, Noise, Patch, ProjectOut, Replace, Scale
from sonde._ask.given import number, refusal, several
from sonde._ask.indices import index
from sonde._ask.names import AXES
from sonde._ask.plans import Sweep
from sonde._ask.prompts import Chat, Prompt, PromptLike
from sonde._wire.encoding import encode_prompt, encode_site, write_positions
from sonde._wire.tensors import to_tensor
from sonde.v1 import inspection_pb2 as pb

_EXPECTED: Final = "an edit such as sonde.scale(site, 0.0)"


class EditEncoder:
    """Encodes edits, and adds the prompts that their patches contain to the sources of the call."""

    def __init__(self, sources: Iterable[PromptLike]) -> None:
        self.sources = [encode_prompt(source) for source in sources]

    def sweep(self, sweep: Sweep) -> pb.Sweep:
        """Encode a sweep."""
        return pb.Sweep(
            edit=self.edit(sweep.edit),
            together=[AXES[axis] for axis in sweep.together],
            layer_window=sweep.layer_window,
            always=[self.edit(edit) for edit in sweep.always],
        )

    def intervention(self, edits: Edit | Sequence[Edit]) -> pb.Intervention:
        """Encode one run, which makes these edits together."""
        together = (edits,) if isinstance(edits, Edit) else several(edits, "edit", _EXPECTED)
        return pb.Intervention(edits=[self.edit(edit) for edit in together])

    def edit(self, edit: Edit) -> pb.Edit:
        """Encode one edit.

        Raises:
            InvalidRequest: if it is not an edit, or its value cannot be sent.
        """
        if not isinstance(edit, Edit):
            raise refusal("edit", _EXPECTED, edit)
        message = pb.Edit(site=encode_site(edit.site))
        if edit.path is not None:
            message.path.receivers.extend(map(encode_site, edit.path.receivers))
            message.path.through.extend(map(encode_site, edit.path.through))
            message.path.SetInParent()
        match edit.operation:
            case Scale(factor):
                message.scale = number(factor, "scale")
            case Replace(value):
                message.set.CopyFrom(to_tensor(value, "replace"))
            case Add(value):
                message.add.CopyFrom(to_tensor(value, "add"))
            case Multiply(value):
                message.multiply.CopyFrom(to_tensor(value, "multiply"))
            case Patch() as patch:
                message.patch.CopyFrom(self.patch(patch))
            case Noise(deviation, seed):
                size = number(deviation, "noise")
                drawn = None if seed is None else index(seed, "seed", 64)
                message.noise.CopyFrom(pb.Noise(standard_deviation=size, seed=drawn))
            case ProjectOut(direction):
                message.project_out.CopyFrom(to_tensor(direction, "project_out"))
            case Knockout(key_positions):
                message.knockout.SetInParent()
                write_positions(key_positions, message.knockout.key_positions, message.knockout.named_key_positions)
        return message

    def patch(self, patch: Patch) -> pb.Patch:
        """Encode where a patch takes its values."""
        message = pb.Patch(
            sources=[entry if isinstance(entry, int) else self._source(entry) for entry in patch.sources],
            source_layer=patch.source_layer,
        )
        write_positions(patch.source_positions, message.source_positions, message.named_source_positions)
        return message

    def _source(self, prompt: str | Prompt | Chat) -> int:
        message = encode_prompt(prompt)
        if message not in self.sources:
            self.sources.append(message)
        return self.sources.index(message)
