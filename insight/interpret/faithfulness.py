"""Does a map say what the model does? Protocol v1; a change of any rule below is a new version.

- Deletion takes the players that the map calls important away first, insertion brings them first. The figure is the mean value along the
  way (trapezoids over the part of the players that is gone or there); how a removed player looks is part of the name.
- Equal importance is put in order by lot, the same lot for the same seed.
- Randomisation: the map must change when the weights do. Weights are shuffled within each tensor, from the output to the input, and stay
  shuffled; a method that draws lots draws others each time. Figure: rank correlation with the map of the trained model. A map without a
  rank (constant, NaN) counts as one that did not change.
- Infidelity and sensitivity are captum's.

G games (rows), K masks, M players, X points of a curve, S stages of the cascade.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from captum import metrics as captum_metrics
from torch import Tensor, nn

from insight.errors import InputError
from insight.interpret.masks import Game, Removal

PROTOCOL = "v1"
LARGEST_RHO = 0.25  # of a method that passes: mean over rows, everything shuffled


# --- deletion and insertion ---
class Curve(NamedTuple):
    """Values along the way."""

    part_GX: Tensor  # of the players that are gone (deletion) or there (insertion), from 0 to 1
    value_GX: Tensor

    @property
    def area_G(self) -> Tensor:
        """Mean value along the way. Deletion: lower is better; insertion: higher."""
        return torch.trapezoid(self.value_GX, self.part_GX, dim=1)


def deletion(game: Game, importance_GM: Tensor, steps: int, seed: int = 0, present_GM: Tensor | None = None) -> Curve:
    """Take players away, the most important first (https://arxiv.org/abs/1806.07421, section 3.3).

    Args:
        game: Values of G rows under masks over M players.
        importance_GM: The map.
        steps: Points of the curve beside its start.
        present_GM: True = this row has the player (captions have unequal numbers of words); None = all.

    Raises:
        InputError: no step, a map that is not finite, or a row without players.
    """
    going_GXM, part_GX = _first(importance_GM, steps, seed, present_GM)
    return Curve(part_GX, game(~going_GXM))


def insertion(game: Game, importance_GM: Tensor, steps: int, seed: int = 0, present_GM: Tensor | None = None) -> Curve:
    """Bring players in, the most important first; otherwise as ``deletion``."""
    coming_GXM, part_GX = _first(importance_GM, steps, seed, present_GM)
    return Curve(part_GX, game(coming_GXM))


def curve_name(kind: str, side: str, removal: Removal) -> str:
    """A curve's name as a metric.

    >>> from insight.interpret.masks import pixels_blur
    >>> curve_name("deletion", "image", pixels_blur)
    'deletion_image_pixels_blur_v1'
    """
    return f"{kind}_{side}_{removal.__name__}_{PROTOCOL}"


def _first(importance_GM: Tensor, steps: int, seed: int, present_GM: Tensor | None) -> tuple[Tensor, Tensor]:
    """The most important players at every point (G, X, M), and what part of all they are (G, X)."""
    if steps < 1:
        raise InputError(f"steps={steps}: a curve needs at least 1, e.g. 16")
    importance_GM = importance_GM.detach().float().cpu()
    present_GM = torch.ones_like(importance_GM, dtype=torch.bool) if present_GM is None else present_GM.cpu()
    count_G = present_GM.sum(dim=1)
    if not bool(torch.isfinite(importance_GM[present_GM]).all()):
        raise InputError("the map holds NaN or infinity, which puts nothing in order; look at the method that made it")
    if int(count_G.min()) < 1:
        raise InputError(f"row {int(count_G.argmin())} has nothing that could be left out")
    lot_M = torch.randperm(importance_GM.shape[1], generator=torch.Generator().manual_seed(seed))
    key_GM = torch.where(present_GM, importance_GM, -torch.inf)
    order_GM = lot_M[key_GM[:, lot_M].argsort(dim=1, descending=True, stable=True)]
    place_GM = order_GM.argsort(dim=1)
    number_GX = (count_G[:, None] * torch.arange(steps + 1) / steps).round().long()
    return place_GM[:, None] < number_GX[..., None], number_GX / count_G[:, None]


# --- randomisation ---
class Randomisation(NamedTuple):
    """How like the trained model's maps are those of a model whose weights are shuffled, layer after layer from the output."""

    stages: tuple[str, ...]  # what is shuffled in addition
    rho_SG: Tensor  # Spearman's rank correlation; NaN = a map without a rank

    @property
    def rho(self) -> float:
        """Mean over rows with everything shuffled; a map without a rank counts as 1."""
        return float(self.rho_SG[-1].nan_to_num(nan=1.0).mean())

    @property
    def passed(self) -> bool:
        return self.rho <= LARGEST_RHO


def randomisation(
    explain: Callable[[nn.Module, int], Tensor], model: nn.Module, stages: Sequence[Sequence[str]] | None = None, seed: int = 0
) -> Randomisation:
    """The cascading randomisation check (https://arxiv.org/abs/1810.03292, section 3).

    Args:
        explain: ``(model, seed) -> map``, any shape after the first axis; ``seed`` is for the method's own lots.
        model: Stays as it is; a copy is shuffled.
        stages: Module paths to shuffle together, output first; None = ``cascade``. Their last stage is what the verdict reads.
    """
    stages = cascade(model) if stages is None else stages
    trained_GM = explain(model, seed).flatten(1)
    names, rhos = [], []
    for number, (name, shuffled) in enumerate(shuffled_models(model, stages, seed)):
        names.append(name)
        rhos.append(spearman(trained_GM, explain(shuffled, seed + number + 1).flatten(1)))
    return Randomisation(tuple(names), torch.stack(rhos))


def cascade(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Layers by module path, from the output to the input; two towers side by side, for neither stands above the other.

    >>> cascade(nn.ModuleDict({"image": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "head": nn.Linear(2, 2)}))
    (('head',), ('image.1',), ('image.0',))
    """
    layers = list(dict.fromkeys(_layer(name) for name, parameter in model.named_parameters() if parameter.numel() > 1))
    towers = [[layer for layer in layers if layer.startswith(f"{tower}.")] for tower in ("image", "text")]
    rest = [layer for layer in layers if not any(layer in tower for tower in towers)]
    side_by_side = itertools.zip_longest(*(reversed(tower) for tower in towers))
    return (*((layer,) for layer in reversed(rest)), *(tuple(layer for layer in pair if layer is not None) for pair in side_by_side))


def _layer(parameter: str) -> str:
    """``image.blocks.3.mlp.expand.weight`` -> ``image.blocks.3``; without a number, two parts of the path."""
    path = parameter.split(".")[:-1]
    numbers = [place for place, part in enumerate(path) if part.isdigit()]
    return ".".join(path[: numbers[0] + 1] if numbers else path[:2]) or parameter


def shuffled_models(model: nn.Module, stages: Sequence[Sequence[str]], seed: int) -> Iterator[tuple[str, nn.Module]]:
    """One copy, shuffled further at every step; each tensor keeps its values, so that the scale of what it computes stays.

    Raises:
        InputError: a path that holds no weights.
    """
    copied, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for stage in stages:
        for layer in stage:
            chosen = [parameter for name, parameter in copied.named_parameters() if name == layer or name.startswith(f"{layer}.")]
            if not chosen:
                raise InputError(f"stages: '{layer}' holds no weights of this {type(model).__name__}; its layers: {cascade(model)}")
            with torch.no_grad():
                for parameter in chosen:
                    order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                    parameter.copy_(parameter.flatten()[order].view_as(parameter))
        yield " + ".join(stage), copied


def spearman(one_GM: Tensor, other_GM: Tensor) -> Tensor:
    """Rank correlation of each row, equal values sharing their mean rank: (G,) float64; NaN where a row is constant or not finite."""
    one_GM, other_GM = _ranks(one_GM), _ranks(other_GM)
    one_GM, other_GM = one_GM - one_GM.mean(dim=1, keepdim=True), other_GM - other_GM.mean(dim=1, keepdim=True)
    return (one_GM * other_GM).sum(dim=1) / (one_GM.norm(dim=1) * other_GM.norm(dim=1))  # 0 / 0 for a constant


def _ranks(value_GM: Tensor) -> Tensor:
    value_GM = value_GM.detach().cpu().double()
    below = (value_GM[:, None, :] < value_GM[:, :, None]).sum(dim=2)
    equal = (value_GM[:, None, :] == value_GM[:, :, None]).sum(dim=2)
    rank_GM = below + (equal - 1) / 2
    return torch.where(torch.isfinite(value_GM).all(dim=1, keepdim=True), rank_GM.double(), torch.nan)


# --- infidelity and sensitivity, by captum ---
def infidelity(game: Game, attribution_GM: Tensor, samples: int = 64, seed: int = 0) -> Tensor:
    """Mean squared difference between what players add up to and what the value loses with them: (G,).

    https://arxiv.org/abs/1901.09392, definition 2.1, in the space of masks: each player is removed with probability 1/2. The attribution is
    scaled by the factor that suits it best, so that maps without units can be judged; in units of the value, squared.
    """
    rows, players = attribution_GM.shape
    generator = torch.Generator().manual_seed(seed)

    def values(kept: Tensor) -> Tensor:
        return game(kept.view(rows, -1, players) > 0.5).flatten()

    def removed(kept: Tensor) -> tuple[Tensor, Tensor]:
        gone = (torch.rand(kept.shape, generator=generator) < 0.5).float()
        return gone, kept - gone

    attribution_GM = attribution_GM.detach().float().cpu()
    everybody = torch.ones_like(attribution_GM)
    return captum_metrics.infidelity(values, removed, everybody, attribution_GM, n_perturb_samples=samples, normalize=True)


def max_sensitivity(
    explain: Callable[[Tensor, Tensor], Tensor], pixels_G3HW: Tensor, radius: float = 0.02, samples: int = 10, seed: int = 0
) -> Tensor:
    """Largest relative change of the map when every pixel moves by up to ``radius``: (G,).

    https://arxiv.org/abs/1901.09392, definition 3.1; ``radius`` in units of the model's normalised input.

    Args:
        explain: ``(pixels (R, 3, H, W), their rows in G (R,)) -> map``, any shape after the first axis.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = len(pixels_G3HW)

    def maps(pixels: Tensor | tuple[Tensor]) -> Tensor | tuple[Tensor]:
        if isinstance(pixels, tuple):  # captum asks for the still picture in a tuple, and reads the answer as one
            return (explain(pixels[0], torch.arange(rows)),)
        return explain(pixels, torch.arange(rows).repeat_interleave(len(pixels) // rows))

    def moved(pixels: Tensor, radius: float) -> Tensor:
        return pixels + radius * (2 * torch.rand(pixels.shape, generator=generator) - 1).to(pixels)

    return captum_metrics.sensitivity_max(maps, pixels_G3HW, moved, radius, n_perturb_samples=samples, max_examples_per_batch=rows)
