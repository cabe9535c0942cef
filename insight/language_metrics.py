"""How well texts are foreseen: perplexity per token, and two figures that models with other tokenizers can be compared by.

C texts, T tokens, V vocabulary.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torchmetrics import SumMetric
from torchmetrics.text import Perplexity

from insight.losses import IGNORED


class LanguageFigures(nn.Module):
    """Gathered over batches and devices.

    All three are one loss, the sum of ``-log p`` over the tokens that are named (each text's end among them), divided by something else:
    ``perplexity`` is exp of it per token, ``perplexity_per_word`` per word and end, ``bits_per_byte`` is it in bits per byte of text.
    Tokens differ between tokenizers; words and bytes do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.perplexity = Perplexity(ignore_index=IGNORED)
        self.tokens, self.words, self.bytes = SumMetric(), SumMetric(), SumMetric()

    def update(self, logits_CTV: Tensor, target_CT: Tensor, num_words: Tensor, num_bytes: Tensor) -> None:
        """
        Args:
            target_CT: ``IGNORED`` where there is nothing to name.
            num_words: (), words and ends among the targets.
            num_bytes: (), bytes that the targets stand for.
        """
        self.perplexity.update(logits_CTV.float(), target_CT)
        self.tokens.update((target_CT != IGNORED).sum())
        self.words.update(num_words)
        self.bytes.update(num_bytes)

    def compute(self) -> dict[str, float]:
        perplexity = float(self.perplexity.compute())
        return figures(
            math.log(perplexity) * float(self.tokens.compute()), *(float(one.compute()) for one in (self.tokens, self.words, self.bytes))
        )

    def reset(self) -> None:
        for metric in (self.perplexity, self.tokens, self.words, self.bytes):
            metric.reset()


def figures(loss: float, num_tokens: float, num_words: float, num_bytes: float) -> dict[str, float]:
    """The three from the summed loss in nats.

    >>> round(figures(3 * math.log(8), num_tokens=3, num_words=2, num_bytes=9)["bits_per_byte"], 6)
    1.0
    """
    return {
        "perplexity": math.exp(loss / num_tokens),
        "perplexity_per_word": math.exp(min(loss / num_words, 700.0)),  # a bad model's is beyond what a float holds
        "bits_per_byte": loss / math.log(2) / num_bytes,
    }
