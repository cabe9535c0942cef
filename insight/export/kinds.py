"""Models that are ready: what a bundle becomes when it is read, one class for each kind of model.

B pictures, C texts, P pairs, E width of the embedding, K classes, A answers, T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from insight.captions import write_captions
from insight.continuations import Writing, write_texts
from insight.data.images import ImageTransform
from insight.data.language import TextCodec
from insight.data.pretrained_text import read_tokenizer
from insight.data.text import StoredTokenizer, Tokenizer
from insight.errors import InputError
from insight.models.classifier import ImageClassifier
from insight.models.clip import ClipTransformer
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.language_model import LanguageModel
from insight.models.multimodal import MultiModalTransformer
from insight.models.siglip import SiglipTransformer

Picture = str | Path | Image.Image
TOKENIZER, PREPROCESSING, PICTURE, LABELS = "tokenizer.json", "preprocessing.json", "example.png", "labels.json"


@dataclasses.dataclass(frozen=True)
class Bundle(ABC):
    """A model that is ready. Inputs go to the device that the model is on.

    Args:
        model: In evaluation mode, nothing trains.
        tokenizer: The one it was trained with; None: it reads no text.
        transform: From a picture to what the model reads; None: it sees none.
        labels: What its head chooses from, in the head's order: classes or answers; empty: it has no such head.
        config: The whole config of the run.
        data: ``fingerprint``, ``splits`` (sizes) and ``description`` of the data that it saw.
        signature: Shapes and types of inputs and outputs, and the example's text.
        example: What the model said of the example where the bundle was written, by the names of the signature's outputs.
        picture: The example's picture; None: the model sees none.
        folder: Where it was read from.
        sha256: Of the manifest, and so of the whole bundle.
    """

    files: ClassVar[tuple[str, ...]]  # that this kind has beside those of every bundle

    model: Any
    tokenizer: Any
    transform: Any
    labels: tuple[str, ...]
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    signature: Mapping[str, Any]
    example: Mapping[str, Tensor]
    picture: Any
    folder: Path
    sha256: str

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    # --- of the kind ---
    @classmethod
    def num_labels(cls, model: nn.Module) -> int:
        """How many labels the model's head chooses from; 0: it has no such head."""
        return 0

    @classmethod
    def read_tokenizer(cls, text: str) -> StoredTokenizer:
        """From its JSON.

        Raises:
            InputError: not one of this kind.
        """
        return read_tokenizer(text)

    @abstractmethod
    def check_tokenizer(self) -> None:
        """
        Raises:
            InputError: it is not the model's.
        """

    @abstractmethod
    def describe(self, picture: Picture | None, text: str) -> dict[str, Tensor]:
        """All that the model says of one picture, one text, or both, by the names of the signature's outputs."""

    @abstractmethod
    def shapes(self) -> tuple[dict[str, str], dict[str, Any], dict[str, list[str]]]:
        """For the signature: what its letters mean, its inputs, and with which letters the shape of each output of ``describe`` begins."""

    @abstractmethod
    def use(self) -> None:
        """What the model is for, once, on the example: what a latency is measured of."""

    # --- the example ---
    def example_error(self) -> float:
        """Largest difference between what the model says of the example here, and what it said where the bundle was written."""
        here = self.describe(self.picture, self.signature["text"])
        return max(float((value.cpu() - self.example[name]).abs().max()) for name, value in here.items())


class SeesPictures(Bundle):
    """What the kinds share that read pictures."""

    transform: ImageTransform
    picture: Image.Image

    def pixels(self, pictures: Sequence[Picture]) -> Tensor:
        """Files or opened pictures -> (B, 3, H, W) as the model reads them."""
        if not pictures:
            raise InputError("no picture was given: give at least one")
        ready = [self.transform.prepare(one) if isinstance(one, Image.Image) else self.transform.open(one) for one in pictures]
        return torch.stack(ready).to(self.device)

    def image_shape(self) -> dict[str, Any]:
        """Of the signature."""
        size = self.transform.image_size
        return {"image": {"dtype": "float32", "shape": ["B", 3, size, size]}}


class ImageTextBundle(SeesPictures):
    """Encodes pictures and captions and says how well they fit; with a decoder it writes captions, with an answer head it answers."""

    files = (TOKENIZER, PREPROCESSING, PICTURE)
    model: MultiModalTransformer
    tokenizer: Tokenizer

    @property
    def matches(self) -> bool:
        """Whether the model has a head that looks at a picture and a caption together."""
        return isinstance(self.model, CrossAttentionMultiModalTransformer)

    @classmethod
    def num_labels(cls, model: nn.Module) -> int:
        head = getattr(model, "answer_head", None)
        return 0 if head is None else head.out_features

    def check_tokenizer(self) -> None:
        self.model.check_tokenizer(self.tokenizer)

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions -> tokens (C, T), mask (C, T)."""
        if isinstance(texts, str) or not texts:
            raise InputError("give a list of captions, at least one")
        tokens, mask = self.tokenizer.encode(texts, self.model.text.context_length)
        return tokens.to(self.device), mask.to(self.device)

    @torch.no_grad()
    def encode_images(self, pictures: Sequence[Picture], batch_size: int = 64) -> Tensor:
        """Embeddings (B, E) of length 1."""
        return torch.cat([self.model.encode_image(self.pixels(part)).embedding for part in _parts(pictures, batch_size)])

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Embeddings (C, E) of length 1."""
        tokens, mask = self.tokens(texts)
        parts = zip(tokens.split(batch_size), mask.split(batch_size), strict=True)
        return torch.cat([self.model.encode_text(*part).embedding for part in parts])

    def similarity(self, pictures: Sequence[Picture], texts: Sequence[str]) -> Tensor:
        """Cosine of every picture with every caption: (B, C)."""
        return self.encode_images(pictures) @ self.encode_texts(texts).T

    @torch.no_grad()
    def match(self, pictures: Sequence[Picture], texts: Sequence[str]) -> Tensor:
        """Probability that each picture belongs to the caption beside it, by the matching head: (P,).

        Raises:
            InputError: the model has no such head, or the lists differ in length.
        """
        model = self._fusing("has no matching head: use similarity(pictures, texts)")
        text, mask, image = self._pairs(pictures, texts, "captions", "match scores pairs")
        return model.match(text, mask, image).softmax(dim=-1)[:, 1]

    @torch.no_grad()
    def answer(self, pictures: Sequence[Picture], questions: Sequence[str]) -> Tensor:
        """Probability of each of ``labels`` for the question about the picture beside it: (P, A).

        Raises:
            InputError: the model answers no questions, or the lists differ in length.
        """
        model = self._fusing("answers no questions")
        text, mask, image = self._pairs(pictures, questions, "questions", "each question is asked of the picture beside it")
        return model.answer(text, mask, image).softmax(dim=-1)

    @torch.no_grad()
    def write(self, pictures: Sequence[Picture], beams: int = 1, batch_size: int = 64) -> list[str]:
        """A caption for each picture, greedily or by so many beams.

        Raises:
            InputError: the model writes no captions, or ``beams`` below 1.
        """
        model = self._fusing("writes no captions")
        tokens = (model.encode_image(self.pixels(part)).tokens for part in _parts(pictures, batch_size))
        return [text for part in tokens for text in write_captions(model, self.tokenizer, part, beams)]

    @torch.no_grad()
    def describe(self, picture: Picture | None, text: str) -> dict[str, Tensor]:
        assert picture is not None, "this kind has a picture"
        outputs = {"image_embedding": self.encode_images([picture]), "text_embedding": self.encode_texts([text])}
        outputs["similarity"] = outputs["image_embedding"] @ outputs["text_embedding"].T
        if isinstance(self.model, CrossAttentionMultiModalTransformer):
            outputs["match"] = self.match([picture], [text])
            if self.model.answer_head is not None:
                outputs["answer"] = self.answer([picture], [text])
            if self.model.decoder is not None:
                tokens, mask = self.tokens([text])
                logits = self.model.write(tokens[:, :-1], self.model.encode_image(self.pixels([picture])).tokens).logits
                outputs["caption_log_probability"] = _log_probability(logits, tokens, mask)
        return outputs

    def shapes(self) -> tuple[dict[str, str], dict[str, Any], dict[str, list[str]]]:
        length = self.model.text.context_length
        text = {"tokens": {"dtype": "int64", "shape": ["C", length]}, "token_mask": {"dtype": "bool", "shape": ["C", length]}}
        first = {"image_embedding": ["B"], "text_embedding": ["C"], "similarity": ["B", "C"]}
        parts = {"match": "match_head", "answer": "answer_head", "caption_log_probability": "decoder"}
        first |= {name: ["P"] for name, part in parts.items() if getattr(self.model, part, None) is not None}
        return {"B": "pictures", "C": "captions", "P": "pairs"}, self.image_shape() | text, first

    def use(self) -> None:
        self.similarity([self.picture], [self.signature["text"]])

    def _fusing(self, lacking: str) -> CrossAttentionMultiModalTransformer:
        if not isinstance(self.model, CrossAttentionMultiModalTransformer):
            raise InputError(f"{type(self.model).__name__} {lacking}")
        return self.model

    def _pairs(self, pictures: Sequence[Picture], texts: Sequence[str], what: str, why: str) -> tuple[Tensor, Tensor, Tensor]:
        """Text tokens (P, T, D), their mask (P, T) and image tokens (P, N, D)."""
        if len(pictures) != len(texts):
            raise InputError(f"{len(pictures)} pictures and {len(texts)} {what}: {why}, so give as many of each")
        tokens, mask = self.tokens(texts)
        return self.model.encode_text(tokens, mask).tokens, mask, self.model.encode_image(self.pixels(pictures)).tokens


class ClassifierBundle(SeesPictures):
    """Names the class of a picture."""

    files = (PREPROCESSING, PICTURE, LABELS)
    model: ImageClassifier

    @classmethod
    def num_labels(cls, model: nn.Module) -> int:
        head: Any = model.head
        return head.out_features

    def check_tokenizer(self) -> None:
        """It has none."""

    @torch.no_grad()
    def classify(self, pictures: Sequence[Picture], batch_size: int = 64) -> Tensor:
        """Probability of each of ``labels``: (B, K)."""
        return torch.cat([self.model(self.pixels(part)).logits.softmax(dim=-1) for part in _parts(pictures, batch_size)])

    def name(self, pictures: Sequence[Picture]) -> list[str]:
        """The most probable class of each."""
        return [self.labels[index] for index in self.classify(pictures).argmax(dim=-1).tolist()]

    def describe(self, picture: Picture | None, text: str) -> dict[str, Tensor]:
        assert picture is not None, "this kind has a picture"
        return {"probabilities": self.classify([picture])}

    def shapes(self) -> tuple[dict[str, str], dict[str, Any], dict[str, list[str]]]:
        return {"B": "pictures"}, self.image_shape(), {"probabilities": ["B"]}

    def use(self) -> None:
        self.classify([self.picture])


class LanguageBundle(Bundle):
    """Says how probable a text is, and writes texts."""

    files = (TOKENIZER,)
    model: LanguageModel
    tokenizer: TextCodec

    @classmethod
    def read_tokenizer(cls, text: str) -> TextCodec:
        return TextCodec.from_json(text)

    def check_tokenizer(self) -> None:
        if self.tokenizer.size > self.model.embedding.vocab_size:
            raise InputError(f"it has {self.tokenizer.size} entries, the model {self.model.embedding.vocab_size} token rows")

    def tokens(self, text: str) -> Tensor:
        """The whole text with its start and its end: (1, T).

        Raises:
            InputError: longer than the model's context.
        """
        ids = [self.tokenizer.start, *self.tokenizer.ids([text])[0], self.tokenizer.end]
        if len(ids) > self.model.context_length + 1:  # the end is named, not read
            raise InputError(f"a text of {len(ids)} tokens goes past the model's context_length={self.model.context_length}: cut it")
        return torch.tensor([ids], device=self.device)

    @torch.no_grad()
    def log_probability(self, texts: Sequence[str]) -> Tensor:
        """Natural logarithm of the probability of each text, its end included: (C,)."""
        if isinstance(texts, str) or not texts:
            raise InputError("give a list of texts, at least one")
        tokens = [self.tokens(text) for text in texts]
        return torch.cat([_log_probability(self.model(one[:, :-1]).logits, one, torch.ones_like(one, dtype=torch.bool)) for one in tokens])

    @torch.no_grad()
    def write(self, wanted: Writing) -> list[str]:
        """Whole texts, e.g. of ``Writing("a red circle", num=3)``.

        Raises:
            InputError: a prompt that is too long for the context, or a setting out of range.
        """
        return write_texts(self.model, self.tokenizer, wanted)

    @torch.no_grad()
    def describe(self, picture: Picture | None, text: str) -> dict[str, Tensor]:
        logits = self.model(self.tokens(text)[:, :-1]).logits
        return {"log_probability": self.log_probability([text]), "end_logits": logits[:, -1]}

    def shapes(self) -> tuple[dict[str, str], dict[str, Any], dict[str, list[str]]]:
        inputs = {"tokens": {"dtype": "int64", "shape": ["C", f"T <= {self.model.context_length}"]}}
        return {"C": "texts", "T": "tokens"}, inputs, {"log_probability": ["C"], "end_logits": ["C"]}

    def use(self) -> None:
        self.log_probability([self.signature["text"]])


KINDS: dict[type[nn.Module], type[Bundle]] = {
    MultiModalTransformer: ImageTextBundle,
    CrossAttentionMultiModalTransformer: ImageTextBundle,
    ClipTransformer: ImageTextBundle,
    SiglipTransformer: ImageTextBundle,
    ImageClassifier: ClassifierBundle,
    LanguageModel: LanguageBundle,
}


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Of at most ``size``; one, empty, of nothing."""
    return [items[start : start + size] for start in range(0, max(len(items), 1), size)]


def _log_probability(logits_CTV: Tensor, tokens_CT: Tensor, mask_CT: Tensor) -> Tensor:
    """Of every token after the first, given those before it: (C,). The logits are one place shorter than the tokens."""
    named_CT = logits_CTV.float().log_softmax(dim=-1).gather(-1, tokens_CT[:, 1:, None])[..., 0]
    return (named_CT * mask_CT[:, 1:]).sum(dim=-1)
