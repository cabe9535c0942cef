"""Towers of other libraries, as a MultiModalTransformer reads them.

B pictures, C captions, N = 1 + regions image tokens (row 0 = the pooled vector), R regions, T text tokens, W width of the tower,
V vocabulary.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from insight.data.images import MEAN, STD
from insight.data.text import Tokenizer
from insight.digest import state_digest
from insight.errors import InputError
from insight.models.text_transformer import TextOutput
from insight.models.vision_transformer import VisionOutput
from insight.nn.pool import Pool


class ImageTower(nn.Module):
    """An image encoder of another library: a grid of regions, and one vector for the whole picture.

    A subclass builds the network, says in ``look`` how to read it, and calls ``measure`` when it is complete. Weights stay as they were
    handed in. Batch norm always uses its stored statistics, also where the tower is fine-tuned: a batch of a few pictures has none to give.

    Pictures come normalised as ``insight.data.images`` does it; what the network was trained with (``mean``, ``std``) is applied here.

    Args:
        network: The encoder.
        image_size: Side of the square picture, in pixels.
        mean: Of the network's own preprocessing, RGB over 0..1.
        std: The same.
        pooling: ``own``: the network's vector for the whole picture; ``mean``: the mean of its regions.
    """

    grid_size: int  # regions per side
    dim: int  # W
    mean_pooled: bool  # the pooled vector is the mean of the regions

    def __init__(
        self, network: nn.Module, image_size: int, mean: tuple[float, ...], std: tuple[float, ...], pooling: Literal["own", "mean"] = "own"
    ) -> None:
        super().__init__()
        self.network = network
        self.image_size = image_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.pooling = pooling
        self.num_prefix = 1
        self.blocks = nn.ModuleList()  # no attention of this project, so none that could be recorded
        self.norm = nn.Identity()

    @abstractmethod
    def look(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Regions row by row (B, R, W) and the network's own pooled vector (B, W'); None: it has none."""

    @torch.no_grad()
    def measure(self) -> None:
        """Find width, grid and kind of pooling by one pass over noise; no random generator of others is touched.

        Raises:
            InputError: the regions form no square, or the network's own vector is not as wide as its regions.
        """
        self.eval()
        position = next(self.network.parameters())
        noise = torch.rand(1, 3, self.image_size, self.image_size, generator=torch.Generator().manual_seed(0)).to(position)
        try:
            grid_BRW, own_BW = self.look(self.normalised(noise))
        except (RuntimeError, ValueError, AssertionError) as error:  # the libraries' ways to say that a size does not fit
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{self.title} does not read pictures of {self.image_size} pixels ({message}): set its image_size") from error
        self.dim, self.grid_size = grid_BRW.shape[-1], math.isqrt(grid_BRW.shape[1])
        if self.grid_size**2 != grid_BRW.shape[1]:
            raise InputError(f"{self.title}: its {grid_BRW.shape[1]} regions form no square, so no map of them can be drawn")
        if self.pooling == "own" and (own_BW is None or own_BW.shape[-1] != self.dim):
            has = "has no vector of its own" if own_BW is None else f"'s own vector has {own_BW.shape[-1]} channels"
            raise InputError(f"{self.title} {has}, its regions have {self.dim} channels: set its pooling: mean")
        mean_BW = grid_BRW.mean(dim=1)
        self.mean_pooled = self.pooling == "mean" or (own_BW is not None and torch.allclose(own_BW, mean_BW, atol=1e-4, rtol=1e-3))
        self.pool = Pool("mean" if self.mean_pooled else "first", self.dim, heads=1, skip=1)

    @property
    def title(self) -> str:
        return type(self).__name__

    def normalised(self, image_B3HW: Tensor) -> Tensor:
        """From this project's normalisation to the network's."""
        if self.mean == MEAN and self.std == STD:
            return image_B3HW
        own_mean, own_std, mean, std = (image_B3HW.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std, MEAN, STD))
        return (image_B3HW * std + mean - own_mean) / own_std

    def embed(self, image: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) -> features (B, 1 + R, W), row 0 = the pooled vector. Features that were computed before pass as they are.

        Raises:
            InputError: neither pictures of ``image_size`` nor features of this tower.
        """
        if image.ndim == 3 and image.shape[-1] == self.dim:
            return image
        if image.ndim != 4 or image.shape[1:] != (3, self.image_size, self.image_size):
            raise InputError(
                f"the model reads pictures of shape (B, 3, {self.image_size}, {self.image_size}), but got {tuple(image.shape)}: "
                "make the data's image_size and the model's image_size equal"
            )
        grid_BRW, own_BW = self.look(self.normalised(image))
        pooled_BW = own_BW if self.pooling == "own" and own_BW is not None else grid_BRW.mean(dim=1)
        return torch.cat([pooled_BW[:, None], grid_BRW], dim=1)

    def rotation(self, x_BNW: Tensor) -> None:
        """No rotary positions of this project."""

    def start(self, x_BNW: Tensor) -> Tensor:
        """What lies between ``embed`` and the blocks: nothing."""
        return x_BNW

    def read(self, x_BNW: Tensor, mask_BN: Tensor | None = None, place_BN: Tensor | None = None) -> VisionOutput:
        """What follows ``embed``: nothing, for the whole picture. Regions may be left out, by their rows or by a mask (True = may be read):
        a pooled vector that is the mean of the regions is then the mean of those that are left."""
        complete = mask_BN is None and x_BNW.shape[1] == 1 + self.grid_size**2
        if complete or x_BNW.shape[1] == 1 or not self.mean_pooled:
            return self.finish(x_BNW)
        return self.finish(torch.cat([self.pool(x_BNW, mask_BN)[:, None], x_BNW[:, 1:]], dim=1))

    def finish(self, x_BNW: Tensor, mask_BN: Tensor | None = None) -> VisionOutput:
        return VisionOutput(tokens=x_BNW, pooled=x_BNW[:, 0])

    def forward(self, image: Tensor) -> VisionOutput:
        """Pictures (B, 3, H, W), or features (B, N, W) that ``embed`` made."""
        return self.read(self.embed(image))

    def train(self, mode: bool = True) -> ImageTower:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    @abstractmethod
    def rebuilding(self) -> dict[str, Any]:
        """Arguments that build the same network with random weights, whatever files or hub the own ones came from."""

    def features_digest(self) -> str:
        """Changes with anything that could change the features."""
        facts = f"{self.title} {self.image_size} {self.mean} {self.std} {self.pooling} {self.dim} {self.grid_size}"
        return f"{state_digest(self.state_dict())} {facts}"


class TextTower(nn.Module):
    """A text encoder of another library. Token ids are those of this project's tokenizers, where 0..3 are special.

    Args:
        network: The encoder; takes ``inputs_embeds`` and ``attention_mask``.
        library_id: (V,) the library's id of each of our token ids.
        tokenizer_place: Where its tokenizer is, for messages.
        context_length: Most tokens of a caption.
        dim: W.
        pooling: ``mean`` of the real tokens, the ``first`` or the ``last`` real one.
    """

    def __init__(
        self,
        network: Any,
        library_id: Tensor,
        tokenizer_place: str,
        context_length: int,
        dim: int,
        pooling: Literal["mean", "first", "last"] = "mean",
    ) -> None:
        super().__init__()
        self.network = network
        self.tokenizer_place = tokenizer_place
        self.register_buffer("library_id", library_id)
        self.context_length, self.dim = context_length, dim
        self.blocks = nn.ModuleList()
        self.norm = nn.Identity()
        self.pool = Pool(pooling, dim, heads=1)

    @property
    def vocab_size(self) -> int:
        return len(self.library_id)  # type: ignore[arg-type]

    @abstractmethod
    def rebuilding(self) -> dict[str, Any]:
        """Arguments that build the same network with random weights, but for ``tokenizer``, whatever the own ones came from."""

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """
        Raises:
            InputError: the token ids are not those that the network was trained with.
        """
        if tokenizer.library_ids != self.library_id.tolist():  # type: ignore[operator]
            raise InputError(
                f"the tokenizer ({tokenizer.size} entries) is not the one of the text tower ({self.vocab_size}): "
                f"data.init_args.tokenizer={self.tokenizer_place}"
            )

    def embed(self, tokens_CT: Tensor) -> Tensor:
        """(C, T) -> (C, T, W): what the network adds positions to."""
        if tokens_CT.shape[1] > self.context_length:
            raise InputError(
                f"captions of {tokens_CT.shape[1]} tokens are longer than the model's context_length={self.context_length}: "
                f"cut them in the data: data.init_args.context_length={self.context_length}"
            )
        return self.network.get_input_embeddings()(self.library_id[tokens_CT])  # type: ignore[index]

    def read(self, x_CTW: Tensor, mask_CT: Tensor) -> TextOutput:
        """What follows ``embed``; True = a real token."""
        output = self.network(inputs_embeds=x_CTW, attention_mask=mask_CT.long())
        return self.finish(output.last_hidden_state, mask_CT)

    def rotation(self, x_CTW: Tensor) -> None:
        """No rotary positions of this project."""

    def start(self, x_CTW: Tensor) -> Tensor:
        """What lies between ``embed`` and the blocks: nothing."""
        return x_CTW

    def finish(self, x_CTW: Tensor, mask_CT: Tensor) -> TextOutput:
        return TextOutput(x_CTW, self.pool(x_CTW, mask_CT))

    def forward(self, tokens_CT: Tensor, mask_CT: Tensor) -> TextOutput:
        return self.read(self.embed(tokens_CT), mask_CT)
