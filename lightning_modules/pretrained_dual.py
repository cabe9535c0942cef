"""Dual encoders that begin with somebody else's weights, as LightningModules: CLIP, SigLIP."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from insight.data.pretrained_text import load_tokenizer
from insight.data.text import Tokenizer
from insight.errors import InputError
from insight.models.clip import ClipTransformer, DualShape
from insight.models.clip_weights import clip_model
from insight.models.dual_checkpoint import locate
from insight.models.siglip import SiglipTransformer
from insight.models.siglip_weights import siglip_model
from insight.towers.lora import Lora, adapt
from lightning_modules.base import ImageTextModule


class PretrainedDualModule(ImageTextModule):
    """What the families share: the checkpoint's own tokenizer is the data's, and its shape stays with the run.

    Args:
        architecture: Class of the model, for a run that goes on without its checkpoint.
        begin: What makes a model of it from a checkpoint, e.g. ``clip_model``.
        weights: As the families say it, and all that follows.
    """

    def __init__(
        self,
        architecture: type[ClipTransformer] | type[SiglipTransformer],
        begin: Callable[..., ClipTransformer | SiglipTransformer],
        weights: str | None,
        vocab_size: int,
        image_size: int,
        context_length: int,
        tokenizer: str | None,
        shape: DualShape | None,
        lora: Lora | None,
    ) -> None:
        own: Tokenizer | None = None
        place = ""
        if weights is None:
            model = architecture(vocab_size, image_size, context_length, known_shape(shape))
        else:
            check_place(weights)
            place = tokenizer or tokenizer_place(weights)
            own = checked_tokenizer(place, vocab_size)
            model = begin(weights, own, image_size, context_length, shape)
        shape = model.shape
        adapt(model, lora)
        super().__init__(model)
        self._shape, self._tokenizer, self._tokenizer_place = shape, own, place

    @property
    def settled(self) -> dict[str, Any]:
        return {"shape": dataclasses.asdict(self._shape)}

    def check_data(self, data: Any) -> None:
        """The same ids mean other words in another tokenizer."""
        super().check_data(data)
        if self._tokenizer is not None and data.tokenizer.to_json() != self._tokenizer.to_json():
            raise InputError(f"the data's tokenizer is not that of the checkpoint: data.init_args.tokenizer={self._tokenizer_place}")


class ClipModule(PretrainedDualModule):
    """Trains a CLIP from a checkpoint of transformers or open_clip, in this project's own blocks.

    Args:
        weights: A folder with ``config.json`` or ``open_clip_config.json`` and the weights, or ``hf-hub:OWNER/MODEL``. Null: none are read,
            to test a finished run (its checkpoint holds them) whose folder has gone.
        vocab_size: Entries of the checkpoint's tokenizer, as this project numbers them: 49410 of OpenAI's.
        image_size: Side of the square picture, in pixels; positions are resampled where the checkpoint has another.
        context_length: Most tokens of a caption, at most the checkpoint's.
        tokenizer: Folder, file or ``hf-hub:`` name of the checkpoint's tokenizer; null: it lies beside the weights.
        shape: Sizes of the towers; null: those of the checkpoint. A run's config.yaml has them.
        lora: Adapters of low rank, e.g. of ``targets: [attention.query, attention.key_value]``, which a stage trains by the pattern
            ``*lora_*``; null: none.
    """

    def __init__(
        self,
        weights: str | None,
        vocab_size: int,
        image_size: int = 224,
        context_length: int = 77,
        tokenizer: str | None = None,
        shape: DualShape | None = None,
        lora: Lora | None = None,
    ) -> None:
        super().__init__(ClipTransformer, clip_model, weights, vocab_size, image_size, context_length, tokenizer, shape, lora)


class SiglipModule(PretrainedDualModule):
    """Trains a SigLIP from a checkpoint of transformers or open_clip, in this project's own blocks.

    Args:
        weights: As of ``ClipModule``.
        vocab_size: Entries of the checkpoint's tokenizer, as this project numbers them: 32003 of the English SigLIP's.
        image_size: Side of the square picture, in pixels; positions are resampled where the checkpoint has another.
        context_length: Tokens of every text: the checkpoint's.
        tokenizer: Folder, file or ``hf-hub:`` name of the checkpoint's tokenizer; null: it lies beside the weights.
        shape: Sizes of the towers; null: those of the checkpoint. A run's config.yaml has them.
        lora: As of ``ClipModule``.
    """

    def __init__(
        self,
        weights: str | None,
        vocab_size: int,
        image_size: int = 224,
        context_length: int = 64,
        tokenizer: str | None = None,
        shape: DualShape | None = None,
        lora: Lora | None = None,
    ) -> None:
        super().__init__(SiglipTransformer, siglip_model, weights, vocab_size, image_size, context_length, tokenizer, shape, lora)


def known_shape(shape: DualShape | None) -> DualShape:
    """
    Raises:
        InputError: it is not known.
    """
    if shape is None:
        raise InputError(
            "model.init_args.weights: give a checkpoint (a folder, or hf-hub:OWNER/MODEL); null is for a finished run, whose config.yaml "
            "has model.init_args.shape"
        )
    return shape


def check_place(weights: str) -> None:
    """
    Raises:
        InputError: there are no weights.
    """
    try:
        locate(weights)
    except InputError as error:
        raise InputError(f"{error}; a finished run is tested without: --model.init_args.weights=null") from error


def tokenizer_place(weights: str) -> str:
    """Where a checkpoint's tokenizer is when nobody says where: beside the weights."""
    return str(Path(weights).parent) if Path(weights).is_file() else weights


def checked_tokenizer(place: str, vocab_size: int) -> Tokenizer:
    """
    Raises:
        InputError: none there, or one of another size.
    """
    try:
        tokenizer = load_tokenizer(place)
    except InputError as error:
        raise InputError(f"{error}; where the weights have none beside them, give model.init_args.tokenizer") from error
    if tokenizer.size != vocab_size:
        raise InputError(
            f"model.init_args.vocab_size={vocab_size}, but the checkpoint's tokenizer has {tokenizer.size} entries: "
            f"data.init_args.vocab_size={tokenizer.size}, and the model's with it"
        )
    return tokenizer
