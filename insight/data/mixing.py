"""Mix the pictures of a batch, and their classes with them. B pictures, K classes, H and W pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from insight.errors import InputError


class Mixing:
    """torchvision's MixUp (https://arxiv.org/abs/1710.09412) or CutMix (https://arxiv.org/abs/1905.04899, section 3.1).

    Args:
        num_classes: K.
        mixup: Alpha of the share's Beta distribution; 0 = no MixUp.
        cutmix: The same of CutMix. Where both are above 0, each batch gets one of them, by lot.

    Raises:
        InputError: a negative number.
    """

    def __init__(self, num_classes: int, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if alpha < 0:
                raise InputError(f"model.init_args.{name}={alpha}: must be 0 (none) or more")
        self.num_classes = num_classes
        self.ways = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha]

    def plain(self, label_B: Tensor) -> Tensor:
        """(B, K): all on the true class."""
        return F.one_hot(label_B, self.num_classes).float()

    def mix(self, image_B3HW: Tensor, label_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) and the share of each class in them (B, K). All chance comes from ``generator``, a CPU one."""
        if not self.ways:
            return image_B3HW, self.plain(label_B)
        seed, way = torch.randint(2**31, (2,), generator=generator).tolist()
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator of the CPU
            torch.manual_seed(seed)
            return self.ways[way % len(self.ways)](image_B3HW, label_B)
