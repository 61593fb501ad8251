"""Tiny vision-language models with random weights, their image processors, and the oracle that shows them images.

Images are made up here too. What transformers is given of one comes from the model's own image processor.
"""

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from tests.support.architectures import COMMON, GEMMA3, ROPES
from tests.support.models import byte_level_tokenizer, randomise_vectors
from tests.support.oracle import Oracle

CLIP = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "initializer_range": 0.4,
}
CANVASES = [[24, 48], [48, 24], [48, 48], [72, 24]]
SECTIONS = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1]}
TURNED = {**COMMON, "rope_parameters": SECTIONS}


@dataclass(frozen=True)
class Seeing:
    """How one tiny model is made. `placeholder` is what a prompt has; `tokens` are added to the vocabulary."""

    placeholder: str
    tokens: tuple[str, ...]
    config: Callable[[int, Mapping[str, int]], PreTrainedConfig]
    processor: Callable[[], Any]


def _llava(vocabulary: int, ids: Mapping[str, int], **different: Any) -> PreTrainedConfig:
    text = transformers.LlamaConfig(**COMMON, vocab_size=vocabulary)
    vision = transformers.CLIPVisionConfig(**CLIP, image_size=24, patch_size=6)
    return transformers.LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=ids["<image>"],
        tie_word_embeddings=False,
        **{"vision_feature_layer": -2, **different},
    )


def _llava_next(vocabulary: int, ids: Mapping[str, int]) -> PreTrainedConfig:
    return transformers.LlavaNextConfig(
        text_config=transformers.LlamaConfig(**COMMON, vocab_size=vocabulary),
        vision_config=transformers.CLIPVisionConfig(**CLIP, image_size=24, patch_size=6),
        image_token_index=ids["<image>"],
        image_grid_pinpoints=CANVASES,
        tie_word_embeddings=False,
    )


def _gemma3(vocabulary: int, ids: Mapping[str, int]) -> PreTrainedConfig:
    text = {**COMMON, "vocab_size": vocabulary, **GEMMA3, "query_pre_attn_scalar": 24, "rope_parameters": ROPES}
    return transformers.Gemma3Config(
        text_config=text,
        vision_config={**CLIP, "model_type": "siglip_vision_model", "image_size": 24, "patch_size": 4},
        mm_tokens_per_image=9,
        image_token_index=ids["<image_soft_token>"],
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
        tie_word_embeddings=False,
        initializer_range=0.2,
    )


def _qwen(vocabulary: int, ids: Mapping[str, int], name: str, vision: Mapping[str, Any]) -> PreTrainedConfig:
    config: PreTrainedConfig = getattr(transformers, name)(
        text_config={**TURNED, "vocab_size": vocabulary},
        vision_config={"initializer_range": 0.2, "patch_size": 4, "num_heads": 2, "depth": 2, **vision},
        image_token_id=ids["<|image_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    return config


def _qwen2_vl(vocabulary: int, ids: Mapping[str, int]) -> PreTrainedConfig:
    return _qwen(vocabulary, ids, "Qwen2VLConfig", {"embed_dim": 16, "hidden_size": 32})


def _qwen2_5_vl(vocabulary: int, ids: Mapping[str, int]) -> PreTrainedConfig:
    vision = {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32}
    return _qwen(vocabulary, ids, "Qwen2_5_VLConfig", {**vision, "window_size": 16, "fullatt_block_indexes": [1]})


def _tiling(vocabulary: int, ids: Mapping[str, int], name: str) -> PreTrainedConfig:
    config: PreTrainedConfig = getattr(transformers, name)(
        text_config={**COMMON, "vocab_size": vocabulary, "model_type": "llama"},
        vision_config={**CLIP, "image_size": 16, "patch_size": 4},
        image_token_id=ids["<image>"],
        scale_factor=2,
        tie_word_embeddings=False,
    )
    return config


def _internvl(vocabulary: int, ids: Mapping[str, int]) -> PreTrainedConfig:
    tower = {name: value for name, value in CLIP.items() if name != "initializer_range"}
    return transformers.InternVLConfig(
        text_config={**COMMON, "vocab_size": vocabulary, "model_type": "qwen2"},
        vision_config={**tower, "image_size": [16, 16], "patch_size": [4, 4], "initializer_range": 0.2},
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=4,
        tie_word_embeddings=False,
    )


def _merging() -> Any:
    size = {"shortest_edge": 16 * 16, "longest_edge": 32 * 48}
    return transformers.Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, size=size)


def _cropping() -> Any:
    return transformers.CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})


def _cutting(name: str) -> Any:
    return getattr(transformers, name)(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})


TILES = (
    "<image>",
    ("<image>", "<fake_token_around_image>", "<global-img>", *(f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2))),
)
QWEN = ("<|vision_start|><|image_pad|><|vision_end|>", ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"))
GEMMA = ("<start_of_image>", ("<start_of_image>", "<image_soft_token>", "<end_of_image>"))
SEEING: dict[str, Seeing] = {
    "llava": Seeing("<image>", ("<image>",), _llava, _cropping),
    "llava-full": Seeing(
        "<image>",
        ("<image>",),
        lambda vocabulary, ids: _llava(
            vocabulary, ids, vision_feature_select_strategy="full", vision_feature_layer=[-2, 1]
        ),
        _cropping,
    ),
    "llava_next": Seeing(
        "<image>",
        ("<image>",),
        _llava_next,
        lambda: transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, image_grid_pinpoints=CANVASES
        ),
    ),
    "gemma3": Seeing(*GEMMA, _gemma3, lambda: transformers.Gemma3ImageProcessorPil(size={"height": 24, "width": 24})),
    "idefics3": Seeing(
        *TILES,
        lambda vocabulary, ids: _tiling(vocabulary, ids, "Idefics3Config"),
        lambda: _cutting("Idefics3ImageProcessorPil"),
    ),
    "smolvlm": Seeing(
        *TILES,
        lambda vocabulary, ids: _tiling(vocabulary, ids, "SmolVLMConfig"),
        lambda: _cutting("SmolVLMImageProcessorPil"),
    ),
    "internvl": Seeing(
        "<IMG_CONTEXT>",
        ("<IMG_CONTEXT>", "<img>", "</img>"),
        _internvl,
        lambda: transformers.GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, max_patches=6),
    ),
    "qwen2_vl": Seeing(*QWEN, _qwen2_vl, _merging),
    "qwen2_5_vl": Seeing(*QWEN, _qwen2_5_vl, _merging),
}


def save_seeing(name: str, directory: Path, seed: int = 0) -> Path:
    """Makes the tiny model, float32, and saves it with its tokenizer and image processor under `directory`."""
    entry = SEEING[name]
    tokenizer = byte_level_tokenizer("<s>")
    tokenizer.add_tokens(list(entry.tokens), special_tokens=True)
    ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in entry.tokens}
    config = entry.config(len(tokenizer), ids)
    config.get_text_config().eos_token_id = tokenizer.eos_token_id
    config.get_text_config().bos_token_id = tokenizer.bos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    randomise_vectors(model, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # Gemma's projector: all images would be the same
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    entry.processor().save_pretrained(directory)
    return directory


def load_seeing(directory: Path) -> PreTrainedModel:
    """The model as transformers runs it, attention step by step."""
    model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    )
    return model


def picture(seed: int, width: int = 40, height: int = 28) -> Image.Image:
    """A picture of coloured blocks."""
    blocks = np.random.RandomState(seed).randint(256, size=(height // 4, width // 4, 3)).astype(np.uint8)
    return Image.fromarray(blocks.repeat(4, axis=0).repeat(4, axis=1))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


class Shown(list[int]):
    """Tokens with the picture that is among them, for requests and for the oracle."""

    def __init__(self, tokens: Iterable[int], picture: Image.Image) -> None:
        super().__init__(tokens)
        self.picture = picture
        self.image = encoded(picture)

    def where(self, token: int) -> list[int]:
        """The positions of the picture."""
        return [position for position, one in enumerate(self) if one == token]


class SeeingOracle(Oracle):
    """An oracle of a vision-language model, which sees the picture that was last shown with the same tokens."""

    def __init__(self, directory: Path) -> None:
        self.processor = AutoImageProcessor.from_pretrained(directory, backend="pil")
        self._shown: dict[tuple[int, ...], Image.Image] = {}
        model: Any = load_seeing(directory)
        super().__init__(model)
        model.register_forward_pre_hook(self._look, with_kwargs=True)

    def show(self, *prompts: Shown) -> None:
        """From now on, these tokens and what continues them have these pictures."""
        self._shown.update({tuple(prompt): prompt.picture for prompt in prompts})

    def _state(self) -> tuple[int, ...]:
        return (*super()._state(), *(hash((ids, id(picture))) for ids, picture in self._shown.items()))

    def _look(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ids = args[0] if args else torch.empty(1, 0)
        for tokens, picture in self._shown.items():
            if tuple(ids[0, : len(tokens)].tolist()) == tokens:
                return args, kwargs | self._given(ids, picture)
        return None

    def _given(self, ids: Tensor, picture: Image.Image) -> dict[str, Tensor]:
        config = self.model.config
        # The image processor alone would not cut what the whole processor cuts.
        settings = {"crop_to_patches": True} if config.model_type == "internvl" else {}
        inputs = dict(self.processor(images=picture, return_tensors="pt", **settings))
        for unused in ("num_crops", "num_patches"):
            inputs.pop(unused, None)
        there = (ids == config.image_token_id).int()
        # Without them images would silently be read as texts.
        if config.model_type == "gemma3":
            inputs["token_type_ids"] = there
        elif config.model_type.startswith("qwen2"):
            inputs["mm_token_type_ids"] = there
        return inputs
