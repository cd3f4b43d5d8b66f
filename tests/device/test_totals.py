"""The sums of an epoch in one launch for a batch."""

from __future__ import annotations

import math

import pytest
import torch

from fastvae.models import Terms
from fastvae.training.history import EpochTotals, add_in_one_launch


@pytest.mark.parametrize("size", [1, 3, 128, 1023, 1025, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_batches_are_added_in_float64_unless_they_were_skipped(device, size, dtype):
    sums, expected = torch.zeros(4, dtype=torch.float64, device=device), torch.zeros(4, dtype=torch.float64)
    for step in range(4):
        recon, kl = -1e3 * torch.rand(size).to(dtype), torch.rand(size).to(dtype)
        skipped = step == 1
        if skipped:
            recon[-1] = -math.inf
        else:
            expected += torch.tensor([recon.double().sum(), kl.double().sum(), size, 1], dtype=torch.float64)
        terms = Terms(recon.to(device), kl.to(device))
        add_in_one_launch(sums, terms, torch.tensor(float(skipped), device=device))
    torch.testing.assert_close(sums.cpu(), expected, rtol=1e-14, atol=0)


def test_terms_lie_anywhere(device):
    recon, kl = torch.randn(9, 2, device=device), torch.rand(1, device=device)
    found, expected = (torch.zeros(4, dtype=torch.float64, device=device) for _ in range(2))
    kept = torch.zeros((), device=device)
    add_in_one_launch(found, Terms(recon[:, 1], kl.expand(9)), kept)
    add_in_one_launch(expected, Terms(recon[:, 1].contiguous(), kl.expand(9).contiguous()), kept)
    assert torch.equal(found, expected)
    shifted = torch.cat((recon[:1, 1], recon[:, 1]))[1:]
    add_in_one_launch(found.zero_(), Terms(torch._neg_view(-shifted), kl.expand(9)), kept)
    assert torch.equal(found, expected)


def test_an_epoch_on_a_device_has_the_means_of_one_on_the_host(cuda):
    here, there = EpochTotals(cuda), EpochTotals(torch.device("cpu"))
    for step in range(7):
        terms = Terms(torch.randn(33), torch.rand(33))
        for totals in (here, there):
            device = totals._sums.device
            at = Terms(*(term.to(device) for term in terms))
            totals.accumulate(at, torch.tensor(float(step == 3), device=device))
            totals.steps += 1
    found, expected = here.read(), there.read()
    assert found[2:] == expected[2:] == (6 * 33, 1)
    assert found[:2] == pytest.approx(expected[:2], rel=1e-13)
