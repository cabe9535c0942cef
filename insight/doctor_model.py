"""The canary's last check: one training step of a model on the device, against the same model in plain formulas on the CPU."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from insight import doctor_plain as plain
from insight.doctor_checks import SEED, Check, Pairs, changes, gradient_of
from insight.losses import contrastive, image_text_matching
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import INITIAL_LOGIT_SCALE, MultiModalTransformer

TRAINING_STEP = "training step"
SLACK = 6.0  # rounding adds up through the layers: measured over seeds and widths it reaches 5e-2 in bfloat16, 6e-3 in float16
LR, BETAS, EPS, WEIGHT_DECAY = 1e-2, (0.9, 0.98), 1e-6, 0.05


def training_step_check(model: MultiModalTransformer) -> Check:
    """Forward, losses, backward and AdamW of a copy of the model, dropout off. Expected: the same model in plain formulas, float32, CPU."""
    master = copy.deepcopy(model).cpu().float().eval().requires_grad_(True)
    with torch.no_grad():
        master.logit_scale.fill_(INITIAL_LOGIT_SCALE)  # a temperature learnt down to 1/100 would magnify honest rounding seven times

    def compare(device: torch.device, dtype: torch.dtype) -> Pairs:
        here, there = copy.deepcopy(master), copy.deepcopy(master).to(device)
        with plain.PlainOperators():
            wanted_loss = example_loss(here, torch.device("cpu"))
            wanted_loss.backward()
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = example_loss(there, device)
        loss_scale = 1024.0 if dtype == torch.float16 else 1.0  # as a gradient scaler does
        (loss * loss_scale).backward()
        trained = {name: parameter for name, parameter in there.named_parameters() if parameter.grad is not None}
        for parameter in trained.values():
            parameter.grad = gradient_of(parameter) / loss_scale
        wanted = {name: gradient_of(parameter) for name, parameter in here.named_parameters() if parameter.grad is not None}
        largest = max(gradient.abs().max() for gradient in wanted.values())
        pairs: Pairs = {"loss": (loss, wanted_loss)}
        for name in wanted.keys() | trained.keys():
            missing = torch.tensor(torch.nan)
            got = gradient_of(trained[name]) if name in trained else missing
            expected = wanted.get(name, missing)
            floor = (largest / 20).reshape(1)  # a gradient that is next to nothing is compared with the size of the others
            pairs[f"gradient of {name}"] = (torch.cat([got.cpu().float().flatten(), floor]), torch.cat([expected.flatten(), floor]))
        before = [parameter.detach().cpu().clone() for parameter in trained.values()]
        gradients = [gradient_of(parameter).cpu() for parameter in trained.values()]
        torch.optim.AdamW(trained.values(), LR, BETAS, EPS, WEIGHT_DECAY).step()
        updated = plain.adamw(before, [gradients], LR, BETAS, EPS, WEIGHT_DECAY)
        moved = [changes(*values) for values in zip(before, trained.values(), updated, strict=True)]
        pairs["change by AdamW"] = (torch.cat([got.flatten() for got, _ in moved]), torch.cat([want.flatten() for _, want in moved]))
        return pairs

    return Check(f"{TRAINING_STEP} of {type(model).__name__}", TRAINING_STEP, compare, slack=SLACK)


def example_loss(model: MultiModalTransformer, device: torch.device) -> Tensor:
    """Contrastive loss of 3 random pictures with 2 captions each, and, with fusion layers, the matching loss."""
    size, words, length = model.image.image_size, model.text.vocab_size, model.text.context_length
    generator = torch.Generator().manual_seed(SEED)
    image = torch.randn(3, 3, size, size, generator=generator).to(device)
    tokens = torch.randint(words, (6, length), generator=generator).to(device)
    lengths = torch.randint(1, length + 1, (6,), generator=generator)
    mask = (torch.arange(length) < lengths[:, None]).to(device)
    row = torch.arange(6, device=device) // 2
    output = model(image, tokens, mask)
    positives = torch.arange(3, device=device)[:, None] == row
    loss = contrastive(output.image.embedding, output.text.embedding, positives, output.scale)
    if isinstance(model, CrossAttentionMultiModalTransformer):
        picture = torch.cat([row[:3], (row[3:] + 1) % 3])  # three pairs that belong together, three that do not
        logits = model.match(output.text.tokens, mask, output.image.tokens[picture])
        loss = loss + image_text_matching(logits, (picture == row).long())
    return loss


def default_model() -> MultiModalTransformer:
    """A small model with every kind of layer, from its own seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return CrossAttentionMultiModalTransformer(
            vocab_size=50, image_size=32, context_length=12, dim=32, image_depth=2, text_depth=2, heads=4, embed_dim=24, fusion_depth=1
        )
