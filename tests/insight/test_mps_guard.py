"""Faults that only show on a Mac are planted in a small training step: the guard must name each, and let the clean step pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insight.mps_guard import MpsBreak, mps_guard, mps_operators, run_on_fake_device


class Net(nn.Module):
    """Embedding, convolution, attention under a mask, a contrastive loss; with one fault, by name."""

    def __init__(self, fault: str | None = None) -> None:
        super().__init__()
        self.fault = fault
        self.tokens, self.patches = nn.Embedding(20, 16), nn.Conv2d(3, 16, 4, 4)
        self.norm, self.query_key_value = nn.LayerNorm(16), nn.Linear(16, 48)
        mask = torch.ones(6, dtype=torch.bool)
        if fault == "attribute":
            self.mask = mask  # not a buffer: .to(device) leaves it behind
        else:
            self.register_buffer("mask", mask)

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = self.query_key_value(self.norm(x)).reshape(len(x), -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2).mean(dim=1)

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        text = self.attend(self.tokens(tokens), self.mask[None, None, None, :])
        vision = self.attend(self.patches(image).flatten(2).transpose(1, 2), None)
        logits = F.normalize(vision, dim=-1) @ F.normalize(text, dim=-1).T
        target = torch.arange(len(logits), device=logits.device)
        if self.fault == "numpy":
            logits = logits * torch.from_numpy(np.linspace(1, 1, len(logits)))
        if self.fault == "double":
            logits = logits.double()
        if self.fault == "float64":
            logits = logits * torch.linspace(1, 1, len(logits), dtype=torch.float64)
        if self.fault == "cuda":
            target = target.cuda()
        if self.fault == "to-cuda":
            target = target.to("cuda:0")
        if self.fault == "pin":
            target = target.pin_memory()
        if self.fault == "eigenvalues":
            logits = logits + torch.linalg.eigvals(logits.detach()).abs().sum() * 0
        if self.fault == "mode":
            logits = logits + torch.mode(logits, dim=1).values.sum() * 0
        if self.fault == "arange":
            target = torch.arange(len(logits))
        if self.fault == "item" and logits.sum().item() > 1e9:
            logits = logits * 0
        if self.fault == "boolean":
            logits = logits + logits[logits > 0].sum() * 0
        return F.cross_entropy(logits, target)


def step(net: nn.Module, device: torch.device | str = "cpu") -> None:
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    image, tokens = torch.randn(4, 3, 8, 8, device=device), torch.randint(0, 20, (4, 6), device=device)
    net(image, tokens).backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def test_a_clean_training_step_passes_both_guards():
    with mps_guard():
        step(Net())
    run_on_fake_device(Net(), step)


@pytest.mark.parametrize(
    ("fault", "named", "line"),
    [
        ("numpy", "float64", "np.linspace"),
        ("double", "float64", "logits.double()"),
        ("float64", "float64", "dtype=torch.float64"),
        ("cuda", "CUDA", "target.cuda()"),
        ("to-cuda", "cuda:0", 'target.to("cuda:0")'),
        ("pin", "pin_memory", "target.pin_memory()"),
        ("eigenvalues", "linalg_eig", "torch.linalg.eigvals"),
        ("mode", "mode has no MPS kernel", "torch.mode"),
    ],
)
def test_the_guard_names_what_mps_lacks_and_the_line(fault, named, line):
    with pytest.raises(MpsBreak) as broken, mps_guard():
        step(Net(fault))
    assert named in str(broken.value)
    assert line in str(broken.value) and "test_mps_guard.py" in str(broken.value)


@pytest.mark.parametrize(
    ("fault", "named", "line"),
    [
        ("attribute", "stayed on the CPU", "F.scaled_dot_product_attention"),
        ("arange", "stayed on the CPU", "F.cross_entropy"),
        ("item", "reads a value", ".item()"),
        ("boolean", "reads a value", "logits[logits > 0]"),
        ("cuda", "CUDA", "target.cuda()"),
    ],
)
def test_the_fake_device_finds_what_stays_behind_or_makes_it_wait(fault, named, line):
    with pytest.raises(MpsBreak) as broken:
        run_on_fake_device(Net(fault), step)
    assert named in str(broken.value) and line in str(broken.value)


def test_an_error_of_the_step_itself_is_not_taken_for_a_device_fault():
    def wrong(net: nn.Module, device: torch.device) -> None:
        net(torch.randn(4, 3, 8, 8, device=device), torch.randint(0, 20, (3, 7), device=device))

    with pytest.raises(RuntimeError) as error:
        run_on_fake_device(Net(), wrong)
    assert not isinstance(error.value, MpsBreak)


def test_an_allowed_operator_passes_and_nothing_is_left_behind():
    with mps_guard(allow=["mode"]):
        torch.mode(torch.ones(2, 3), dim=1)
    assert torch.ones(2).double().dtype == torch.float64  # outside the context everything is as before


def test_the_list_of_this_torch_knows_common_operators():
    known, runs = mps_operators()
    assert {"addmm", "bmm", "native_layer_norm", "embedding_dense_backward", "linalg_eig"} <= known
    assert {"addmm", "bmm", "native_layer_norm", "embedding_dense_backward"} <= runs
    assert "linalg_eig" not in runs
