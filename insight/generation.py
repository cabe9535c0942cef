"""Texts token by token: greedy, by lot (temperature, top-k, top-p), by beams. For any model that says what may come next.

B texts, T columns that are read, V vocabulary, K beams of a text, L of them that are alive. Prompts of one batch may differ in length: all
texts advance one place at a time, and where a prompt goes on, its own token is taken. So there is no padding before a text, and a text
comes out as it would alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from insight.errors import InputError
from insight.stages import derive_seed


class Reader(Protocol):
    """A model that is reading B texts."""

    context_length: int  # most tokens of a text

    def read(self, tokens_BT: Tensor) -> Tensor:
        """Read on, by the next T tokens of every text: logits (B, V) of what comes after them."""
        ...

    def keep_rows(self, row_B: Tensor) -> None:
        """Text b becomes what text ``row_B[b]`` was."""
        ...


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Args:
        temperature: Divides the logits; 0 takes the most probable token (greedy).
        top_k: Draw among so many of the most probable tokens (https://arxiv.org/abs/1805.04833); null: among all.
        top_p: Draw among the fewest most probable tokens that together have this probability (https://arxiv.org/abs/1904.09751,
            equations 2 and 3); 1: among all.

    Raises:
        InputError: a number out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature={self.temperature}: must be 0 (greedy) or more, e.g. 0.8")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k={self.top_k}: must be at least 1, or null for all tokens")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p}: must be above 0 and at most 1, which is all tokens")


GREEDY = Sampling(temperature=0.0)


class Generated(NamedTuple):
    """New tokens without the prompt and without the end: one list per text, and the log-probability of each whole continuation."""

    tokens: list[list[int]]
    ended: list[bool]  # by the end token, not by the limit
    log_probability: list[float]  # of the new tokens, the end included, before temperature, top-k and top-p


def generate(
    reader: Reader,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    end: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Generated:
    """Continue each prompt until its end token or ``max_new_tokens``.

    Args:
        reader: That has read nothing yet.
        prompts: Token ids, at least one each.
        end: Token that ends a text.
        seed: Of the lots. They are drawn on the CPU, for each text by itself, so that the texts beside it do not matter.
        device: Of the model.

    Raises:
        InputError: an empty prompt, or more tokens than the context holds.
    """
    check_lengths(prompts, max_new_tokens, reader.context_length)
    lots = [torch.Generator().manual_seed(derive_seed(seed, row)) for row in range(len(prompts))]
    texts, log_probability = [list(prompt) for prompt in prompts], [0.0] * len(prompts)
    limits, ended = [len(prompt) + max_new_tokens for prompt in prompts], [False] * len(prompts)
    column = min(map(len, prompts))
    next_BT = torch.tensor([prompt[:column] for prompt in prompts], device=device)
    while True:
        logits_BV = reader.read(next_BT).float()
        log_probability_BV = F.log_softmax(logits_BV, dim=-1)
        for row in range(len(prompts)):
            if len(texts[row]) == column and not ended[row] and column < limits[row]:  # its prompt is read, and it goes on
                token = choose(logits_BV[row], sampling, lots[row])
                texts[row].append(token)
                log_probability[row] += float(log_probability_BV[row, token])
                ended[row] = token == end
        if all(done or len(text) == limit for done, text, limit in zip(ended, texts, limits, strict=True)):
            break
        newest = [text[column] if column < len(text) else end for text in texts]  # what follows a finished text is read by nobody
        next_BT = torch.tensor(newest, device=device)[:, None]
        column += 1
    tokens = [[token for token in text[len(prompt) :] if token != end] for text, prompt in zip(texts, prompts, strict=True)]
    return Generated(tokens, ended, log_probability)


def choose(logits_V: Tensor, sampling: Sampling, lot: torch.Generator) -> int:
    """The next token of one text."""
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    likely_V = keep_likely(logits_V.cpu() / sampling.temperature, sampling.top_k, sampling.top_p)
    return int(torch.multinomial(likely_V.softmax(dim=-1), 1, generator=lot))


def keep_likely(logits_V: Tensor, top_k: int | None = None, top_p: float = 1.0) -> Tensor:
    """The logits with -inf where a token is not to be drawn. First the ``top_k`` highest stay, then of those the fewest that together reach
    ``top_p`` of their probability; of equals at the border, the first in the vocabulary stay.

    >>> keep_likely(torch.tensor([1.0, 3.0, 2.0]), top_k=2)
    tensor([-inf, 3., 2.])
    """
    sorted_V, order_V = logits_V.sort(descending=True, stable=True)
    if top_k is not None:
        sorted_V[top_k:] = -math.inf
    if top_p < 1:
        probability_V = sorted_V.softmax(dim=0)
        enough_V = probability_V.cumsum(dim=0) - probability_V >= top_p  # what came before reaches top_p already; the first always stays
        sorted_V = sorted_V.masked_fill(enough_V, -math.inf)
    return torch.empty_like(logits_V).scatter(0, order_V, sorted_V)


def beam_search(
    reader: Reader,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    end: int,
    beams: int,
    length_penalty: float = 1.0,
    device: torch.device | str = "cpu",
) -> Generated:
    """The best continuation that a search with ``beams`` candidates per text finds.

    At every place the ``beams`` most probable candidates go on; one that ends leaves the search, which goes on with one beam less
    (https://arxiv.org/abs/1409.3215, section 3.2). Among all that ended, or reached ``max_new_tokens``, the highest ``log-probability /
    length ** length_penalty`` wins; the end counts as a token. One beam is greedy. The search stops when no beam can win any more.

    Args:
        length_penalty: 0: log-probability alone, which favours short texts; 1: per token.

    Raises:
        InputError: ``beams`` below 1, an empty prompt, or more tokens than the context holds.
    """
    if beams < 1:
        raise InputError(f"beams={beams}: must be at least 1, which is greedy")
    check_lengths(prompts, max_new_tokens, reader.context_length)
    searches = [_Search(list(prompt), max_new_tokens, end, beams, length_penalty) for prompt in prompts]
    column = min(map(len, prompts))
    first_BT = torch.tensor([prompt[:column] for prompt in prompts], device=device).repeat_interleave(beams, dim=0)
    logits_XV = reader.read(first_BT).float()  # X = B * K rows: the beams of a text stand together
    while True:
        rows: list[int] = []
        tokens: list[int] = []
        for number, (search, logits_KV) in enumerate(zip(searches, logits_XV.split(beams), strict=True)):
            parents, chosen = search.advance(column, F.log_softmax(logits_KV, dim=-1).cpu())
            rows += [number * beams + parent for parent in parents]
            tokens += chosen
        column += 1
        if all(search.over for search in searches):
            break
        reader.keep_rows(torch.tensor(rows, device=device))
        logits_XV = reader.read(torch.tensor(tokens, device=device)[:, None]).float()
    best = [search.best() for search in searches]
    return Generated(
        [[token for token in text if token != end] for text, _ in best],
        [text[-1] == end for text, _ in best],
        [log_probability for _, log_probability in best],
    )


class _Search:
    """The beams of one text."""

    def __init__(self, prompt: list[int], max_new_tokens: int, end: int, beams: int, length_penalty: float) -> None:
        self.prompt, self.max_new_tokens, self.end, self.beams, self.length_penalty = prompt, max_new_tokens, end, beams, length_penalty
        self.live: list[tuple[list[int], float, int]] = [([], 0.0, 0)]  # new tokens, their log-probability, row of the reader
        self.finished: list[tuple[list[int], float]] = []
        self.over = False

    def advance(self, column: int, log_probability_KV: Tensor) -> tuple[list[int], list[int]]:
        """One place on. Returns for each row of the reader the row that it goes on from, and the token that it reads next."""
        if self.over:
            return list(range(self.beams)), [self.end] * self.beams
        if column < len(self.prompt):
            return list(range(self.beams)), [self.prompt[column]] * self.beams
        rows = torch.tensor([row for _, _, row in self.live])  # L beams
        total_LV = log_probability_KV[rows] + torch.tensor([total for _, total, _ in self.live])[:, None]
        best = total_LV.flatten().topk(min(self.beams - len(self.finished), total_LV.numel()))
        live = []
        for value, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            text, _, row = self.live[place // total_LV.shape[1]]
            text = [*text, place % total_LV.shape[1]]
            if text[-1] == self.end or len(text) == self.max_new_tokens:
                self.finished.append((text, value))
            else:
                live.append((text, value, row))
        parents, tokens = [row for _, _, row in live], [text[-1] for text, _, _ in live]
        self.live = [(text, value, number) for number, (text, value, _) in enumerate(live)]
        self.over = not self.live or self._decided()
        missing = self.beams - len(live)
        return parents + [0] * missing, tokens + [self.end] * missing

    def _decided(self) -> bool:
        """Nothing that is still alive can win: its log-probability only falls, and its length is bounded."""
        if not self.finished:
            return False
        value, length = max(value for _, value, _ in self.live), len(self.live[0][0])
        longest = self.max_new_tokens if self.length_penalty > 0 else length + 1
        return value / longest**self.length_penalty <= max(map(self._score, self.finished))

    def _score(self, finished: tuple[list[int], float]) -> float:
        text, value = finished
        return value / len(text) ** self.length_penalty

    def best(self) -> tuple[list[int], float]:
        return max(self.finished, key=self._score)


def check_lengths(prompts: Sequence[Sequence[int]], max_new_tokens: int, context_length: int) -> None:
    """
    Raises:
        InputError: nothing to continue or to generate, or more than the context holds.
    """
    if not prompts or not all(map(len, prompts)):
        raise InputError("a prompt is empty: give each at least its start token")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    longest = max(map(len, prompts))
    if longest + max_new_tokens > context_length:
        room = context_length - longest
        remedy = f"max_new_tokens={room} is the most" if room > 0 else f"shorten the prompt to {context_length - 1} tokens at most"
        raise InputError(
            f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens} go past the model's context_length={context_length}: "
            f"{remedy}"
        )
