"""Shapes, strides, dtypes, reductions, threads: the kernels against the reference on whatever torch makes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastvae import functional as F
from fastvae.ops.gaussian_kl import reference as kl_reference
from fastvae.ops.layout import OPMATH
from fastvae.ops.reparametrize import reference as reparametrize_reference
from layouts import LAYOUTS, in_layout

# Relative to the largest value of a result: the two round in different places.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 8e-3, torch.float16: 1e-3}
dtypes = st.sampled_from(list(OPMATH))
SEED = torch.tensor(77)
REDUCTIONS = ["none", "sample", "dimension", "sum"]


@st.composite
def shapes(draw) -> tuple[int, ...]:
    """Up to four axes: empty, of one, odd, and now and then long ones."""
    size = st.one_of(st.integers(0, 5), st.sampled_from([1, 7, 16, 17, 33]))
    shape = tuple(draw(st.lists(size, max_size=4)))
    return draw(st.sampled_from([shape, (3, 1025), (2, 16390), (700, 3)])) if draw(st.booleans()) else shape


def laid_out(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> torch.Tensor:
    """A random tensor of the shape in a layout that torch's views make."""
    return in_layout(torch.randn(shape, dtype=torch.float64).to(dtype), layout)


layouts = st.sampled_from(LAYOUTS)


def close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert got.is_contiguous()
    assert expected.is_contiguous()
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * max(scale, 1.0))


@given(shapes(), layouts, layouts, dtypes, st.data())
def test_forward(shape, mu_layout, logvar_layout, dtype, data):
    event_dims = data.draw(st.integers(0, len(shape)))
    mu, logvar = laid_out(shape, mu_layout, dtype), laid_out(shape, logvar_layout, dtype)
    z = F.reparametrize(mu, logvar, seed=77, draw=2, row_offset=5, event_dims=event_dims)
    assert z.is_contiguous()
    close(z, reparametrize_reference.reparametrize(mu, logvar, SEED, 2, 5, event_dims), dtype)
    # The KL is not rounded to the dtype of the parameters.
    for reduction in ("sample", "none", "sum"):
        kl = F.gaussian_kl(mu, logvar, event_dims=event_dims, reduction=reduction)
        close(kl, kl_reference.gaussian_kl(mu, logvar, event_dims, reduction), OPMATH[dtype])
        fused = F.reparametrize_kl(
            mu, logvar, seed=77, draw=2, row_offset=5, event_dims=event_dims, reduction=reduction
        )
        assert torch.equal(fused[0], z)
        assert torch.equal(fused[1], kl)
    # The operators sum over the latents; the public functions divide by their number.
    kl = torch.ops.fastvae.gaussian_kl(mu, logvar, event_dims, "dimension")
    close(kl, kl_reference.gaussian_kl(mu, logvar, event_dims, "dimension"), OPMATH[dtype])
    fused = torch.ops.fastvae.reparametrize_kl(mu, logvar, SEED, 2, 5, event_dims, "dimension")
    assert torch.equal(fused[0], z)
    assert torch.equal(fused[1], kl)
    if z.numel():
        mean = F.gaussian_kl(mu, logvar, event_dims=event_dims, reduction="dimension")
        close(mean, kl / (mu.numel() // kl.numel()), OPMATH[dtype])


@given(shapes(), layouts, layouts, layouts, dtypes, st.data())
def test_backward(shape, mu_layout, logvar_layout, grad_layout, dtype, data):
    """Incoming gradients in every layout, those of ``sum()`` (stride 0) among them."""
    event_dims = data.draw(st.integers(0, len(shape)))
    mu, logvar = laid_out(shape, mu_layout, dtype), laid_out(shape, logvar_layout, dtype)
    grad_z = laid_out(shape, grad_layout, dtype)
    noise = (SEED, 2, 5, event_dims)
    expected = reparametrize_reference.reparametrize_backward(grad_z, logvar, *noise)
    close(torch.ops.fastvae.reparametrize_backward(grad_z, logvar, *noise), expected, dtype)
    for reduction in REDUCTIONS:
        like = kl_reference.gaussian_kl(mu, logvar, event_dims, reduction)
        grad_kl = laid_out(tuple(like.shape), grad_layout, like.dtype)
        got = torch.ops.fastvae.gaussian_kl_backward(grad_kl, mu, logvar, event_dims, reduction)
        for a, b in zip(
            got, kl_reference.gaussian_kl_backward(grad_kl, mu, logvar, event_dims, reduction), strict=True
        ):
            close(a, b, dtype)
        fused = torch.ops.fastvae.reparametrize_kl_backward(grad_z, grad_kl, mu, logvar, *noise, reduction)
        opmath = OPMATH[dtype]
        close(fused[0], (grad_z.to(opmath) + got[0].to(opmath)).to(dtype).contiguous(), dtype)
        close(fused[1], (expected.to(opmath) + got[1].to(opmath)).to(dtype).contiguous(), dtype)


@given(shapes(), st.lists(layouts, min_size=4, max_size=4), dtypes, st.data())
def test_prior(shape, chosen, dtype, data):
    event_dims = data.draw(st.integers(0, len(shape)))
    tensors = [laid_out(shape, layout, dtype) for layout in chosen]
    grad_layout = data.draw(layouts)
    for reduction in REDUCTIONS:
        expected = kl_reference.gaussian_kl_prior(*tensors, event_dims, reduction)
        close(torch.ops.fastvae.gaussian_kl_prior(*tensors, event_dims, reduction), expected, OPMATH[dtype])
        grad_kl = laid_out(tuple(expected.shape), grad_layout, expected.dtype)
        for a, b in zip(
            torch.ops.fastvae.gaussian_kl_prior_backward(grad_kl, *tensors, event_dims, reduction),
            kl_reference.gaussian_kl_prior_backward(grad_kl, *tensors, event_dims, reduction),
            strict=True,
        ):
            close(a, b, dtype)


def everything(mu: torch.Tensor, logvar: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    """Results and gradients of every operation."""
    mu, logvar = mu.detach().requires_grad_(), logvar.detach().requires_grad_()
    z, kl = F.reparametrize_kl(mu, logvar, seed=1)
    total = F.gaussian_kl(mu, logvar, reduction="sum")
    prior = F.gaussian_kl(mu, logvar, mu.detach() + 1, logvar.detach() - 1)
    loss = (z * grad).sum() + kl.square().sum() + total + prior.sum()
    return [z.detach(), kl.detach(), total.detach(), prior.detach(), *torch.autograd.grad(loss, (mu, logvar))]


@pytest.mark.parametrize("shape", [(1, 700_000), (700_000, 1), (1000, 700), (3, 40_000)])
def test_thread_counts_give_the_same_bits(shape, threads):
    tensors = [torch.randn(shape) for _ in range(3)]
    threads(1)
    alone = everything(*tensors)
    for count in (2, 3, 7):
        threads(count)
        for name, a, b in zip(
            ["z", "kl", "total", "prior", "grad_mu", "grad_logvar"], alone, everything(*tensors), strict=True
        ):
            assert torch.equal(a, b), (name, count)


@pytest.mark.parametrize("dtype", list(OPMATH))
def test_a_batch_may_be_split_anywhere(dtype):
    mu, logvar = torch.randn(40, 19).to(dtype), torch.randn(40, 19).to(dtype)
    z, kl = F.reparametrize_kl(mu, logvar, seed=3, row_offset=100)
    for cut in (1, 16, 39):
        first = F.reparametrize_kl(mu[:cut], logvar[:cut], seed=3, row_offset=100)
        second = F.reparametrize_kl(mu[cut:], logvar[cut:], seed=3, row_offset=100 + cut)
        assert torch.equal(z, torch.cat([first[0], second[0]]))
        assert torch.equal(kl, torch.cat([first[1], second[1]]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_change_a_bit(layout):
    mu, logvar = laid_out((30, 18), layout, torch.float32), laid_out((30, 18), layout, torch.float32)
    a = F.reparametrize_kl(mu, logvar, seed=3)
    b = F.reparametrize_kl(mu.clone().contiguous(), logvar.clone().contiguous(), seed=3)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


def test_a_chunk_and_an_expanded_prior_are_read_in_place():
    """The layouts that models make all the time are not copied."""
    from fastvae.ops.layout import as_rows

    mu, logvar = torch.randn(64, 32).chunk(2, dim=-1)
    for tensor in (mu, logvar, torch.randn(16).expand(64, 16)):
        rows, _ = as_rows(tensor, 1)
        assert rows.data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize("dtype", list(OPMATH))
def test_memory_that_begins_anywhere(dtype):
    """torch takes memory at any address (a message, a mapped file); the kernels are given a copy."""

    def shifted(tensor):
        raw = bytearray(1) + tensor.view(torch.uint8).numpy().tobytes()
        odd = torch.frombuffer(raw, dtype=tensor.dtype, offset=1).view(tensor.shape)
        assert odd.data_ptr() % tensor.itemsize
        return odd

    mu, logvar, grad_z = (torch.randn(5, 18).to(dtype) for _ in range(3))
    grad_kl = torch.randn(5, dtype=OPMATH[dtype])
    inputs = (SEED, 2, 5, 1, "sample")
    for a, b in zip(
        torch.ops.fastvae.reparametrize_kl_backward(*map(shifted, (grad_z, grad_kl, mu, logvar)), *inputs),
        torch.ops.fastvae.reparametrize_kl_backward(grad_z, grad_kl, mu, logvar, *inputs),
        strict=True,
    ):
        assert torch.equal(a, b)
    # Strides that the kernels take as they are, too.
    wide = torch.cat([mu, logvar], dim=-1)
    for a, b in zip(
        F.reparametrize_kl(*shifted(wide).chunk(2, dim=-1), seed=1),
        F.reparametrize_kl(mu, logvar, seed=1),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_reductions_are_means_of_the_sum():
    mu, logvar = torch.randn(6, 5, 4), torch.randn(6, 5, 4)
    kl = F.gaussian_kl(mu, logvar, reduction="none")
    for event_dims, samples in ((1, 30), (2, 6), (3, 1)):
        got = {
            r: F.gaussian_kl(mu, logvar, event_dims=event_dims, reduction=r)
            for r in ("sample", "sum", "mean", "batchmean")
        }
        torch.testing.assert_close(got["sample"], kl.flatten(3 - event_dims).sum(-1))
        torch.testing.assert_close(got["sum"], kl.sum())
        torch.testing.assert_close(got["mean"], kl.mean())
        torch.testing.assert_close(got["batchmean"], kl.sum() / samples)


def test_a_scalar_is_one_row_of_one_column():
    mu, logvar = torch.tensor(0.5), torch.tensor(0.25)
    z, kl = F.reparametrize_kl(mu, logvar, seed=1)
    row_z, row_kl = F.reparametrize_kl(mu.view(1, 1), logvar.view(1, 1), seed=1)
    assert z.shape == kl.shape == ()
    assert z == row_z[0, 0]
    assert kl == row_kl[0]


def test_an_empty_latent_has_no_divergence():
    kl = F.gaussian_kl(torch.zeros(3, 0), torch.zeros(3, 0))
    assert torch.equal(kl, torch.zeros(3))
    assert F.gaussian_kl(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)
    assert float(F.gaussian_kl(torch.zeros(0, 4), torch.zeros(0, 4), reduction="sum")) == 0


def test_offsets_beyond_32_bits():
    """Two rows more than 2^31 elements apart; the memory between them is reserved, never touched."""
    apart = 2**31 + 8
    storage = torch.empty(apart + 40, dtype=torch.bfloat16)
    mu = storage.as_strided((2, 40), (apart, 1))
    values = torch.randn(2, 40).to(torch.bfloat16)
    mu.copy_(values)
    z, kl = F.reparametrize_kl(mu, mu, seed=1)
    expected = F.reparametrize_kl(values, values, seed=1)
    assert torch.equal(z, expected[0])
    assert torch.equal(kl, expected[1])


def test_more_than_2_to_the_31_elements():
    """One row, expanded: every sum is the same, and none is missing."""
    columns = 8192
    mu = torch.randn(1, columns)
    rows = 2**31 // columns + 3
    kl = F.gaussian_kl(mu.expand(rows, columns), mu.expand(rows, columns))
    assert kl.shape == (rows,)
    assert torch.equal(kl, F.gaussian_kl(mu, mu).expand(rows))
