"""Run the originals on the tiny models and keep their numbers. Nothing of their code is here: it is imported, or cut out of a checkout.

python -m tests.insight.interpret.golden.attention.make --originals FOLDER      (writes numbers.json; README.md says what FOLDER holds)
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insight.interpret.record import record_attention
from tests.insight.interpret.golden.attention import tiny

CHEFER, LEGRAD, ECLIP, ROLLOUT = "Transformer-MM-Explainability", "LeGrad", "Grad-Eclip", "attention_flow"


def function_of(source: str, name: str, **known: Any) -> Callable[..., Any]:
    """One function of a file that cannot be imported, with the names that it needs."""
    tree = ast.parse(source)
    wanted = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    exec(compile(ast.Module(wanted, []), name, "exec"), known)
    return known[name]


def notebook_source(path: Path) -> str:
    cells = json.loads(path.read_text())["cells"]
    lines = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n".join(text for text in lines if not any(line.startswith(("!", "%")) for line in text.splitlines()))


def on_the_cpu() -> Any:
    return mock.patch.object(torch.Tensor, "cuda", lambda tensor: tensor)


# --- our weights in their shapes ---
@torch.no_grad()
def fill_blocks(theirs: nn.Module, ours: nn.Module) -> None:
    for target, block in zip(theirs, ours, strict=True):
        target.attn.in_proj_weight.copy_(torch.cat([block.attention.query.weight, block.attention.key_value.weight]))
        target.attn.in_proj_bias.copy_(torch.cat([block.attention.query.bias, block.attention.key_value.bias]))
        target.attn.out_proj.load_state_dict(block.attention.output.state_dict())
        target.ln_1.load_state_dict(block.attention_norm.state_dict())
        target.ln_2.load_state_dict(block.mlp_norm.state_dict())
        target.mlp.c_fc.load_state_dict(block.mlp.expand.state_dict())
        target.mlp.c_proj.load_state_dict(block.mlp.contract.state_dict())
        target.mlp.gelu = nn.GELU()


@torch.no_grad()
def fill_visual(visual: nn.Module, model: nn.Module) -> None:
    """Their patches have no bias: ours goes into the positions."""
    embedding = model.image.embedding
    visual.conv1.weight.copy_(embedding.projection.weight.reshape(visual.conv1.weight.shape))
    visual.class_embedding.copy_(embedding.class_token[0, 0])
    visual.positional_embedding.copy_(embedding.position[0])
    visual.positional_embedding[1:] += embedding.projection.bias
    visual.ln_pre = nn.Identity()
    visual.ln_post.load_state_dict(model.image.norm.state_dict())
    visual.proj.copy_(model.image_projection.weight.T)
    fill_blocks(visual.transformer.resblocks, model.image.blocks)


@torch.no_grad()
def openai_clip(clip: Any, model: nn.Module, heads: int) -> nn.Module:
    """The dual encoder as the class of Chefer's fork of CLIP. Its text is made to be read in both directions, and by the mean."""
    theirs = clip.CLIP(tiny.EMBED, tiny.IMAGE_SIZE, 1, 64, tiny.PATCH_SIZE, tiny.LENGTH, tiny.VOCABULARY, tiny.DIM, heads, tiny.DEPTH)
    theirs.visual = clip.VisualTransformer(tiny.IMAGE_SIZE, tiny.PATCH_SIZE, tiny.DIM, tiny.DEPTH, heads, tiny.EMBED)
    fill_visual(theirs.visual, model)
    theirs.token_embedding.weight.copy_(model.text.embedding.token.weight)
    theirs.positional_embedding.copy_(model.text.embedding.position[0])
    theirs.ln_final.load_state_dict(model.text.norm.state_dict())
    theirs.text_projection.copy_(model.text_projection.weight.T)
    theirs.logit_scale.copy_(model.logit_scale)
    fill_blocks(theirs.transformer.resblocks, model.text.blocks)
    for block in theirs.transformer.resblocks:
        block.attn_mask = None

    def encode_text(text: Tensor) -> Tensor:
        x = (theirs.token_embedding(text) + theirs.positional_embedding).permute(1, 0, 2)
        return theirs.ln_final(theirs.transformer(x).permute(1, 0, 2)).mean(dim=1) @ theirs.text_projection

    theirs.encode_text = encode_text
    return theirs.eval()


# --- the originals' answers ---
def chefer(originals: Path) -> dict[str, Any]:
    """The notebook's `interpret`: the first picture against all captions, from the first layer and with the last alone."""
    sys.path.insert(0, str(originals / CHEFER / "CLIP"))
    import clip.model as clip

    model, batch, found = openai_clip(clip, tiny.dual_encoder().model, heads=2), tiny.batch(), {}
    source = notebook_source(originals / CHEFER / "CLIP_explainability.ipynb")
    for name, start in (("all", 0), ("last", -1)):
        interpret = function_of(source, "interpret", torch=torch, np=np, start_layer=start, start_layer_text=start)
        with on_the_cpu():
            text, image = interpret(batch.image[:1], batch.tokens, model, "cpu", start, start)
        found[f"chefer_image_{name}"], found[f"chefer_text_{name}"] = image, text.mean(dim=1)  # words are read by their mean
    return found


def chefer_encoder_decoder(originals: Path) -> dict[str, Any]:
    """`Generator.generate_ours` of the DETR folder on the cross-attention model: encoder = image tower, decoder = fusion."""
    sys.path.insert(0, str(originals / CHEFER / "DETR"))
    from modules.ExplanationGenerator import Generator

    family, batch = tiny.cross_attention(), tiny.batch()
    pairs = []
    for caption, picture in enumerate(batch.caption_row.tolist()):
        weights: list[Tensor] = []

        def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, weights: list[Tensor] = weights) -> Tensor:
            weights.append((query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(dim=-1))
            weights[-1].retain_grad()
            return weights[-1] @ value

        def run(_: Any, caption: int = caption, picture: int = picture) -> dict[str, Tensor]:
            tokens = batch.tokens[caption : caption + 1]
            image, text = family.model.encode_image(batch.image[picture : picture + 1]), family.model.encode_text(tokens, tokens > 0)
            logits = family.model.match(text.tokens, tokens > 0, image.tokens)[0]
            return {"pred_logits": (logits[1] - logits[0]).expand(1, tiny.LENGTH, 1)}

        def layer(index: int, weights: list[Tensor] = weights) -> SimpleNamespace:
            return SimpleNamespace(get_attn=lambda: weights[index], get_attn_gradients=lambda: weights[index].grad)

        encoder = [SimpleNamespace(self_attn=layer(index)) for index in range(tiny.DEPTH)]
        decoder = [
            SimpleNamespace(self_attn=layer(tiny.DEPTH + 2 * index), multihead_attn=layer(tiny.DEPTH + 2 * index + 1)) for index in range(2)
        ]
        model = mock.MagicMock(side_effect=run)
        model.transformer = SimpleNamespace(encoder=SimpleNamespace(layers=encoder), decoder=SimpleNamespace(layers=decoder))
        generator = Generator(model)
        with on_the_cpu(), mock.patch("insight.nn.attention.attend", attend):
            generator.generate_ours(None, 0, index=0, use_lrp=False)
        pairs.append(generator.R_q_i.detach()[0, :, 1:])
    return {"chefer_encoder_decoder_pairs": torch.stack(pairs)}


def legrad(originals: Path) -> dict[str, Any]:
    """`LeWrapper.compute_legrad` around a model of open_clip; its map stays one of patches, each stretched to 0..1."""
    sys.path.insert(0, str(originals / LEGRAD))
    import open_clip.model as open_clip
    from legrad import LeWrapper

    ours, batch, found = tiny.dual_encoder().model, tiny.batch(), {}
    vision = open_clip.CLIPVisionCfg(
        layers=tiny.DEPTH, width=tiny.DIM, head_width=tiny.DIM // 2, patch_size=tiny.PATCH_SIZE, image_size=tiny.IMAGE_SIZE
    )
    text = open_clip.CLIPTextCfg(context_length=tiny.LENGTH, vocab_size=tiny.VOCABULARY, width=tiny.DIM, heads=2, layers=1)
    with torch.no_grad():
        embedding = ours.encode_text(batch.tokens, batch.token_mask).embedding
    for name, start in (("all", 0), ("last_two", -2)):
        theirs = open_clip.CLIP(tiny.EMBED, vision, text).eval()
        fill_visual(theirs.visual, ours)
        wrapper = LeWrapper(theirs, layer_index=start)
        wrapper.patch_size = 1
        found[f"legrad_{name}_min_max"] = wrapper.compute_legrad(embedding, batch.image[:1]).detach()[0]
    return found


def grad_eclip(originals: Path) -> dict[str, Any]:
    """`clip_encode_dense` and `grad_eclip` of generate_emap.py. They run the last layer with one head: so does this model everywhere."""
    import clip.model as clip

    ours, batch = tiny.dual_encoder(heads=1).model, tiny.batch()
    model = openai_clip(clip, ours, heads=1)
    source = (originals / ECLIP / "generate_emap.py").read_text()
    attention_layer = function_of(source, "attention_layer", torch=torch, F=F)
    encode = function_of(source, "clip_encode_dense", torch=torch, clipmodel=model, attention_layer=attention_layer)
    explain = function_of(source, "grad_eclip", torch=torch, F=F)
    maps = []
    with mock.patch.object(torch.Tensor, "half", lambda tensor: tensor):
        output, _, _, value, query, key, _, attended, size = encode(batch.image[:1])
    image = F.normalize(output[:, 0], dim=-1)
    text = F.normalize(model.encode_text(batch.tokens), dim=-1)
    for caption in range(3):
        score = model.logit_scale.exp() * (image @ text[caption])[0]
        maps.append(explain(score, query, key, value, attended, size))
    return {"grad_eclip_image": torch.stack(maps).detach()}


def rollout(originals: Path) -> dict[str, Any]:
    """`compute_joint_attention` on the image tower's weights, mean over heads."""
    source = (originals / ROLLOUT / "attention_graph_util.py").read_text()
    joint = function_of(source, "compute_joint_attention", np=np)
    family, batch = tiny.classifier(), tiny.batch()
    with torch.no_grad(), record_attention(family.model) as maps:
        family.vision(batch.image)
    layers = torch.stack([maps[name].mean(dim=1) for name in family.flow.image], dim=1).double().numpy()
    return {"rollout_image": torch.from_numpy(np.stack([joint(one)[-1][0, 1:] for one in layers]))}


def integrated_gradients(originals: Path) -> dict[str, Any]:
    """captum on the classifier, sums over patches."""
    from captum.attr import IntegratedGradients

    family, batch = tiny.classifier(), tiny.batch()
    method = IntegratedGradients(lambda image: family.head(family.vision(image).pooled))
    values = method.attribute(batch.image, target=torch.tensor([0, 2]), n_steps=32)
    cut = values.reshape(2, 3, tiny.GRID, tiny.PATCH_SIZE, tiny.GRID, tiny.PATCH_SIZE)
    return {"integrated_gradients_image": cut.sum(dim=(1, 3, 5)).detach()}


def grad_cam(originals: Path) -> dict[str, Any]:
    """pytorch-grad-cam at the last block's first LayerNorm, before its stretching to 0..1."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    family, batch = tiny.classifier(), tiny.batch()

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision, self.head = family.vision, family.head

        def forward(self, image: Tensor) -> Tensor:
            return self.head(self.vision(image).pooled)

    def grid(tokens: Tensor) -> Tensor:
        return tokens[:, 1:].unflatten(1, (tiny.GRID, tiny.GRID)).permute(0, 3, 1, 2)

    layer, targets = family.vision.blocks[-1].attention_norm, [ClassifierOutputTarget(0), ClassifierOutputTarget(2)]
    cam = GradCAM(model=Logits().eval(), target_layers=[layer], reshape_transform=grid)
    cam(input_tensor=batch.image, targets=targets)
    activations, gradients = (one[0].cpu().numpy() for one in (cam.activations_and_grads.activations, cam.activations_and_grads.gradients))
    return {"grad_cam_image": torch.from_numpy(np.maximum(cam.get_cam_image(batch.image, layer, targets, activations, gradients), 0))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--originals", type=Path, required=True, help="folder that holds the checkouts")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("numbers.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for make in (chefer, chefer_encoder_decoder, legrad, grad_eclip, rollout, integrated_gradients, grad_cam):
        found |= {name: np.asarray(values, dtype=np.float64).round(9).tolist() for name, values in make(arguments.originals).items()}
    text = ",\n".join(f" {json.dumps(name)}: {json.dumps(values, separators=(',', ':'))}" for name, values in found.items())
    arguments.output.write_text("{\n" + text + "\n}\n")


if __name__ == "__main__":
    main()
