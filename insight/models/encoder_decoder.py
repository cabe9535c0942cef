"""Encoder-decoder transformer: a causal decoder reads what an encoder made of another text, or of a picture.

After https://arxiv.org/abs/1706.03762, with pre-norm blocks. C texts, T tokens of the text that is written, S tokens of the context, B rows
of the context, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from insight.models.text_transformer import TextTransformer
from insight.nn.block import fusion_blocks, norm
from insight.nn.cache import BlockCache
from insight.nn.embed import TokenEmbedding
from insight.nn.linear import linear
from insight.nn.position import rotation, text_places
from insight.nn.settings import PLAIN, BlockSettings


class DecoderOutput(NamedTuple):
    tokens: Tensor  # (C, T, D), after the final norm
    logits: Tensor  # (C, T, V) of the token that comes after each


class Decoder(nn.Module):
    """A token reads itself, those before it, and a context that never reads the text.

    Args:
        vocab_size: Rows of the token embedding, and outputs.
        context_length: Most tokens of a text.
        dim: Width, also of the context.
        depth: Blocks.
        heads: Attention heads; divides ``dim``.
        dropout: Of the embedding, and of what each part of a block adds.
        block: How the blocks are made.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int = 32,
        dim: int = 128,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
        block: BlockSettings = PLAIN,
    ) -> None:
        super().__init__()
        self.embedding = TokenEmbedding(vocab_size, context_length, dim, block.position)
        self.dropout = nn.Dropout(dropout)
        self.blocks = fusion_blocks(depth, dim, heads, dropout, block, causal=True)
        self.norm = norm(dim, block)
        self.head = linear(dim, vocab_size)
        self.rotary, self.head_width = block.position == "rotary", dim // heads

    @property
    def context_length(self) -> int:
        """Most tokens of a text."""
        return self.embedding.context_length

    def forward(
        self,
        tokens_CT: Tensor,
        context_BSD: Tensor,
        mask_CT: Tensor | None = None,
        context_mask_BS: Tensor | None = None,
        context_row_C: Tensor | None = None,
        cache: Sequence[BlockCache] | None = None,
    ) -> DecoderOutput:
        """Arguments as of ``read``.

        Raises:
            InputError: the text goes beyond ``context_length``.
        """
        start = len(cache[0]) if cache else 0
        return self.read(self.embedding(tokens_CT, start), context_BSD, mask_CT, context_mask_BS, context_row_C, cache)

    def read(
        self,
        x_CTD: Tensor,
        context_BSD: Tensor,
        mask_CT: Tensor | None = None,
        context_mask_BS: Tensor | None = None,
        context_row_C: Tensor | None = None,
        cache: Sequence[BlockCache] | None = None,
    ) -> DecoderOutput:
        """What follows the embedding.

        Args:
            mask_CT: True = a token that may be read; None: all. Padding at the end needs none: nothing before it reads it.
            context_mask_BS: The same of the context.
            context_row_C: Row of the context that each text reads; None: its own.
            cache: Of every block, from ``new_cache``: what was read before. ``x_CTD`` are then the newest tokens only.
        """
        start = len(cache[0]) if cache else 0
        turn = rotation(text_places(start, x_CTD.shape[1], x_CTD.device), self.head_width) if self.rotary else None
        x_CTD = self.dropout(x_CTD)
        for index, block in enumerate(self.blocks):
            x_CTD = block(x_CTD, mask_CT, context_BSD, context_mask_BS, context_row_C, turn, cache[index] if cache else None)
        x_CTD = self.norm(x_CTD)
        return DecoderOutput(x_CTD, self.head(x_CTD))

    def new_cache(self) -> list[BlockCache]:
        """An empty one for each block."""
        return [BlockCache() for _ in self.blocks]


class Transformer(nn.Module):
    """Text in, text out. A captioner is the same with a picture's encoder: see CrossAttentionMultiModalTransformer's ``decoder``.

    Args:
        source_vocab_size: Rows of the encoder's token embedding.
        target_vocab_size: Rows of the decoder's, and outputs.
        source_length: Most tokens that are read.
        target_length: Most tokens that are written.
        dim: Width of both.
        encoder_depth: Blocks of the encoder.
        decoder_depth: Blocks of the decoder.
        heads: Attention heads; divides ``dim``.
        dropout: In both.
        block: How the blocks of both are made.
    """

    def __init__(
        self,
        source_vocab_size: int,
        target_vocab_size: int,
        source_length: int = 32,
        target_length: int = 32,
        dim: int = 128,
        encoder_depth: int = 2,
        decoder_depth: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
        block: BlockSettings = PLAIN,
    ) -> None:
        super().__init__()
        self.encoder = TextTransformer(source_vocab_size, source_length, dim, encoder_depth, heads, dropout, block)
        self.decoder = Decoder(target_vocab_size, target_length, dim, decoder_depth, heads, dropout, block)

    def encode(self, source_CS: Tensor, source_mask_CS: Tensor) -> Tensor:
        """(C, S, D), what the decoder reads. ``source_mask_CS``: True = a real token."""
        return self.encoder(source_CS, source_mask_CS).tokens

    def forward(self, source_CS: Tensor, source_mask_CS: Tensor, target_CT: Tensor, target_mask_CT: Tensor | None = None) -> DecoderOutput:
        """Both masks: True = a real token."""
        return self.decoder(target_CT, self.encode(source_CS, source_mask_CS), target_mask_CT, source_mask_CS)


class DecoderReader:
    """Texts that a decoder writes of a context, as ``insight.generation`` asks for them.

    Args:
        context_BSD: What each text is about.
        context_mask_BS: True = a token of it that may be read; None: all.
        copies: Texts of each row, side by side: the beams of a search.
    """

    def __init__(self, decoder: Decoder, context_BSD: Tensor, context_mask_BS: Tensor | None = None, copies: int = 1) -> None:
        self.decoder, self.context_length = decoder, decoder.context_length
        self.context_BSD = context_BSD.repeat_interleave(copies, dim=0)
        self.mask_BS = None if context_mask_BS is None else context_mask_BS.repeat_interleave(copies, dim=0)
        self.cache = decoder.new_cache()

    def read(self, tokens_BT: Tensor) -> Tensor:
        """Read on, by the next T tokens of every text: logits (B, V) of what comes after them."""
        return self.decoder(tokens_BT, self.context_BSD, context_mask_BS=self.mask_BS, cache=self.cache).logits[:, -1]

    def keep_rows(self, row_B: Tensor) -> None:
        """Text b becomes what text ``row_B[b]`` was."""
        self.context_BSD = self.context_BSD[row_B]
        self.mask_BS = None if self.mask_BS is None else self.mask_BS[row_B]
        for one in self.cache:
            one.keep_rows(row_B)
