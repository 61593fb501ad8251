"""The supported architectures: which modules play which part, and how they are combined.

Each entry is a function from a model's configuration to a `Family`. When a model is loaded, its results are compared
with those of transformers, so a wrong entry is found.
"""

from collections.abc import Mapping

from transformers import PreTrainedConfig

from ...errors import UnsupportedModel
from ..rotary import scalings
from . import experts, gemma, gpt, llama, olmo, vision
from .family import Family, Recipe, refuse

__all__ = ["FAMILIES", "Family", "family_of"]

FAMILIES: Mapping[str, Recipe] = {
    "apertus": llama.apertus,
    "arcee": llama.arcee,
    "bloom": gpt.bloom,
    "cohere": llama.cohere,
    "cohere2": llama.cohere2,
    "ernie4_5": llama.ernie4_5,
    "exaone4": llama.exaone4,
    "falcon": gpt.falcon,
    "gemma": gemma.gemma,
    "gemma2": gemma.gemma2,
    "gemma3": vision.gemma3,
    "gemma3_text": gemma.gemma3_text,
    "glm": llama.glm,
    "glm4": llama.glm4,
    "gpt2": gpt.gpt2,
    "gpt_bigcode": gpt.gpt_bigcode,
    "gpt_neo": gpt.gpt_neo,
    "gpt_neox": gpt.gpt_neox,
    "gpt_oss": experts.gpt_oss,
    "gptj": gpt.gptj,
    "granite": llama.granite,
    "granitemoe": experts.granitemoe,
    "helium": llama.helium,
    "hunyuan_v1_dense": llama.hunyuan_v1_dense,
    "idefics3": vision.idefics3,
    "internvl": vision.internvl,
    "llama": llama.llama,
    "llava": vision.llava,
    "llava_next": vision.llava_next,
    "ministral": llama.ministral,
    "mistral": llama.mistral,
    "mixtral": experts.mixtral,
    "nemotron": llama.nemotron,
    "olmo": olmo.olmo,
    "olmo2": olmo.olmo2,
    "olmo3": olmo.olmo3,
    "olmoe": experts.olmoe,
    "opt": gpt.opt,
    "phi": llama.phi,
    "phi3": llama.phi3,
    "phimoe": experts.phimoe,
    "qwen2": llama.qwen2,
    "qwen2_5_vl": vision.qwen2_vl,
    "qwen2_moe": experts.qwen2_moe,
    "qwen2_vl": vision.qwen2_vl,
    "qwen3": llama.qwen3,
    "qwen3_moe": experts.qwen3_moe,
    "seed_oss": llama.seed_oss,
    "smollm3": llama.smollm3,
    "smolvlm": vision.idefics3,
    "stablelm": llama.stablelm,
    "starcoder2": llama.starcoder2,
}


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a model, from its configuration.

    Raises:
        UnsupportedModel: for an unknown architecture, and for a configuration that would not be computed exactly.
    """
    recipe = FAMILIES.get(config.model_type)
    if recipe is None:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedModel(f"expected a model of one of the types {known}, got {config.model_type!r}")
    family = recipe(config)
    if "dynamic" in scalings(config.get_text_config()) and not family.fixed_scaling:
        refuse(config, "its rotary positions depend on the prompts that came before (rope type dynamic)")
    return family
