"""What each attention head writes into an embedding, and texts that describe a head: Gandelsman, Efros, Steinhardt 2024,
https://arxiv.org/abs/2310.05916 ("the paper" below).

The residual stream is a sum, and the last LayerNorm divides it by one number per token. With that number taken as it is, an embedding is an
exact sum over what every head reads from every token, what every MLP adds, and what was there before.

R rows, L layers, H heads, N tokens of a tower, Q those that are read out, K width of one head, D width, E width of the embedding,
P patches, M texts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insight.errors import InputError
from insight.interpret.attention_gradients import itself
from insight.interpret.explain import Subject, Values
from insight.interpret.family import Tower
from insight.interpret.record import attention_layers, record, weights_of
from insight.nn.attention import AttentionCall
from insight.towers.lora import weight_of


class Decomposition(NamedTuple):
    """An embedding before it is scaled to length one, in parts that sum to it."""

    heads_RLHNE: Tensor  # what head h of layer l reads from token n
    mlps_RLE: Tensor
    rest_RE: Tensor  # the embeddings that the tower starts with, and all biases

    @property
    def embedding_RE(self) -> Tensor:
        return self.heads_RLHNE.sum(dim=(1, 2, 3)) + self.mlps_RLE.sum(dim=1) + self.rest_RE


def decompose(subject: Subject, side: str = "image") -> Decomposition:
    """One pass forward of one tower, within ``looking_at(model, batch, target)``.

    Memory: R * L * H * N * E numbers. Where only the agreement with a direction is asked, ``head_effects`` needs 1 / E of it.

    Raises:
        Lacks: the family has no such tower.
    """
    tower = subject.family.tower(subject.inputs, side)
    width = tower.norm.normalized_shape[0]
    if tower.projection is None:
        return _parts(subject, tower, torch.eye(width, device=tower.x_RND.device)[None])
    return _parts(subject, tower, weight_of(tower.projection).detach().float().T[None])


def head_effects(subject: Subject, side: str, direction_RE: Tensor) -> Decomposition:
    """As ``decompose``, each part as its product with the row's direction: E = 1."""
    tower = subject.family.tower(subject.inputs, side)
    onto_RD = direction_RE if tower.projection is None else direction_RE @ weight_of(tower.projection).detach().float()
    return _parts(subject, tower, onto_RD[..., None])


def direct_effect(subject: Subject) -> Values:
    """What the heads of all layers carry from each patch, and from each token, straight into the embedding, in the direction of the score.

    What passes through later layers is counted where a later head picks it up. ``diagnostics`` say what the score has from elsewhere (class
    token, MLPs, biases): with it the values of either side sum to the score.

    Raises:
        Lacks: the score is no product of an embedding and a direction.
    """
    score_R, directions = subject.score(subject.inputs), subject.family.directions(subject.inputs)
    maps = {side: head_effects(subject, side, direction_RE).heads_RLHNE.sum(dim=(1, 2, 4)) for side, direction_RE in directions.items()}
    if "image" in maps:
        maps["image"] = maps["image"][:, 1:]
    elsewhere = {f"{side}_elsewhere": score_R - values.sum(dim=1) for side, values in maps.items()}
    return Values(score_R, maps.get("image"), maps.get("text"), diagnostics=elsewhere)


def describe_head(outputs_RE: Tensor, texts_ME: Tensor, count: int) -> tuple[list[int], list[float]]:
    """The ``count`` texts whose directions, one after the other, explain most of how a head's output varies: the paper's TextSpan.

    Texts are first projected onto what the outputs span, so that what a head never writes earns nothing; then, again and again, the text
    along which the outputs vary most is taken, and its direction removed from outputs and texts.

    Args:
        outputs_RE: One head's output for many pictures, e.g. ``decompose(...).heads_RLHNE[:, layer, head].sum(dim=1)``.
        texts_ME: Embeddings of the texts to choose from.

    Returns:
        Rows of ``texts_ME``, the best first, and after each the share of the outputs' variance that those so far explain.

    Raises:
        InputError: ``count`` is not 1 to M; the outputs are all the same.
    """
    if not 1 <= count <= len(texts_ME):
        raise InputError(f"count={count}: there are {len(texts_ME)} texts to choose from")
    varying_RE = outputs_RE.float() - outputs_RE.float().mean(dim=0)
    whole = varying_RE.square().sum()
    if whole <= 1e-12 * outputs_RE.float().square().sum():
        raise InputError(f"describe_head got {len(outputs_RE)} outputs that do not vary: give those of more, and different, pictures")
    basis_EC = _span(varying_RE)
    texts_ME = texts_ME.float() @ basis_EC @ basis_EC.T
    length_M = texts_ME.norm(dim=1)
    chosen: list[int] = []
    shares: list[float] = []
    for _ in range(count):
        variance_M = (varying_RE @ texts_ME.T).square().mean(dim=0)
        variance_M[chosen] = -1.0  # what is left of them is rounding
        best = int(variance_M.argmax())
        new = texts_ME[best].norm() > 1e-4 * length_M[best]  # else texts before it say the same: what is left of it is rounding
        direction_E = F.normalize(texts_ME[best], dim=0) * new
        varying_RE = varying_RE - (varying_RE @ direction_E)[:, None] * direction_E
        texts_ME = texts_ME - (texts_ME @ direction_E)[:, None] * direction_E
        chosen.append(best)
        shares.append(float(1 - varying_RE.square().sum() / whole))
    return chosen, shares


def _span(varying_RE: Tensor) -> Tensor:
    """(E, C): an orthonormal basis of the rows. On the CPU: MPS has no eigendecomposition."""
    values_E, vectors_EE = torch.linalg.eigh((varying_RE.T @ varying_RE).cpu())
    return vectors_EE[:, values_E > values_E[-1] * 1e-6].to(varying_RE.device)


@torch.no_grad()
def _parts(subject: Subject, tower: Tower, onto_RDE: Tensor) -> Decomposition:
    """Every part of the final tokens through the last LayerNorm, read out, times ``onto_RDE`` (one for all rows, or one for each)."""
    layers = attention_layers(subject.family.model)
    with record(subject.family.model, dict.fromkeys(tower.layers, itself)) as calls:
        streams = [tower.x_RND]
        for block in tower.blocks:
            streams.append(block(streams[-1], tower.mask_RN, tower.turn))
    subject.count_forward(len(tower.x_RND))
    streams = [stream.float() for stream in streams]
    norm = tower.norm
    centred = isinstance(norm, nn.LayerNorm)  # else an RMSNorm, which neither centres nor adds
    squared_RN = streams[-1].var(dim=-1, unbiased=False) if centred else streams[-1].square().mean(dim=-1)
    share_RN = tower.readout_RN / (squared_RN + (norm.eps or 0.0)).sqrt()
    # LayerNorm of a sum: each part centred over its channels, divided by the sum's deviation, times gamma
    lens_RDE = norm.weight.float()[:, None] * onto_RDE
    if centred:
        lens_RDE = lens_RDE - lens_RDE.mean(dim=1, keepdim=True)

    def read(part_RND: Tensor) -> Tensor:
        return ((share_RN[:, None] @ part_RND) @ lens_RDE)[:, 0]

    start_RE = read(streams[0])
    heads, mlps, rest_RE = [], [], start_RE
    if isinstance(norm, nn.LayerNorm):
        rest_RE = rest_RE + (tower.readout_RN.sum(dim=1)[:, None, None] * norm.bias.float() @ onto_RDE)[:, 0]
    for index, (name, call) in enumerate(calls.items()):
        output: nn.Linear = layers[name].output
        heads.append(_head_parts(call, share_RN, output, lens_RDE))
        written_RND = output(call.attended_BHTK.transpose(1, 2).flatten(2)).float()
        mlps.append(read(streams[index + 1] - streams[index] - written_RND))
        if output.bias is not None:
            rest_RE = rest_RE + read(output.bias.float().expand_as(written_RND))
    return Decomposition(torch.stack(heads, dim=1), torch.stack(mlps, dim=1), rest_RE)


def _head_parts(call: AttentionCall, share_RQ: Tensor, output: nn.Linear, lens_RDE: Tensor) -> Tensor:
    """(R, H, N, E): what each head of one layer reads from each token, through the output map and the lens."""
    heads = call.query_BHTK.shape[1]
    read_RHN = torch.einsum("rq,rhqn->rhn", share_RQ, weights_of(call))
    through_HKD = weight_of(output).float().T.unflatten(0, (heads, -1))
    through_RHKE = torch.einsum("hkd,rde->rhke", through_HKD, lens_RDE)
    seen_RHNE = call.value_BHSK.float() @ through_RHKE
    return read_RHN[..., None] * seen_RHNE
