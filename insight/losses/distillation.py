"""What another model knows: stay near its embeddings, or order pictures and captions as it does.

B pictures, C captions, E width of the embedding. Embeddings have length 1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insight.errors import InputError
from insight.losses.logits import cosine
from insight.stages import check_arguments, load

Encode = Callable[[Any], tuple[Tensor, Tensor]]


def feature_consistency(
    image_embedding: Tensor, text_embedding: Tensor, previous_image_embedding: Tensor, previous_text_embedding: Tensor
) -> Tensor:
    """Stay near what the stage before knew: ``1 - cosine`` to its embeddings, mean of pictures and captions; 0 = unchanged, 2 = opposite.

    Args:
        image_embedding: (B, E)
        text_embedding: (C, E)
        previous_image_embedding: (B, E), by the frozen model of the previous stage; no gradient flows into it.
        previous_text_embedding: (C, E), likewise.
    """
    image_B = F.cosine_similarity(image_embedding.float(), previous_image_embedding.detach().float(), dim=-1)
    text_C = F.cosine_similarity(text_embedding.float(), previous_text_embedding.detach().float(), dim=-1)
    return 1 - (image_B.mean() + text_C.mean()) / 2


def similarity_distillation(
    image_embedding: Tensor,
    text_embedding: Tensor,
    scale: Tensor,
    previous_image_embedding: Tensor,
    previous_text_embedding: Tensor,
    previous_scale: Tensor,
) -> Tensor:
    """Order captions by picture, and pictures by caption, as the stage before did: the Kullback-Leibler divergence of its softmax over
    the batch from ours, mean of both directions. Contrastive relational distillation, section 3.2 of https://arxiv.org/abs/2307.12732.

    Args:
        image_embedding: (B, E)
        text_embedding: (C, E)
        scale: (), factor of the cosine.
        previous_image_embedding: (B, E'), by the frozen model of the previous stage; no gradient flows into it.
        previous_text_embedding: (C, E'), likewise.
        previous_scale: (), its factor of the cosine.
    """
    logits_BC = cosine(image_embedding, text_embedding) * scale.float()
    soft_BC = (cosine(previous_image_embedding, previous_text_embedding) * previous_scale.float()).detach()
    return (_divergence(logits_BC, soft_BC) + _divergence(logits_BC.T, soft_BC.T)) / 2


def _divergence(logits_NM: Tensor, target_NM: Tensor) -> Tensor:
    """Mean over rows of KL(softmax(target) || softmax(logits))."""
    return F.kl_div(F.log_softmax(logits_NM, dim=1), F.log_softmax(target_NM, dim=1), log_target=True, reduction="batchmean")


class TeacherDistillation(nn.Module):
    """``similarity_distillation`` from a frozen teacher other than the stage before. It reads the same pixels and tokens as the student;
    the widths of the two embeddings may differ. It is neither trained nor saved.

    Args:
        model: The student.
        checkpoint: A checkpoint (``best.ckpt`` of a run) of the student's own architecture.
        teacher: Or ``function`` and ``arguments`` of what gives a module with ``encode_image``, ``encode_text`` and ``scale``, or an object
            that holds one as ``model``: ``{function: insight.export.bundle.load, arguments: {folder: outputs/latest/bundle}}``.

    Raises:
        InputError: neither or both are given, or the teacher cannot be read.
    """

    def __init__(self, model: nn.Module, checkpoint: str | None = None, teacher: dict[str, Any] | None = None) -> None:
        super().__init__()
        if (checkpoint is None) == (teacher is None):
            raise InputError("TeacherDistillation: give either checkpoint=PATH or teacher={function: ..., arguments: ...}")
        made = _of_checkpoint(model, Path(checkpoint)) if checkpoint is not None else _called(teacher or {})
        self._teacher = [made.eval().requires_grad_(False)]  # in a list: neither trained nor saved

    def forward(self, image_embedding: Tensor, text_embedding: Tensor, scale: Tensor, encode: Encode) -> Tensor:
        """(B, E), (C, E), (), and the function by which a model encodes this batch -> ()."""
        teacher: Any = self._teacher[0].to(image_embedding.device)
        return similarity_distillation(image_embedding, text_embedding, scale, *encode(teacher), teacher.scale)


def _called(teacher: dict[str, Any]) -> nn.Module:
    if set(teacher) - {"function", "arguments"} or "function" not in teacher:
        raise InputError(f"teacher={teacher}: give function: IMPORT.PATH and, where it needs some, arguments")
    function, arguments = load(teacher["function"], "teacher.function"), teacher.get("arguments") or {}
    missing = check_arguments(function, arguments, "teacher.arguments")
    if missing:
        raise InputError(f"teacher.arguments: {teacher['function']} needs {', '.join(missing)}")
    made = function(**arguments)
    found = made if hasattr(made, "encode_image") else getattr(made, "model", None)
    if not (isinstance(found, nn.Module) and all(hasattr(found, name) for name in ("encode_image", "encode_text", "scale"))):
        raise InputError(f"teacher.function={teacher['function']}: gives no module with encode_image, encode_text and scale")
    return found


def _of_checkpoint(model: nn.Module, path: Path) -> nn.Module:
    if not path.is_file():
        raise InputError(f"checkpoint={path}: no such file; give best.ckpt of a stage")
    weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    own = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
    teacher = copy.deepcopy(model)
    expected = teacher.state_dict()
    both = expected.keys() & own.keys()
    wrong = sorted(expected.keys() ^ own.keys()) + sorted(name for name in both if expected[name].shape != own[name].shape)
    if wrong:
        listed = f"{', '.join(wrong[:4])}{' ...' if len(wrong) > 4 else ''}"
        raise InputError(f"checkpoint={path}: of another architecture than the student ({listed}); give its bundle as teacher instead")
    teacher.load_state_dict(own)
    return teacher
