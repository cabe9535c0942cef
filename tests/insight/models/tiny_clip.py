"""Tiny CLIP checkpoints as the libraries leave them."""

from __future__ import annotations

import json

import open_clip
import safetensors.torch
import torch
import transformers

WORDS = ["<|startoftext|>", "<|endoftext|>"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
SIZE = len(LETTERS) + len(WORDS)  # the end has the highest id, as in CLIP
END = SIZE - 1
OPEN_CFG = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": SIZE, "width": 24, "heads": 3, "layers": 2},
}


def filled(network):
    """Every weight by lot, so that none stands at a zero or one where a mistake would hide."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if not name.startswith("logit"):
            parameter.data = torch.rand(parameter.shape, generator=generator) * (0.4 if parameter.ndim > 1 else 1.0) - 0.2
    return network.eval()


def save_tokenizer(folder, letters=LETTERS):
    """Letters, as CLIP's tokenizer keeps them."""
    vocabulary = {word: number for number, word in enumerate([*letters, *WORDS])}
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)


def hugging_face(folder, activation="quick_gelu", depth=2):
    """A tiny CLIP as ``save_pretrained`` leaves it, with its tokenizer."""
    shape = {"num_hidden_layers": depth, "hidden_act": activation}
    text = {"vocab_size": SIZE, "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3, "max_position_embeddings": 12}
    image = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(
        text_config=text | shape | {"bos_token_id": END - 1, "eos_token_id": END}, vision_config=image | shape, projection_dim=12
    )
    model = filled(transformers.CLIPModel(config))
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


def opened(folder, kind="CLIP", weights="open_clip_model.safetensors"):
    """A tiny CLIP with the config that open_clip puts beside its weights."""
    model = filled(getattr(open_clip, kind)(**OPEN_CFG))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if weights.endswith(".safetensors"):
        safetensors.torch.save_file(state, folder / weights)
    else:
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, folder / weights)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": OPEN_CFG, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    )
    return model
