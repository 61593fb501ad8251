"""The eye of a vision-language model: from the bytes of a file to embeddings that take the place of tokens'.

Bytes are not trusted. They are decoded and prepared on the thread of the call, with the checkpoint's own image
processor, and by Pillow alone: by torchvision other numbers would come out. The vision tower and its projector are one
call of the loaded model, on the model's thread.
"""

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..questions import images
from ..questions.images import CAUSAL, Arrangement, ImageInput, Sight, Turned
from .devices import device_of
from .vision import Size, Spread, Vision

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAGIC = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff"}
MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
# Beyond it Qwen-VL fails, and a square is no picture of the whole for others.
MOST_ELONGATED = 200
# Images of these widths and heights have the fewest and the most positions that there are.
EXTREMES = (50, 10_000)
# Decoded images, and what processors make of them, take much more memory than their files.
AT_ONCE = 2


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """An image that can be read: its pixels' digest, its file, and how its positions lie."""

    digest: bytes
    file: bytes
    spread: Spread


class Eye:
    """What sees images for one model. `embedding` must be called from the thread that owns the model.

    `limit`: how many bytes of embeddings are kept. `passes`: how often the vision tower ran.
    """

    def __init__(self, model: PreTrainedModel, vision: Vision, processor: Any) -> None:
        from PIL import __version__ as pillow

        self.model = model
        self.vision = vision
        self.processor = processor
        self.name = f"{type(processor).__name__}, Pillow {pillow}"
        self.limit = 0
        self.passes = 0
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._preparing = threading.BoundedSemaphore(AT_ONCE)

    @property
    def patch_bytes(self) -> int:
        """About how many bytes the vision tower takes for each of its positions while it runs."""
        tower = self.model.config.vision_config
        # Where there is an embed_dim, hidden_size is the projector's.
        width = int(getattr(tower, "embed_dim", 0) or tower.hidden_size)
        wider = int(getattr(tower, "intermediate_size", 0) or 4 * width)
        # LLaVA keeps the stream after every block until one is chosen.
        layers = int(getattr(tower, "num_hidden_layers", 0) or getattr(tower, "depth", 0))
        return self.model.dtype.itemsize * ((layers + 8) * width + 3 * wider)

    def described(self, placeholder: str) -> ImageInput:
        """What GetModel says of it. `placeholder`: the text of the tokens that stand for an image."""
        shapes = [Size(1, 1), *(Size(wide, long) for long in EXTREMES for wide in EXTREMES)]
        counts = [self.vision.spread(shape, self.processor).positions for shape in shapes]
        return ImageInput(placeholder, self.vision.token, min(counts), max(counts), self.vision.sees_itself)

    # ------------------------------------------------------------ from bytes, on the thread of the call

    def read(self, file: bytes, *, most_bytes: int, most_pixels: int, most_positions: int) -> Seen:
        """An image in a file, whose bytes need not be what they claim to be. 0: no limit.

        Raises:
            ValueError: for bytes that are not a PNG or JPEG that can be read, and for images beyond a limit. The
                message says what was expected.
        """
        if most_bytes and len(file) > most_bytes:
            raise ValueError(f"expected at most {most_bytes} bytes, got {len(file)}")
        with self._preparing:
            picture = _opened(file, most_pixels)
            size = Size(*picture.size)
            spread = self.vision.spread(size, self.processor)
            if spread.positions > most_positions:
                raise ValueError(
                    f"expected an image of at most {most_positions} positions, got {size.width} x {size.height} pixels,"
                    f" which have {spread.positions}"
                )
            digest = hashlib.sha256(repr(size).encode())
            digest.update(picture.tobytes())
        return Seen(digest.digest(), file, spread)

    def example(self) -> Seen:
        """An image that is made up, to compare the engine with the model."""
        from PIL.Image import fromarray

        file, noise = io.BytesIO(), np.random.RandomState(0).randint(256, size=(48, 64, 3))
        fromarray(noise.astype(np.uint8)).save(file, "PNG")
        return self.read(file.getvalue(), most_bytes=0, most_pixels=0, most_positions=1 << 30)

    def inputs(self, image: "images.Image | Seen") -> Mapping[str, Tensor]:
        """What the vision tower takes of an image."""
        with self._preparing:
            picture = _opened(image.file, 0)
            found = self.processor(images=picture, return_tensors="pt", **self.vision.settings)
        return {name: value for name, value in found.items() if name in TAKEN}

    @cached_property
    def _each(self) -> float:
        """About how many bytes of what the vision tower takes belong to a position."""
        seen = self.example()
        size = sum(value.numel() * value.element_size() for value in self.inputs(seen).values())
        return size / seen.spread.positions

    def placed(self, seen: Seen, positions: Sequence[int]) -> images.Image:
        """An image at these positions of a prompt."""
        spread, vision, first = seen.spread, self.vision, positions[0]
        arrangement = Arrangement(
            tuple(positions),
            tuple(grid.over(positions) for grid in spread.grids),
            Sight(first, positions[-1] + 1) if vision.sees_itself else CAUSAL,
            Turned(first, spread.grids[0].rows, spread.grids[0].columns) if vision.turned else None,
        )
        patches = spread.positions * vision.patches
        size = ceil(self._each * spread.positions)
        return images.Image(seen.digest, seen.file, size, patches, arrangement, self.name)

    # ------------------------------------------------------------ to embeddings, on the model's thread

    def knows(self, image: images.Image) -> bool:
        """Whether what the model makes of it is kept. It may be gone by the time that it is needed."""
        return image.digest in self._kept

    def embedding(self, image: images.Image, inputs: Mapping[str, Tensor] | None = None) -> Tensor:
        """What the language model is given of an image, [positions, D]. The latest are kept."""
        if image.digest in self._kept:
            self._kept.move_to_end(image.digest)
            return self._kept[image.digest]
        self.passes += 1
        device = device_of(self.model.get_input_embeddings())
        given = self.inputs(image) if inputs is None else inputs
        inputs = {name: value.to(device) for name, value in given.items()}
        model: Any = self.model
        found = model.get_image_features(**inputs, return_dict=True).pooler_output
        embedding = torch.cat([one.reshape(-1, one.shape[-1]) for one in found])
        if len(embedding) != len(image.arrangement.positions):
            raise RuntimeError(
                f"the vision tower gives {len(embedding)} positions, expected {len(image.arrangement.positions)}"
            )
        self._keep(image.digest, embedding)
        return embedding

    def _keep(self, digest: bytes, embedding: Tensor) -> None:
        self._kept[digest] = embedding
        while self._kept and sum(one.numel() * one.element_size() for one in self._kept.values()) > self.limit:
            self._kept.popitem(last=False)


# Of what image processors give, what vision towers take.
TAKEN = frozenset({"pixel_values", "pixel_attention_mask", "image_grid_thw", "image_sizes"})


def _opened(file: bytes, most_pixels: int) -> "Picture":
    """The picture, upright and in three colours, as transformers itself reads files."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    kind = next((name for name, magic in MAGIC.items() if file.startswith(magic)), None)
    if kind is None:
        raise ValueError("expected the bytes of a PNG or JPEG file, got others")
    wrong = (
        OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning,
        UnidentifiedImageError,
    )  # fmt: skip
    try:
        # The header alone. Pillow guesses among many more formats if it may.
        picture: Any = Image.open(io.BytesIO(file), formats=(kind,))
        width, height = picture.size
        frames, mode = getattr(picture, "n_frames", 1), picture.mode
    except wrong as error:
        raise ValueError(f"expected a {kind} file that can be read: {_reason(error)}") from error
    if min(width, height) < 1 or (most_pixels and width * height > most_pixels):
        raise ValueError(f"expected at most {most_pixels} pixels, got {width} x {height}")
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise ValueError(f"expected sides of at most {MOST_ELONGATED} to 1, got {width} x {height}")
    if frames != 1:
        raise ValueError(f"expected a single picture, got {frames} frames")
    if mode not in MODES:
        raise ValueError(f"expected 8 bits a channel in grey or RGB (mode {', '.join(MODES)}), got mode {mode}")
    try:
        picture.load()
        upright: Picture = ImageOps.exif_transpose(picture).convert("RGB")
    except wrong as error:
        raise ValueError(f"expected a {kind} file that can be read: {_reason(error)}") from error
    return upright


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
