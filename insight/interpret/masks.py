"""One evaluator for everything that leaves parts out: masks over segments and words in, values of the model out.

Equal masks are computed once, pictures and pairs go through the towers together, and where removed patches are left out of the sequence,
masks that keep equally many patches share a pass and cost less than the whole picture.

B pictures, C captions, G pairs (a picture and a caption each), K masks, M segments, W words, N patches, n patches kept, T tokens,
R rows of a pass, D width, E width of the embedding. True = kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from insight.errors import InputError
from insight.interpret.capture import evaluating
from insight.interpret.players import NOBODY
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import ImageFeatures, MultiModalTransformer, TextFeatures

TOKENS_PER_PASS = 8192
BLUR = 1 / 8  # standard deviation of the blur, as a part of the picture's side

Game = Callable[[Tensor], Tensor]  # masks over M players, (K, M) for all rows or (G, K, M) -> what each is worth, (G, K)
Removal = Callable[[Tensor], Tensor | None]
Score = Callable[[MultiModalTransformer, ImageFeatures, TextFeatures, Tensor], Tensor]


# --- what a removed patch shows; the function's name goes into the metric's ---
def token_drop(image_B3HW: Tensor) -> Tensor | None:
    """Nothing: it is left out of the sequence, the others keep their positions (https://arxiv.org/abs/2204.08945, section 4)."""
    return None


def pixels_zero(image_B3HW: Tensor) -> Tensor | None:
    """The mean colour of ImageNet, which is zero to the model."""
    return torch.zeros_like(image_B3HW)


def pixels_mean(image_B3HW: Tensor) -> Tensor | None:
    """The picture's own mean colour."""
    return image_B3HW.mean(dim=(2, 3), keepdim=True).expand_as(image_B3HW)


def pixels_blur(image_B3HW: Tensor) -> Tensor | None:
    """The picture, blurred by a Gaussian with a standard deviation of an eighth of its side."""
    sigma = BLUR * image_B3HW.shape[-1]
    size = min(2 * round(2 * sigma) + 1, 2 * image_B3HW.shape[-1] - 1)  # reflection at the edge has no more
    return functional.gaussian_blur(image_B3HW, [size, size], [sigma, sigma])


# --- what is asked of a pair ---
def similarity(model: MultiModalTransformer, image: ImageFeatures, text: TextFeatures, mask_RT: Tensor) -> Tensor:
    """Cosine of the embeddings, without the temperature, so that values of different epochs compare: (R,)."""
    return (image.embedding * text.embedding).sum(dim=-1)


def match(model: MultiModalTransformer, image: ImageFeatures, text: TextFeatures, mask_RT: Tensor) -> Tensor:
    """Logit of "this picture's caption" minus that of "another's", from the fusion: (R,).

    Raises:
        InputError: the model has no fusion.
    """
    if not isinstance(model, CrossAttentionMultiModalTransformer):
        raise InputError(f"a {type(model).__name__} has no matching head to explain: ask for the similarity, or train model=cross_attention")
    logits_R2 = model.match(text.tokens, mask_RT, image.tokens).float()
    return logits_R2[:, 1] - logits_R2[:, 0]


class MaskedPairs:
    """Pictures and captions of which parts are left out.

    The model is never changed: evaluation mode is left again, and another precision computes on a copy.

    Args:
        model: A dual encoder, with or without fusion.
        image_B3HW: Pictures as the model reads them.
        tokens_CT: Captions.
        mask_CT: True = a real token.
        segment_N: Label of every patch, from ``grid_segments`` or any other partition into patches; no patch is nobody's.
        word_CT: Label of every token, from ``token_words`` or ``whole_words``.
        removal: What a removed patch shows: ``token_drop``, ``pixels_zero``, ``pixels_mean``, ``pixels_blur`` or any function like these.
            A removed word is always left out; the others keep their positions.
        score: ``similarity`` or ``match``.
        dtype: Precision of the weights for these values, e.g. ``torch.bfloat16``; None = the model's own.
        tokens_per_pass: Tokens that go through a tower at once: memory against overhead.

    Raises:
        InputError: shapes that do not fit together, or a picture that is not finite.
    """

    def __init__(
        self,
        model: MultiModalTransformer,
        image_B3HW: Tensor,
        tokens_CT: Tensor,
        mask_CT: Tensor,
        segment_N: Tensor,
        word_CT: Tensor,
        removal: Removal = token_drop,
        score: Score = similarity,
        dtype: torch.dtype | None = None,
        tokens_per_pass: int = TOKENS_PER_PASS,
    ) -> None:
        patches = model.image.grid_size**2
        if segment_N.shape != (patches,) or int(segment_N.min()) < 0:
            raise InputError(f"segments: expected one label from 0 for each of the {patches} patches, got {tuple(segment_N.shape)}")
        if word_CT.shape != tokens_CT.shape or mask_CT.shape != tokens_CT.shape:
            raise InputError(
                f"tokens {tuple(tokens_CT.shape)}, their mask {tuple(mask_CT.shape)} and their words {tuple(word_CT.shape)} must have one shape"
            )
        if not bool(torch.isfinite(image_B3HW).all()):
            raise InputError("a picture holds NaN or infinity: look at how it was decoded and normalised")
        self.model = model if dtype is None else copy.deepcopy(model).to(dtype)
        self.removal = removal
        self.score = score
        self.tokens_per_pass = tokens_per_pass
        device, own = model.logit_scale.device, self.model.logit_scale.dtype
        self.image_B3HW = image_B3HW.to(device)
        self.tokens_CT, self.mask_CT = tokens_CT.to(device), mask_CT.to(device)
        self.segment_N, self.word_CT = segment_N.to(device), word_CT.to(device)
        self.num_segments, self.num_words = int(segment_N.max()) + 1, int(word_CT.max()) + 1
        self._dtype = own

    # --- values of pairs ---
    def values(self, picture_G: Tensor, caption_G: Tensor, image_kept: Tensor | None = None, text_kept: Tensor | None = None) -> Tensor:
        """What every pair is worth under every mask: (G, K) float32 on the CPU.

        Each tower sees a mask once per picture or caption, however many pairs share it; the fusion sees a pair of masks once.

        Args:
            picture_G: Row of the picture.
            caption_G: Row of the caption.
            image_kept: (K, M) for all pairs, or (G, K, M); None = the whole picture.
            text_kept: (K, W) for all pairs, or (G, K, W); None = the whole caption. Columns beyond a caption's words say nothing.

        Raises:
            InputError: no mask, masks that do not fit, a row that is not there, or a value that is not finite.
        """
        image_GKM, text_GKW = self._masks(picture_G, caption_G, image_kept, text_kept)
        pairs, masks = image_GKM.shape[:2]
        image_kept_UM, picture_U, image_R = _distinct(image_GKM, picture_G.to(image_GKM.device))
        text_kept_VW, caption_V, text_R = _distinct(text_GKW, caption_G.to(text_GKW.device))
        joint_J, joint_R = torch.unique(image_R * len(caption_V) + text_R, return_inverse=True)
        image_J, text_J = joint_J // len(caption_V), joint_J % len(caption_V)
        value_J = torch.empty(len(joint_J), device=joint_J.device)
        place_U = torch.full((len(picture_U),), -1, device=joint_J.device)
        with self._exact():
            text, mask_VT = self._texts(caption_V, text_kept_VW)
            for rows, image in self._images(picture_U, image_kept_UM):
                place_U.fill_(-1)[rows] = torch.arange(len(rows), device=rows.device)
                asked = (place_U[image_J] >= 0).nonzero()[:, 0]
                for some in asked.split(self._rows(image.tokens.shape[1])):
                    first, second = place_U[image_J[some]], text_J[some]
                    one, other = ImageFeatures(*(part[first] for part in image)), TextFeatures(*(part[second] for part in text))
                    value_J[some] = self.score(self.model, one, other, mask_VT[second])
        value_GK = value_J[joint_R].view(pairs, masks).cpu()
        return _finite(value_GK)

    # --- embeddings of one side ---
    def image_embeddings(self, picture: int, kept_KM: Tensor) -> Tensor:
        """The picture's embedding under every mask: (K, E) float32 on the CPU."""
        kept_1KM = self._checked(kept_KM, 1, self.num_segments, "segments")
        kept_UM, picture_U, inverse_K = _distinct(kept_1KM, torch.tensor([picture], device=kept_1KM.device))
        found = torch.empty(len(kept_UM), self.model.image_projection.out_features, device=kept_UM.device)
        with self._exact():
            for rows, image in self._images(picture_U, kept_UM):
                found[rows] = image.embedding
        return _finite(found[inverse_K].cpu())

    def text_embeddings(self, caption: int, kept_KW: Tensor) -> Tensor:
        """The caption's embedding under every mask: (K, E) float32 on the CPU."""
        kept_1KW = self._checked(kept_KW, 1, self.num_words, "words")
        kept_VW, caption_V, inverse_K = _distinct(kept_1KW, torch.tensor([caption], device=kept_1KW.device))
        with self._exact():
            text, _ = self._texts(caption_V, kept_VW)
        return _finite(text.embedding[inverse_K].cpu())

    # --- passes ---
    @contextmanager
    def _exact(self) -> Iterator[None]:
        """Evaluation mode in the named precision, whatever autocast is on outside."""
        with evaluating(self.model), torch.autocast(self.image_B3HW.device.type, enabled=False):
            yield

    def _images(self, picture_R: Tensor, kept_RM: Tensor) -> Iterator[tuple[Tensor, ImageFeatures]]:
        """Rows of each pass, and what the image tower finds in them.

        A patch reaches the tower through its own embedding alone, so replacing embeddings is replacing pixels.
        """
        tower = self.model.image
        image_B3HW = self.image_B3HW.to(self._dtype)
        kept_RN = kept_RM[:, self.segment_N]
        shown_BND = tower.embedding(image_B3HW)
        filling_B3HW = self.removal(image_B3HW)
        if filling_B3HW is not None:
            instead_BND = tower.embedding(filling_B3HW)
            kept_RN1 = torch.nn.functional.pad(kept_RN, (1, 0), value=True)[..., None]
            for rows in torch.arange(len(kept_RM), device=kept_RM.device).split(self._rows(shown_BND.shape[1])):
                picture_r = picture_R[rows]
                yield rows, self._read(torch.where(kept_RN1[rows], shown_BND[picture_r], instead_BND[picture_r]))
            return
        count_R = kept_RN.sum(dim=1)
        for kept in count_R.unique().tolist():
            for rows in (count_R == kept).nonzero()[:, 0].split(self._rows(1 + kept)):
                column_rn = 1 + kept_RN[rows].nonzero()[:, 1].view(len(rows), kept)
                column_rn = torch.nn.functional.pad(column_rn, (1, 0))  # the class token stays
                yield rows, self._read(shown_BND[picture_R[rows, None], column_rn])

    def _read(self, x_RND: Tensor) -> ImageFeatures:
        return self.model.image_features(self.model.image.encode(x_RND))

    def _texts(self, caption_R: Tensor, kept_RW: Tensor) -> tuple[TextFeatures, Tensor]:
        """What the text tower finds in the kept words, and the mask of the tokens that are left: (R, T)."""
        words = kept_RW.shape[1]
        word_RT = self.word_CT[caption_R]
        kept_RX = torch.nn.functional.pad(kept_RW, (0, 1), value=True)  # nobody's tokens look into the last column
        mask_RT = self.mask_CT[caption_R] & kept_RX.gather(1, torch.where(word_RT == NOBODY, words, word_RT))
        rows = self._rows(mask_RT.shape[1])
        parts = [
            self.model.encode_text(tokens, mask) for tokens, mask in zip(self.tokens_CT[caption_R].split(rows), mask_RT.split(rows), strict=True)
        ]
        return TextFeatures(*(torch.cat(part) for part in zip(*parts, strict=True))), mask_RT

    def _rows(self, tokens: int) -> int:
        return max(1, self.tokens_per_pass // tokens)

    # --- checks ---
    def _masks(self, picture_G: Tensor, caption_G: Tensor, image_kept: Tensor | None, text_kept: Tensor | None) -> tuple[Tensor, Tensor]:
        if len(picture_G) != len(caption_G) or not len(picture_G):
            raise InputError(f"pairs: {len(picture_G)} pictures and {len(caption_G)} captions; give one of each for at least one pair")
        for name, row_G, rows in (("picture", picture_G, len(self.image_B3HW)), ("caption", caption_G, len(self.tokens_CT))):
            if int(row_G.min()) < 0 or int(row_G.max()) >= rows:
                raise InputError(f"pairs: {name} row {int(row_G.max())} is asked for, but there are {rows} (rows count from 0)")
        masks = {given.shape[-2] for given in (image_kept, text_kept) if given is not None and given.ndim >= 2} or {1}
        if len(masks) != 1:
            raise InputError(f"a joint mask has a part for the picture and one for the caption, as many of each, but got {sorted(masks)}")
        count = masks.pop()
        image_kept = torch.ones(count, self.num_segments, dtype=torch.bool) if image_kept is None else image_kept
        text_kept = torch.ones(count, self.num_words, dtype=torch.bool) if text_kept is None else text_kept
        pairs = len(picture_G)
        return self._checked(image_kept, pairs, self.num_segments, "segments"), self._checked(text_kept, pairs, self.num_words, "words")

    def _checked(self, kept: Tensor, pairs: int, players: int, what: str) -> Tensor:
        """(K, M) or (G, K, M) -> (G, K, M) on the model's device."""
        kept = kept.expand(pairs, -1, -1) if kept.ndim == 2 else kept
        if kept.dtype != torch.bool or kept.ndim != 3 or len(kept) != pairs or kept.shape[1] < 1 or kept.shape[2] != players:
            raise InputError(
                f"masks over {what}: expected bool (masks, {players}) or ({pairs}, masks, {players}) with at least one mask, "
                f"got {kept.dtype} {tuple(kept.shape)}"
            )
        return kept.to(self.image_B3HW.device)


def _distinct(kept_GKM: Tensor, owner_G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each owner's different masks (U, M), whose they are (U,), and for each of the G * K rows which of them it is."""
    pairs, masks, players = kept_GKM.shape
    kept_RM = kept_GKM.reshape(pairs * masks, players)
    owner_R = owner_G.repeat_interleave(masks)
    words = [(part.long() << torch.arange(part.shape[1], device=part.device)).sum(dim=1) for part in kept_RM.split(62, dim=1)]
    key_RX = torch.stack([owner_R, *words], dim=1)
    key_UX, inverse_R = torch.unique(key_RX, dim=0, return_inverse=True)
    some_U = torch.empty(len(key_UX), dtype=torch.int64, device=key_RX.device)
    some_U[inverse_R] = torch.arange(len(key_RX), device=key_RX.device)  # any of equal rows will do
    return kept_RM[some_U], owner_R[some_U], inverse_R


def _finite(value: Tensor) -> Tensor:
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        raise InputError(f"{bad} of {value.numel()} values under masks are NaN or infinite: the model has diverged; explain an earlier checkpoint")
    return value
