"""Dual encoder with fusion layers: text tokens read image tokens, and a head says whether the two belong together.

C pairs (a caption and a picture each), B pictures, T text tokens, N image tokens, D width (towers that are handed in have their own),
P hidden places of a caption, V vocabulary, A answers. After https://arxiv.org/abs/2107.07651 (ALBEF), section 3.1; with a decoder it is
https://arxiv.org/abs/2201.12086 (BLIP), section 3.1, but for its sharing of weights.
"""

from __future__ import annotations

from torch import Tensor, nn

from insight.errors import InputError
from insight.models.encoder_decoder import Decoder, DecoderOutput, DecoderReader
from insight.models.multimodal import ImageFeatures, MultiModalTransformer, TextFeatures
from insight.models.text_transformer import TextTransformer
from insight.models.tower import ImageTower, TextTower
from insight.models.vision_transformer import VisionTransformer
from insight.nn.block import fusion_blocks, norm
from insight.nn.linear import linear
from insight.nn.pool import masked_mean
from insight.nn.settings import PLAIN, BlockSettings


class CrossAttentionMultiModalTransformer(MultiModalTransformer):
    """The two towers of MultiModalTransformer; fused features only score pairs, they never serve as embeddings for retrieval.

    Image tower and decoder are an encoder-decoder transformer that writes captions. Tokens of a tower that was handed in come to the
    fusion's width, ``dim``, through a linear adapter.

    Args:
        decoder_depth: Blocks of the decoder; 0 = there is none.
        num_answers: Answers to questions that a head chooses from; 0 = there is none.
    """

    reads_regions = True

    def __init__(
        self,
        vocab_size: int,
        image_size: int = 64,
        patch_size: int = 8,
        context_length: int = 32,
        dim: int = 128,
        image_depth: int = 4,
        text_depth: int = 4,
        heads: int = 4,
        embed_dim: int = 128,
        dropout: float = 0.0,
        fusion_depth: int = 2,
        block: BlockSettings = PLAIN,
        image: VisionTransformer | ImageTower | None = None,
        text: TextTransformer | TextTower | None = None,
        decoder_depth: int = 0,
        num_answers: int = 0,
    ) -> None:
        super().__init__(
            vocab_size, image_size, patch_size, context_length, dim, image_depth, text_depth, heads, embed_dim, dropout, block, image, text
        )
        self.image_adapter = nn.Identity() if self.image.dim == dim else linear(self.image.dim, dim)
        self.text_adapter = nn.Identity() if self.text.dim == dim else linear(self.text.dim, dim)
        self.fusion = fusion_blocks(fusion_depth, dim, heads, dropout, block)
        self.fusion_norm = norm(dim, block)
        self.match_head = linear(dim, 2)
        # its own rows, not the token embedding's: those are locked in some stages, and small where they are not
        self.masked_head = nn.Sequential(linear(dim, dim), nn.GELU(), nn.LayerNorm(dim), linear(dim, vocab_size))
        self.decoder = Decoder(vocab_size, context_length, dim, decoder_depth, heads, dropout, block) if decoder_depth else None
        self.answer_head = linear(dim, num_answers) if num_answers else None

    def fuse(
        self,
        text_tokens_CTD: Tensor,
        text_mask_CT: Tensor,
        image_tokens_BND: Tensor,
        image_mask_BN: Tensor | None = None,
        image_row_C: Tensor | None = None,
    ) -> Tensor:
        """Text tokens that have read the image: (C, T, D). Masks: True = may be read.

        Row c of the text reads row ``image_row_C[c]`` of the image; None: row c, and B = C.
        """
        x_CTD, image_tokens_BND = self.text_adapter(text_tokens_CTD), self.image_adapter(image_tokens_BND)
        turn = self.text.rotation(x_CTD)
        for block in self.fusion:
            x_CTD = block(x_CTD, text_mask_CT, image_tokens_BND, image_mask_BN, image_row_C, turn)
        return self.fusion_norm(x_CTD)

    def match(
        self,
        text_tokens_CTD: Tensor,
        text_mask_CT: Tensor,
        image_tokens_BND: Tensor,
        image_mask_BN: Tensor | None = None,
        image_row_C: Tensor | None = None,
    ) -> Tensor:
        """Logits (C, 2) of [another picture's caption, this picture's caption]; arguments as of ``fuse``."""
        fused_CTD = self.fuse(text_tokens_CTD, text_mask_CT, image_tokens_BND, image_mask_BN, image_row_C)
        return self.match_head(masked_mean(fused_CTD, text_mask_CT))

    def pair_scores(self, text: TextFeatures, text_mask_CT: Tensor, image: ImageFeatures) -> Tensor:
        """Log-odds that caption c belongs to picture c, up to a constant: (C,).

        The matching head's log-odds plus the towers' logit. The head learns to tell right pairs from wrong ones that are drawn with
        probability softmax(towers' logit), so what it learns is only the rest: log p - log q of noise-contrastive estimation, a residual
        as in https://arxiv.org/abs/2004.11714, equation 2.
        """
        logits_C2 = self.match(text.tokens, text_mask_CT, image.tokens)
        return logits_C2[:, 1] - logits_C2[:, 0] + self.scale * (text.embedding * image.embedding).sum(dim=-1)

    def name_words(self, fused_CTD: Tensor, position_CP: Tensor) -> Tensor:
        """What stands at the hidden places of captions that have read their pictures: logits (C, P, V)."""
        return self.masked_head(fused_CTD.gather(1, position_CP[..., None].expand(-1, -1, fused_CTD.shape[-1])))

    def answer(
        self,
        text_tokens_CTD: Tensor,
        text_mask_CT: Tensor,
        image_tokens_BND: Tensor,
        image_mask_BN: Tensor | None = None,
        image_row_C: Tensor | None = None,
    ) -> Tensor:
        """Which answer a question about its picture has: logits (C, A); arguments as of ``fuse``.

        Raises:
            InputError: the model has no answers.
        """
        if self.answer_head is None:
            raise InputError("this model answers no questions: build it with num_answers, as many as the data have")
        fused_CTD = self.fuse(text_tokens_CTD, text_mask_CT, image_tokens_BND, image_mask_BN, image_row_C)
        return self.answer_head(masked_mean(fused_CTD, text_mask_CT))

    def write(self, tokens_CT: Tensor, image_tokens_BND: Tensor, image_row_C: Tensor | None = None) -> DecoderOutput:
        """What comes after each token of a caption of the picture.

        Raises:
            InputError: the model has no decoder.
        """
        return self._decoder()(tokens_CT, self.image_adapter(image_tokens_BND), context_row_C=image_row_C)

    def captions_of(self, image_tokens_BND: Tensor, copies: int = 1) -> DecoderReader:
        """Captions that are to be written, for ``insight.generation``: ``copies`` of each picture.

        Raises:
            InputError: the model has no decoder.
        """
        return DecoderReader(self._decoder(), self.image_adapter(image_tokens_BND), copies=copies)

    def _decoder(self) -> Decoder:
        if self.decoder is None:
            raise InputError("this model writes no captions: build it with decoder_depth of 1 or more (model=captioner)")
        return self.decoder
