"""The latent step on a device: the bits of the CPU for each element, its accuracy for sums."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvae import noise
from fastvae.ops import gaussian_kl, reparametrize, reparametrize_kl
from fastvae.ops import noise as noise_ops

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (3, 41), (128, 32), (70, 3), (2, 5000), (2500, 2)]
CASES = [
    (shape, dtype) for shape in SHAPES for dtype in DTYPES if dtype is DTYPES[0] or math.prod(shape) < 4000
]
"""Each dtype in the small shapes; the interpreter takes its time."""
REDUCTIONS = ["none", "sample", "dimension", "sum"]
SUM_BOUND = {torch.float64: 1e-14, torch.float32: 4e-7}
"""Of sums of positive terms: at most eight roundings one after the other and a tree over a tile."""
EXTREMES = [
    *(0.0, -0.0, 1e-4, -1e-4, 1e-30, -1e-38, 80.0, -80.0, 88.7, -103.0, -110.0, 177.0, -177.4, 200.0, -200.0),
    *(math.inf, -math.inf, math.nan),
]
SEED = -1_234_567_891_234_567


def assert_bits(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Every element the same number, NaN for NaN."""
    found = found.cpu()
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(0.0), expected.nan_to_num(0.0))


def assert_sums(found: torch.Tensor, expected: torch.Tensor, reduction: str) -> None:
    """The same bits where nothing is summed, else close."""
    if reduction == "none":
        assert_bits(found, expected)
    else:
        torch.testing.assert_close(found.cpu(), expected, rtol=SUM_BOUND[expected.dtype], atol=0)


def latent(shape, dtype, *, extreme=False):
    mu, logvar = torch.randn(shape).to(dtype), (torch.randn(shape) * 3).to(dtype)
    if extreme:
        some = torch.tensor(EXTREMES).to(dtype)[: logvar.numel()]
        logvar.view(-1)[: len(some)] = some
        mu.view(-1)[-len(some) :] = some
    return mu, logvar


def seed_on(device):
    return torch.tensor(SEED, device=device)


@pytest.mark.parametrize("shape", [*SHAPES, (4, 1024), (1, 9001), (0, 5), (5, 0)])
@pytest.mark.parametrize(("draw", "row_offset"), [(0, 0), (2**32 - 1, 2**40 + 7)])
def test_noise_has_the_bits_of_the_cpu(device, kernel, shape, draw, row_offset):
    for operator in (noise_ops.schema.normal, noise_ops.schema.uniform):
        found = kernel(operator)(*shape, seed_on(device), draw, row_offset, None)
        expected = operator(*shape, torch.tensor(SEED), draw, row_offset, None)
        assert_bits(found, expected)


def test_listed_rows_have_their_own_noise(device, kernel):
    numbers = torch.tensor([5, 2**40, 7, 2**63 - 1, 0])
    for operator in (noise_ops.schema.normal, noise_ops.schema.uniform):
        found = kernel(operator)(5, 37, seed_on(device), 3, 0, numbers.to(device))
        expected = operator(5, 37, torch.tensor(SEED), 3, 0, numbers)
        assert_bits(found, expected)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_noise_fills_given_memory(device, kernel, kind):
    out = torch.zeros(3, 4, 5, device=device)
    version = out._version
    kernel(getattr(noise_ops.schema, f"{kind}_into"))(3, 20, seed_on(device), 1, 2, None, out)
    assert torch.equal(
        out.view(3, 20), kernel(getattr(noise_ops.schema, kind))(3, 20, seed_on(device), 1, 2, None)
    )
    assert out._version > version, "a backward that kept the old values has to fail"


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_permutations_are_those_of_the_cpu(device, kernel, n):
    found = kernel(noise_ops.schema.permutation)(n, seed_on(device), 3)
    assert torch.equal(found.cpu(), noise_ops.schema.permutation(n, torch.tensor(SEED), 3))


def test_seeds_fold_in_as_on_the_cpu(device, kernel):
    for seed, tag in (
        (torch.tensor(SEED), torch.tensor(2**50 + 3)),
        (torch.arange(-5, 700), torch.tensor(-3)),
    ):
        found = kernel(noise_ops.schema.fold_in)(seed.to(device), tag.to(device))
        assert torch.equal(found.cpu(), noise_ops.schema.fold_in(seed, tag.expand_as(seed)))


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_samples_have_the_bits_of_the_cpu(device, kernel, shape, dtype):
    mu, logvar = latent(shape, dtype, extreme=True)
    arguments = (3, 9, 1)
    z = kernel(reparametrize.schema.reparametrize)(
        mu.to(device), logvar.to(device), seed_on(device), *arguments
    )
    assert_bits(z, reparametrize.schema.reparametrize(mu, logvar, torch.tensor(SEED), *arguments))
    assert z.is_contiguous()
    grad_z = torch.randn(shape).to(dtype)
    backward = reparametrize.schema.reparametrize_backward
    found = kernel(backward)(grad_z.to(device), logvar.to(device), seed_on(device), *arguments)
    assert_bits(found, backward(grad_z, logvar, torch.tensor(SEED), *arguments))


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_the_kl_of_an_element_has_the_bits_of_the_cpu(device, kernel, shape, dtype):
    mu, logvar = latent(shape, dtype, extreme=True)
    found = kernel(gaussian_kl.schema.gaussian_kl)(mu.to(device), logvar.to(device), 1, "none")
    assert_bits(found, gaussian_kl.schema.gaussian_kl(mu, logvar, 1, "none"))


@pytest.mark.usefixtures("every_matrix_large")
@pytest.mark.parametrize("shape", [(3, 41), (2, 5000), (70, 3), (9, 7)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_matrices_of_16_bits_are_taken_in_larger_tiles(device, kernel, shape, dtype):
    mu, logvar = latent(shape, dtype)
    rest = (3, 9, 1, "sample")
    forward = reparametrize_kl.schema.reparametrize_kl
    z, kl = kernel(forward)(mu.to(device), logvar.to(device), seed_on(device), *rest)
    expected_z, expected_kl = forward(mu, logvar, torch.tensor(SEED), *rest)
    assert_bits(z, expected_z)
    assert_sums(kl, expected_kl, "sample")
    grads = torch.randn(shape).to(dtype), torch.randn(shape[0])
    backward = reparametrize_kl.schema.reparametrize_kl_backward
    found = kernel(backward)(*(t.to(device) for t in (*grads, mu, logvar)), seed_on(device), *rest)
    for ours, theirs in zip(found, backward(*grads, mu, logvar, torch.tensor(SEED), *rest), strict=True):
        assert_bits(ours, theirs)


@pytest.mark.usefixtures("every_matrix_large")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "reduction"), [((2, 8192), "sample"), ((3, 6000), "sample"), ((4096, 8), "dimension")]
)
@pytest.mark.parametrize("far", [[], [64.0, -64.0], [64.5], [-64.5], [-300.0, math.nan], EXTREMES])
def test_programs_with_several_tiles_know_where_a_logarithm_is_far(
    device, kernel, shape, reduction, dtype, far
):
    mu, logvar = latent(shape, dtype)
    logvar.view(-1)[5000 : 5000 + len(far)] = torch.tensor(far).to(dtype)
    rest = (3, 9, 1, reduction)
    forward = reparametrize_kl.schema.reparametrize_kl
    z, kl = kernel(forward)(mu.to(device), logvar.to(device), seed_on(device), *rest)
    expected_z, expected_kl = forward(mu, logvar, torch.tensor(SEED), *rest)
    assert_bits(z, expected_z)
    assert torch.equal(kl.cpu().isnan(), expected_kl.isnan())
    assert_sums(kl.nan_to_num(0.0), expected_kl.nan_to_num(0.0), reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_sample_and_kl_together(device, kernel, shape, dtype, reduction):
    mu, logvar = latent(shape, dtype)
    here = (mu.to(device), logvar.to(device), seed_on(device), 3, 9, 1, reduction)
    forward, backward = (
        reparametrize_kl.schema.reparametrize_kl,
        reparametrize_kl.schema.reparametrize_kl_backward,
    )
    z, kl = kernel(forward)(*here)
    expected_z, expected_kl = forward(mu, logvar, torch.tensor(SEED), 3, 9, 1, reduction)
    alone = kernel(gaussian_kl.schema.gaussian_kl)(mu.to(device), logvar.to(device), 1, reduction)
    assert torch.equal(kl, alone)
    # Autograd lets nobody change a view that an operator gives in place.
    assert not kl._is_view()
    assert not z._is_view()
    grad_z, grad_kl = torch.randn(shape).to(dtype), torch.randn_like(expected_kl)
    grads = kernel(backward)(grad_z.to(device), grad_kl.to(device), *here)
    expected = backward(grad_z, grad_kl, mu, logvar, torch.tensor(SEED), 3, 9, 1, reduction)
    of_kl = kernel(gaussian_kl.schema.gaussian_kl_backward)(
        grad_kl.to(device), mu.to(device), logvar.to(device), 1, reduction
    )
    expected_of_kl = gaussian_kl.schema.gaussian_kl_backward(grad_kl, mu, logvar, 1, reduction)
    assert_bits(z, expected_z)
    assert_sums(kl, expected_kl, reduction)
    for found, wanted in zip((*grads, *of_kl), (*expected, *expected_of_kl), strict=True):
        assert_bits(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "group_size"), [((3, 40), 1), ((3, 40), 2), ((3, 42), 3), ((5, 64), 64), ((2, 6000), 8)]
)
@pytest.mark.parametrize("reduction", ["sample", "sum"])
def test_free_bits(device, kernel, shape, group_size, dtype, reduction):
    mu, logvar = latent(shape, dtype)
    mu[0, :3] = logvar[0, :3] = 0
    floor = 0.7 * group_size
    rest = (3, 9, 1, reduction, floor, group_size)
    forward, backward = (
        reparametrize_kl.schema.reparametrize_kl,
        reparametrize_kl.schema.reparametrize_kl_backward,
    )
    z, kl = kernel(forward)(mu.to(device), logvar.to(device), seed_on(device), *rest)
    expected_z, expected_kl = forward(mu, logvar, torch.tensor(SEED), *rest)
    assert_bits(z, expected_z)
    assert_sums(kl, expected_kl, reduction)
    grad_z, grad_kl = torch.randn(shape).to(dtype), torch.randn_like(expected_kl)
    found = kernel(backward)(*(t.to(device) for t in (grad_z, grad_kl, mu, logvar)), seed_on(device), *rest)
    for here, there in zip(
        found, backward(grad_z, grad_kl, mu, logvar, torch.tensor(SEED), *rest), strict=True
    ):
        assert_bits(here, there)
    alone = kernel(gaussian_kl.schema.gaussian_kl_backward)(
        *(t.to(device) for t in (grad_kl, mu, logvar)), 1, reduction, floor, group_size
    )
    expected = gaussian_kl.schema.gaussian_kl_backward(grad_kl, mu, logvar, 1, reduction, floor, group_size)
    for here, there in zip(alone, expected, strict=True):
        assert_bits(here, there)


@pytest.mark.parametrize("group_size", [1, 2])
def test_what_is_free_passes_no_infinite_gradient_on(device, kernel, group_size):
    mu, logvar = torch.tensor([[0.01, 0.02, 2.0, 0.01]]), torch.zeros(1, 4)
    grad_z, grad_kl = torch.ones(1, 4), torch.tensor([math.inf])
    rest = (0, 0, 1, "sample", 0.3, group_size)
    found = kernel(reparametrize_kl.schema.reparametrize_kl_backward)(
        *(t.to(device) for t in (grad_z, grad_kl, mu, logvar)), seed_on(device), *rest
    )
    expected = reparametrize_kl.schema.reparametrize_kl_backward(
        grad_z, grad_kl, mu, logvar, torch.tensor(SEED), *rest
    )
    for here, there in zip(found, expected, strict=True):
        assert torch.equal(here.cpu()[:, :2], there[:, :2])
        assert there[:, :2].isfinite().all()
        assert not here.cpu()[:, 2].isfinite().any()


def test_a_floor_in_float64_is_not_rounded(device, kernel):
    """0.1 is another number in float32: an element between the two would count as free, or not."""
    mu, logvar = (
        torch.tensor([[math.sqrt(0.2) + 1e-9]], dtype=torch.float64, device=device),
        torch.zeros(1, 1, dtype=torch.float64, device=device),
    )
    kl = kernel(gaussian_kl.schema.gaussian_kl)(mu, logvar, 1, "sample")
    assert 0.1 < kl.item() < float(torch.tensor(0.1))
    assert kernel(gaussian_kl.schema.gaussian_kl)(mu, logvar, 1, "sample", 0.1, 1).item() == kl.item()


def laid(kind: str, tensor: torch.Tensor) -> torch.Tensor:
    """The same values in another place."""
    if kind == "transposed":
        return tensor.t().contiguous().t()
    if kind == "half":
        return torch.cat((torch.full_like(tensor, math.nan), tensor), -1).chunk(2, -1)[1]
    if kind == "shifted":
        return torch.cat((tensor.new_zeros(1), tensor.flatten()))[1:].view(tensor.shape)
    if kind == "negated":
        return torch._neg_view(-tensor)
    if kind == "expanded":
        return tensor[:1].expand_as(tensor)
    if kind == "stepped":
        return tensor.repeat_interleave(2, 0)[::2]
    return tensor


@settings(max_examples=40)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    kinds=st.tuples(
        *[st.sampled_from(["plain", "transposed", "half", "shifted", "negated", "expanded", "stepped"])] * 3
    ),
    reduction=st.sampled_from(REDUCTIONS),
    draw=st.integers(0, 2**32 - 1),
    row_offset=st.integers(0, 2**62),
    values=st.integers(0, 2**32),
)
def test_wherever_the_tensors_lie(
    device, kernel, rows, columns, dtype, kinds, reduction, draw, row_offset, values
):
    torch.manual_seed(values)
    mu, logvar = latent((rows, columns), dtype)
    grad_z = torch.randn(rows, columns).to(dtype)
    mu, logvar, grad_z = (laid(kind, t) for kind, t in zip(kinds, (mu, logvar, grad_z), strict=True))
    noise_of = (draw, row_offset, 1, reduction)
    forward, backward = (
        reparametrize_kl.schema.reparametrize_kl,
        reparametrize_kl.schema.reparametrize_kl_backward,
    )
    # What moves to a device is laid anew there.
    mu_, logvar_, grad_z_ = (
        laid(kind, t.contiguous().to(device)) for kind, t in zip(kinds, (mu, logvar, grad_z), strict=True)
    )
    z, kl = kernel(forward)(mu_, logvar_, seed_on(device), *noise_of)
    expected_z, expected_kl = forward(mu, logvar, torch.tensor(SEED), *noise_of)
    assert_bits(z, expected_z)
    assert_sums(kl, expected_kl, reduction)
    grad_kl = torch.ones_like(expected_kl[:1]).expand_as(expected_kl) if expected_kl.dim() else expected_kl
    found = kernel(backward)(grad_z_, grad_kl.to(device), mu_, logvar_, seed_on(device), *noise_of)
    expected = backward(grad_z, grad_kl, mu, logvar, torch.tensor(SEED), *noise_of)
    for here, there in zip(found, expected, strict=True):
        assert_bits(here, there)


@pytest.mark.parametrize("event_dims", [0, 2, 3])
def test_events_of_other_dimensions(device, kernel, event_dims):
    mu, logvar = latent((4, 3, 5), torch.float32)
    forward = reparametrize_kl.schema.reparametrize_kl
    z, kl = kernel(forward)(mu.to(device), logvar.to(device), seed_on(device), 3, 9, event_dims, "sample")
    expected_z, expected_kl = forward(mu, logvar, torch.tensor(SEED), 3, 9, event_dims, "sample")
    assert_bits(z, expected_z)
    assert_sums(kl, expected_kl, "sample")


def test_nothing_gives_nothing(device, kernel):
    for shape in ((0, 5), (5, 0)):
        mu, logvar = (t.to(device) for t in latent(shape, torch.float32))
        z, kl = kernel(reparametrize_kl.schema.reparametrize_kl)(
            mu, logvar, seed_on(device), 0, 0, 1, "sample"
        )
        assert z.shape == shape
        assert torch.equal(kl.cpu(), torch.zeros(shape[0]))
        grads = kernel(gaussian_kl.schema.gaussian_kl_backward)(kl, mu, logvar, 1, "sample")
        assert all(grad.shape == shape for grad in grads)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda mu, logvar, seed: (mu, logvar[:, :-1], seed), "logvar must be"),
        (lambda mu, logvar, seed: (mu, logvar.double(), seed), "logvar must be"),
        (lambda mu, logvar, seed: (mu, logvar, seed.double()), "seed must be"),
        (lambda mu, logvar, seed: (mu.int(), logvar.int(), seed), "the kernels take"),
    ],
)
def test_an_operator_that_is_called_directly_checks_its_tensors(device, kernel, spoil, text):
    mu, logvar = (t.to(device) for t in latent((3, 5), torch.float32))
    with pytest.raises((ValueError, KeyError), match=text):
        kernel(reparametrize.schema.reparametrize)(*spoil(mu, logvar, seed_on(device)), 0, 0, 1)


def test_a_storage_that_was_freed_is_not_read(device, kernel):
    mu, logvar = (t.to(device) for t in latent((3, 5), torch.float32))
    logvar.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="resized or freed"):
        kernel(gaussian_kl.schema.gaussian_kl)(mu, logvar, 1, "sample")


def test_a_sum_has_the_same_bits_each_time(device, kernel):
    mu, logvar = (t.to(device) for t in latent((17, 1500), torch.float32))
    for reduction in REDUCTIONS:
        first, second = (kernel(gaussian_kl.schema.gaussian_kl)(mu, logvar, 1, reduction) for _ in range(2))
        assert torch.equal(first, second)


def test_the_numbers_of_the_contract(device, kernel):
    """Those of the public function, whose bits the document's own code has (tests/test_noise.py)."""
    found = kernel(noise_ops.schema.normal)(2, 8, torch.tensor(7, device=device), 1, 0, None)
    expected = noise.normal((2, 8), 7, draw=1)
    assert_bits(found, expected)
