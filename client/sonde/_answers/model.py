"""The description of the hosted model: everything that a request can name."""

from collections.abc import Mapping
from dataclasses import dataclass

from sonde._ask.names import StackName
from sonde._show.display import html_table, page


@dataclass(frozen=True, slots=True)
class ComponentSupport:
    """Whether a component can be read and edited here."""

    available: bool
    reason: str
    """Why it is not available."""

    def __bool__(self) -> bool:
        return self.available


@dataclass(frozen=True, slots=True)
class Stack:
    """One stack of transformer blocks."""

    layers: int
    hidden_size: int
    heads: int
    key_value_heads: int
    head_size: int
    neurons: int
    """In the MLP of one layer."""
    components: Mapping[str, ComponentSupport]
    """By name: whether the component is available and, if not, why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that the server sets; None means no limit."""

    max_prompt_tokens: int | None
    max_runs: int | None
    """Per request."""
    max_answer_bytes: int | None
    max_cases: int | None = None
    """Per request; a dataset with more is split into several requests."""
    max_total_tokens: int | None = None
    """Of all prompts and sources of one request; a dataset with more is split into several requests."""
    max_image_bytes: int | None = None
    """Of the file of a prompt's image."""
    max_image_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class ImageInput:
    """How the model reads images. An image's positions are positions of the prompt like any other."""

    placeholder: str
    """What stands for the image in a text, once."""
    token_id: int
    """The token at each of the image's positions."""
    min_positions: int
    max_positions: int
    """The fewest and the most positions of an image."""
    sees_itself: bool
    """Whether positions of the image attend to later positions of it as well."""

    def __str__(self) -> str:
        count = str(self.min_positions)
        if self.max_positions != self.min_positions:
            count = f"{self.min_positions} to {self.max_positions}"
        itself = ", which attend to one another" if self.sees_itself else ""
        return f"{self.placeholder!r} in a text, {count} positions{itself}"


@dataclass(frozen=True, slots=True, repr=False)
class Model(Stack):
    """The hosted model. Its layers, heads and so on are those of the decoder; `stacks` has the other stacks."""

    name: str
    revision: str
    architecture: str
    """The model's type, such as `"llama"`."""
    dtype: str
    device: str
    attention: str
    """The attention implementation."""
    server_version: str
    vocabulary_size: int
    max_positions: int
    parameters: int
    stacks: Mapping[StackName, Stack]
    limits: Limits
    chat_template: bool = False
    """Whether prompts may be conversations (`sonde.Chat`)."""
    image: ImageInput | None = None
    """How prompts have images (`sonde.Prompt`); None: the model reads none."""

    def rows(self) -> list[tuple[str, object]]:
        """Names and values that describe the model, as rows of a table."""
        unavailable = [f"{name} ({support.reason})" for name, support in self.components.items() if not support]
        return [
            ("model", self.name),
            ("revision", self.revision or "-"),
            ("architecture", self.architecture),
            ("parameters", f"{self.parameters:,}"),
            ("layers", self.layers),
            ("hidden size", self.hidden_size),
            ("heads", f"{self.heads} of size {self.head_size}, {self.key_value_heads} key/value"),
            ("neurons", f"{self.neurons} per layer"),
            ("vocabulary", self.vocabulary_size),
            ("positions", self.max_positions or "no limit"),
            ("chat template", "yes" if self.chat_template else "no"),
            ("images", "no" if self.image is None else str(self.image)),
            ("data type", self.dtype),
            ("device", self.device),
            ("attention", self.attention),
            ("server", self.server_version),
            ("available", ", ".join(name for name, support in self.components.items() if support)),
            ("not available", "; ".join(unavailable) or "-"),
        ]

    def to_text(self) -> str:
        """The description as text for a terminal."""
        width = max(len(name) for name, _ in self.rows())
        return "\n".join(f"{name.ljust(width)}  {value}" for name, value in self.rows())

    def __repr__(self) -> str:
        lacks = [name for name, support in self.components.items() if not support]
        parts = [
            f"{self.architecture} of {self.parameters:,} parameters",
            f"{self.layers} layers of {self.heads} heads and {self.neurons} neurons",
            f"hidden size {self.hidden_size}",
            f"vocabulary {self.vocabulary_size}",
            f"{self.dtype} on {self.device}",
            *([f"without {', '.join(lacks)}"] if lacks else []),
        ]
        return f"<Model {self.name}: {'; '.join(parts)}>"

    def _repr_html_(self) -> str:
        return page(html_table(self.name, ["", ""], self.rows()))
