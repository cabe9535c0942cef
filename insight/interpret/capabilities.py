"""Which method explains which kind of model. The table is not declared but tried, on tiny models:

python -m insight.interpret.capabilities      (rewrites the table in insight/interpret/README.md)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from insight.data.batch import ImageTextBatch
from insight.interpret.captioner import Captioner
from insight.interpret.explain import Explanation, explain
from insight.interpret.families import Classifier, CrossAttention, DualEncoder
from insight.interpret.family import Family, Lacks, Target
from insight.interpret.language import Language
from insight.interpret.maps import write_atomically
from insight.interpret.methods import METHODS
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.language_model import LanguageModel
from insight.models.multimodal import MultiModalTransformer
from insight.models.vision_transformer import VisionTransformer
from insight.stages import Call

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- table: python -m insight.interpret.capabilities -->\n", "<!-- end of table -->"
LACKING = "–"
IMAGE_SIZE, PATCH_SIZE, DIM, HEADS = 32, 8, 16, 2


def tiny_families() -> tuple[Family, ...]:
    """One of each kind, untrained but with weights so large that attention is not even; the global generator is left alone."""
    generator = torch.Generator().manual_seed(0)
    tower = {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "dim": DIM, "heads": HEADS, "dropout": 0.1}
    both = {"vocab_size": 20, "context_length": 6, "image_depth": 2, "text_depth": 2, "embed_dim": 12, **tower}
    with torch.random.fork_rng(devices=[]):
        families = (
            Classifier(VisionTransformer(depth=2, **tower), nn.Linear(DIM, 3)),  # type: ignore[arg-type]
            DualEncoder(MultiModalTransformer(**both)),  # type: ignore[arg-type]
            CrossAttention(CrossAttentionMultiModalTransformer(fusion_depth=2, **both)),  # type: ignore[arg-type]
            Language(LanguageModel(vocab_size=20, context_length=6, dim=DIM, depth=2, heads=HEADS, dropout=0.1)),
            Captioner(CrossAttentionMultiModalTransformer(fusion_depth=1, decoder_depth=2, **both)),  # type: ignore[arg-type]
        )
    for family in families:
        for parameter in family.model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.4, generator=generator)
        family.model.eval()
    return families


def tiny_batch() -> ImageTextBatch:
    """Two pictures with two captions each, of 6, 3, 2 and 6 tokens."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    tokens = torch.randint(3, 20, (4, 6), generator=generator)
    mask, row = torch.arange(6) < torch.tensor([6, 3, 2, 6])[:, None], torch.arange(4)
    return ImageTextBatch(image, None, tokens * mask, mask, row // 2, torch.arange(2), row, ("",) * 4, ("a.jpg", "b.jpg"), ())


def tried(family: Family, method: Call) -> Explanation | None:
    """One row explained, or None where the family lacks the method."""
    try:
        return explain(family, tiny_batch(), Target([0], [0]), method)
    except Lacks:
        return None


def table() -> str:
    """Markdown: a row per method, a column per kind of model, and the most passes that a row takes at the default settings."""
    families = tiny_families()
    lines = [f"| method | {' | '.join(family.name for family in families)} | passes |", f"| --- |{' --- |' * (len(families) + 1)}"]
    for name, method in METHODS.items():
        explanations = [tried(family, method) for family in families]
        costs = [explanation.cost for explanation in explanations if explanation is not None]
        most = max(costs, key=lambda cost: cost.forwards)
        passes = f"{most.forwards:.0f}" + (f" + {most.backwards:.0f}" if most.backwards else "")
        lines.append(f"| `{name}` | {' | '.join(cell(one) for one in explanations)} | {passes} |")
    return "\n".join(lines) + "\n"


def cell(explanation: Explanation | None) -> str:
    """What there is a value for, or a dash."""
    if explanation is None:
        return LACKING
    found = {"patches": explanation.image, "tokens": explanation.text, "pairs": explanation.pairs}
    return ", ".join(name for name, values in found.items() if values is not None)


def with_table(readme: str) -> str:
    """The text with what stands between the two markers replaced."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table() + END + after


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    text = with_table(README.read_text(encoding="utf-8"))
    write_atomically(README, lambda temporary: temporary.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
