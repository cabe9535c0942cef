"""Tiny SigLIP checkpoints as the libraries leave them."""

from __future__ import annotations

import io
import json

import open_clip
import safetensors.torch
import sentencepiece
import timm
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors

from tests.insight.models.tiny_clip import filled

TEXTS = [
    f"a {size} {colour} {shape}" for size in ("small", "large") for colour in ("red", "blue") for shape in ("circle", "square", "star")
]
SIZE, CONTEXT = 40, 12
TIMM = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
OPEN_CFG = {
    "embed_dim": 32,
    "init_logit_bias": -10,
    "vision_cfg": {"image_size": 16, "timm_model_name": "tiny_siglip", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": SIZE,
        "hf_tokenizer_name": "somewhere",
        "width": 24,
        "heads": 3,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    },
}


def save_tokenizer(folder):
    """A unigram model of sentencepiece, as the original keeps it (spiece.model) and as tokenizer.json."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 4),
        model_writer=trained,
        vocab_size=SIZE,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(trained.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    scores = [(pieces.id_to_piece(one), pieces.get_score(one)) for one in range(pieces.get_piece_size())]
    backend = tokenizers.Tokenizer(models.Unigram(scores, unk_id=2))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    backend.add_special_tokens(["<pad>", "</s>", "<unk>"])
    backend.save(str(folder / "tokenizer.json"))
    return transformers.SiglipTokenizer(str(folder / "spiece.model"), model_max_length=CONTEXT)


def hugging_face(folder, depth=2):
    """A tiny SigLIP as ``save_pretrained`` leaves it; its scale lies beyond CLIP's bound, as the released ones' do."""
    shared = {"num_hidden_layers": depth, "hidden_act": "gelu_pytorch_tanh"}
    text = {"vocab_size": SIZE, "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3, "max_position_embeddings": CONTEXT}
    image = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    model = filled(
        transformers.SiglipModel(
            transformers.SiglipConfig(text_config={**text, **shared, "projection_size": 32}, vision_config=image | shared)
        )
    )
    model.logit_scale.data.fill_(4.8)
    model.logit_bias.data.fill_(-16.5)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    return model


def opened(folder):
    """A tiny SigLIP as open_clip has it: timm's vision transformer beside its own text transformer."""
    with torch.device("meta"):
        trunk = timm.create_model("vit_base_patch16_siglip_224", img_size=16, num_classes=0, **TIMM)
    trunk = trunk.to_empty(device="cpu")
    text = open_clip.transformer.TextTransformer(
        CONTEXT, SIZE, 24, 3, 2, output_dim=32, no_causal_mask=True, proj_bias=True, pool_type="last",
        norm_layer=lambda width: open_clip.transformer.LayerNorm(width, eps=1e-6),
    )  # fmt: skip
    model = torch.nn.Module()
    model.visual, model.text = torch.nn.Module(), text
    model.visual.trunk = trunk
    model.logit_scale, model.logit_bias = torch.nn.Parameter(torch.tensor(4.8)), torch.nn.Parameter(torch.tensor(-16.5))
    filled(model)
    safetensors.torch.save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": OPEN_CFG, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    )
    return model
