"""Vision-language models that put what they make of an image in the place of some tokens' embeddings.

Their decoders are those of text models, under another path. The vision tower and its projector are called as they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import isqrt
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..rotary import Rotations
from ..vision import Spread, Vision, Writing, by_shape, by_size, merged, repeated, square, tiled, unpadded
from .family import Enter, Family, Recipe, refuse
from .gemma import gemma3_text
from .llama import llama, mistral, qwen2, qwen3

# The decoders that checkpoints of several vision-language models have.
_DECODERS: Mapping[str, Recipe] = {"llama": llama, "mistral": mistral, "qwen2": qwen2, "qwen3": qwen3}


def llava(config: PreTrainedConfig) -> Family:
    """LLaVA 1.5: arXiv 2310.03744. One embedding for each patch, from a layer of CLIP and a two-layer projector."""
    tower, family = config.vision_config, _decoder(config, "model.language_model")
    classed = {"clip_vision_model": 1, "siglip_vision_model": 0}.get(tower.model_type)
    dropped = config.vision_feature_select_strategy == "default"
    if classed is None or (dropped and not classed):
        return family  # its images have no grid that is known here, and texts are the decoder's own
    side = int(tower.image_size) // int(tower.patch_size)
    token = int(config.image_token_index)
    return replace(
        family,
        vision=Vision(token, (token,), token, repeated(token), square(side, before=0 if dropped else classed)),
    )


def llava_next(config: PreTrainedConfig) -> Family:
    """LLaVA-NeXT (1.6): Liu et al. 2024. The whole image, then its tiles, with an embedding at the end of each row."""
    tower, family = config.vision_config, _decoder(config, "model.language_model")
    strategy = {"clip_vision_model": "default", "siglip_vision_model": "full"}.get(tower.model_type)
    if config.vision_feature_select_strategy != strategy:
        return family  # as above
    edge, token = int(tower.image_size), int(config.image_token_index)
    spread = unpadded(edge // int(tower.patch_size), edge, [(high, wide) for high, wide in config.image_grid_pinpoints])
    # The tower also computes what pads the tiles.
    return replace(family, vision=Vision(token, (token,), token, repeated(token), spread, patches=2))


def gemma3(config: PreTrainedConfig) -> Family:
    """Gemma 3 with its vision tower: the positions of an image attend to one another. It does not cap its logits."""
    family = replace(gemma3_text(config.get_text_config(), "model.language_model"), logits=None)
    begin, token, end = (
        int(name) for name in (config.boi_token_index, config.image_token_index, config.eoi_token_index)
    )
    side = isqrt(int(config.mm_tokens_per_image))
    patches = (int(config.vision_config.image_size) // int(config.vision_config.patch_size)) ** 2 // side**2
    written = repeated(token, ("\n\n", begin), (end, "\n\n"))
    return replace(family, vision=Vision(token, (begin,), begin, written, square(side), patches, sees_itself=True))


def qwen2_vl(config: PreTrainedConfig) -> Family:
    """Qwen2-VL and Qwen2.5-VL: arXiv 2409.12191, 2502.13923. Rotary angles of time, row and column."""
    begin, token, end = config.vision_start_token_id, config.image_token_id, config.vision_end_token_id
    merge = int(config.vision_config.spatial_merge_size)
    vision = Vision(token, (begin, token, end), token, repeated(token), merged, merge**2, turned=True)
    return replace(under(qwen2(config.get_text_config()), "model.language_model"), vision=vision)


def idefics3(config: PreTrainedConfig) -> Family:
    """Idefics3 and SmolVLM: arXiv 2408.12637, 2504.05299. Tiles of the image, each with its place, and all of it."""
    tower = config.vision_config
    token, scale = int(config.image_token_id), int(config.scale_factor)
    side = int(tower.image_size) // int(tower.patch_size) // scale
    vision = Vision(token, (token,), token, _in_tiles(token, side * side), tiled(side, by_size), scale**2)
    return replace(_decoder(config, "model.text_model"), vision=vision)


def internvl(config: PreTrainedConfig) -> Family:
    """InternVL 2.5 to 3.5, dense: arXiv 2412.05271, 2504.10479. Tiles of the image and all of it, one after another."""
    tower, family = config.vision_config, _decoder(config, "model.language_model")
    token, ratio = int(config.image_token_id), float(config.downsample_ratio)
    if config.vision_feature_select_strategy != "default":
        return family  # the class token would be joined with patches
    side = int(int(tower.image_size[0]) // int(tower.patch_size[0]) * ratio)
    vision = Vision(
        token,
        (token,),
        token,
        repeated(token, ("<img>",), ("</img>",)),
        tiled(side, by_shape),
        round(1 / ratio**2),
        # The model's processor cuts images, which its image processor alone does not.
        settings={"crop_to_patches": True},
    )
    return replace(family, vision=vision)


def _decoder(config: PreTrainedConfig, path: str) -> Family:
    """The family of the text model that a model has at this path."""
    text = config.get_text_config()
    recipe = _DECODERS.get(text.model_type)
    if recipe is None:
        refuse(config, f"expected a decoder of type {', '.join(_DECODERS)}, got {text.model_type!r}")
    assert recipe is not None
    return under(recipe(text), path)


def _in_tiles(token: int, each: int) -> Writing:
    """Each tile with its row and column, rows on lines of their own, and the whole image."""
    edge = "<fake_token_around_image>"

    def written(spread: Spread) -> list[str | int]:
        rows, columns = spread.tiles or (0, 0)
        found: list[str | int] = []
        for row in range(rows):
            for column in range(columns):
                found += [edge, f"<row_{row + 1}_col_{column + 1}>", *[token] * each]
            found.append("\n")
        return [*found, *(["\n"] if rows else []), edge, "<global-img>", *[token] * each, edge]

    return written


def under(family: Family, path: str) -> Family:
    """A text model's family, for a model that has the text model's `model` at this path."""

    def moved(name: str) -> str:
        return f"{path}.{name.removeprefix('model.')}"

    rotary, enter = family.rotary, family.enter
    return replace(
        family,
        embedding=moved(family.embedding),
        blocks=moved(family.blocks),
        final_norm=moved(family.final_norm),
        rotary=None if rotary is None else _rotary_within(rotary, path),
        enter=None if enter is None else _enter_within(enter, path),
    )


def _rotary_within(rotary: Callable[..., Rotations], path: str) -> Callable[..., Rotations]:
    def within(model: nn.Module, like: Tensor, positions: Tensor) -> Rotations:
        return rotary(_Within(model, path), like, positions)

    return within


def _enter_within(enter: Enter, path: str) -> Enter:
    def within(model: nn.Module, embeddings: Tensor, positions: Tensor) -> Tensor:
        return enter(cast("nn.Module", _Within(model, path)), embeddings, positions)

    return within


class _Within:
    """A text model's modules by their names in it, in a model that has them under another path."""

    def __init__(self, model: nn.Module, path: str) -> None:
        self._model = model
        self._path = path

    def get_submodule(self, name: str) -> Any:
        """A module of the text model."""
        return self._model.get_submodule(f"{self._path}.{name.removeprefix('model.')}")
