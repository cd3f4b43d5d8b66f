"""The Triton kernels of priors, likelihoods, importance weights and batches give what the CPU kernels give.

``device`` is where the kernels run ("cpu": in Triton's interpreter, which has to round bfloat16 as devices
do), and ``kernel`` gives the one of an operator.
"""

import itertools

import pytest
import torch
import triton
import triton.language as tl

from fastvae.ops.bernoulli_log_prob import schema as bernoulli
from fastvae.ops.gather_batch import schema as gather
from fastvae.ops.gaussian_kl import schema as kl
from fastvae.ops.gaussian_log_prob import schema as gaussian
from fastvae.ops.layout import OPMATH
from fastvae.ops.reparametrize_log_weight import cuda as log_weight_cuda
from fastvae.ops.reparametrize_log_weight import schema as log_weight
from fastvae.ops.triton.observed import data_row

CASES = [
    (torch.float32, 0),
    (torch.float32, 1),
    (torch.float64, 1),
    (torch.bfloat16, 0),
    (torch.float16, 1),
]
"""Dtypes, and whether some numbers are as far out as they come."""

INF, NAN = float("inf"), float("nan")
EXTREMES = [
    0.0, -0.0, 1e-4, -1e-4, 80, -80, 88.7, -103, -110, -200, 200, INF, -INF, NAN, 177, -177.4, 1e-30, -1e-38,
    1e-45, 1e4, -1e4, 3e38, -3e38,
]  # fmt: skip
SEED = -1234567891234567
REDUCTIONS = ["none", "sample", "dimension", "sum"]


@pytest.fixture(autouse=True)
def _numbers():
    torch.manual_seed(0)


def normal(*shape, dtype=torch.float32, scale=1.0, extreme=0):
    """Numbers; where it is asked for (by a seed), some are as far out as they come."""
    x = (scale * torch.randn(*shape, dtype=torch.float64)).to(dtype)
    if extreme:
        generator = torch.Generator().manual_seed(extreme)
        count = min(len(EXTREMES), x.numel())
        places = torch.randperm(x.numel(), generator=generator)[:count]
        which = torch.randperm(len(EXTREMES), generator=generator)[:count]
        x.view(-1)[places] = torch.tensor(EXTREMES, dtype=torch.float64)[which].to(dtype)
    return x


def moved(argument, device):
    """To a device, with the same strides and no copy of what is expanded."""
    if not isinstance(argument, torch.Tensor) or argument.device == device:
        return argument
    base = torch.empty(
        argument.untyped_storage().nbytes() // argument.itemsize, dtype=argument.dtype, device=argument.device
    ).set_(argument.untyped_storage())
    return base.to(device).as_strided(argument.shape, argument.stride(), argument.storage_offset())


def both(operator, arguments, device, kernel):
    """What the Triton kernel gives, on the CPU, and what the CPU kernel gives, as tuples."""
    ours = kernel(operator)(*(moved(a, device) for a in arguments))
    theirs = operator(*arguments)
    if isinstance(ours, torch.Tensor):
        ours, theirs = (ours,), (theirs,)
    # Autograd lets nobody change a view that an operator gives in place.
    assert not any(result._is_view() for result in ours)
    return tuple(t.cpu() for t in ours), theirs


def assert_same_bits(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype, a.is_contiguous()) == (b.shape, b.dtype, True)
        bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[a.itemsize]
        same = (a.reshape(-1).view(bits) == b.reshape(-1).view(bits)) | (a.isnan() & b.isnan()).reshape(-1)
        assert same.all(), (a.reshape(-1)[~same], b.reshape(-1)[~same])


def assert_near(ours, theirs, size=None):
    """Within 3e-7 of what the terms of the sum add up to without their signs."""
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    size = theirs.abs() if size is None else size
    assert ((ours.double() - theirs.double()).abs() <= 3e-7 * size.double()).all()


def targets(dtype, shape):
    """Data of each kind, with what stands for 1."""
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    floats = torch.rand(shape, dtype=OPMATH[dtype])
    floats.view(-1)[0] = 1.0
    return {
        "pixels": (pixels, 255),
        "levels": (pixels % 8, 7),
        "bool": (pixels > 127, 1),
        "floats": (floats, 1),
    }


LIKELIHOODS = [
    *itertools.product([torch.float32], ["pixels", "levels", "bool", "floats"], [0, 1]),
    *itertools.product([torch.float64, torch.bfloat16, torch.float16], ["pixels"], [1]),
    *itertools.product([torch.float64, torch.bfloat16], ["floats"], [0]),
]
"""Dtypes, kinds of data, and whether some numbers are as far out as they come."""
SHAPES = [((3,), 3, 41), ((), 2, 784), ((), 1, 1), ((), 1, 2500)]
"""Of parameters: the axes before those of the data, then rows and columns."""


@pytest.mark.parametrize(("dtype", "extreme"), CASES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_kl_from_a_prior_and_its_gradients(device, kernel, reduction, dtype, extreme):
    for rows, columns, expanded in [(3, 41, True), (300, 3, False), (1, 1500, True)]:
        parameters = [
            normal(lines, columns, dtype=dtype, scale=scale, extreme=extreme and extreme + i).expand(
                rows, columns
            )
            for i, (lines, scale) in enumerate(itertools.product((rows, 1 if expanded else rows), (1, 2)))
        ]
        ours, theirs = both(kl.gaussian_kl_prior, (*parameters, 1, reduction), device, kernel)
        if reduction == "none":
            assert_same_bits(ours, theirs)
        elif not extreme:
            assert_near(ours[0], theirs[0])
        grad = torch.randn_like(theirs[0])
        assert_same_bits(
            *both(kl.gaussian_kl_prior_backward, (grad, *parameters, 1, reduction), device, kernel)
        )


def test_a_posterior_that_is_its_prior_has_no_kl(device, kernel):
    mu, logvar = normal(5, 33), normal(5, 33, scale=20)
    ours, _ = both(kl.gaussian_kl_prior, (mu, logvar, mu, logvar, 1, "none"), device, kernel)
    assert not ours[0].any()


@pytest.mark.parametrize(("dtype", "kind", "extreme"), LIKELIHOODS)
def test_bernoulli_elements_sums_and_gradients(device, kernel, dtype, kind, extreme):
    for lead, rows, columns in SHAPES:
        logits = normal(*lead, rows, columns, dtype=dtype, scale=5, extreme=extreme)
        data = targets(dtype, (rows, columns))[kind]
        for event_dims in (0, 1):
            ours, theirs = both(bernoulli.bernoulli_log_prob, (logits, *data, event_dims), device, kernel)
            if event_dims:
                finite = theirs[0].isfinite()
                assert torch.equal(finite, ours[0].isfinite())
                assert_near(ours[0][finite], theirs[0][finite])
            else:
                assert_same_bits(ours, theirs)
            arguments = (torch.randn_like(theirs[0]), logits, *data, event_dims)
            assert_same_bits(*both(bernoulli.bernoulli_log_prob_backward, arguments, device, kernel))


@pytest.mark.usefixtures("every_matrix_large")
def test_large_likelihoods_are_summed_in_narrow_tiles(device, kernel):
    logits, data = normal(2, 5, 784, scale=5), torch.randint(0, 256, (5, 784), dtype=torch.uint8)
    ours, theirs = both(bernoulli.bernoulli_log_prob, (logits, data, 255, 1), device, kernel)
    assert_near(ours[0], theirs[0])
    each, grad = normal(2, 5, 784), normal(2, 5)
    ours, theirs = both(gaussian.gaussian_log_prob, (logits, each, data, 255, 1), device, kernel)
    terms = gaussian.gaussian_log_prob(logits, each, data, 255, 0)
    assert_near(ours[0], theirs[0], terms.double().abs().sum(-1) + each.double().abs().sum(-1) + 784)
    one = normal(1)
    ours, theirs = both(
        gaussian.gaussian_log_prob_backward, (grad, logits, one, data, 255, 1), device, kernel
    )
    assert_same_bits(ours[:1], theirs[:1])
    arguments = (grad, logits, one.expand(2, 5, 784), data, 255, 1)
    of_each = gaussian.gaussian_log_prob_backward(*arguments)[1]
    assert_near(ours[1], theirs[1], of_each.double().abs().sum())


def test_certain_logits_cost_nothing_where_they_are_right(device, kernel):
    logits = torch.tensor([[INF, -INF, 1e4, -1e4, INF]])
    target = torch.tensor([[True, False, True, False, True]])
    ours, _ = both(bernoulli.bernoulli_log_prob, (logits, target, 1, 1), device, kernel)
    assert ours[0].item() == 0.0
    ours, _ = both(bernoulli.bernoulli_log_prob, (logits, ~target, 1, 1), device, kernel)
    assert ours[0].item() == -INF


def test_tiny_bernoulli_costs_are_summed_exactly(device, kernel):
    # Each is e^-30: a product of 1 + e would be 1.
    logits = torch.full((2, 784), 30.0)
    target = torch.ones(2, 784, dtype=torch.bool)
    ours, theirs = both(bernoulli.bernoulli_log_prob, (logits, target, 1, 1), device, kernel)
    assert_near(ours[0], theirs[0])
    truth = 784 * torch.log1p(torch.tensor(-30.0, dtype=torch.float64).exp())
    assert_near(ours[0], -truth.float().expand(2))


@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize(("dtype", "kind", "extreme"), LIKELIHOODS)
def test_gaussian_elements_sums_and_gradients(device, kernel, dtype, kind, one, extreme):
    for lead, rows, columns in SHAPES:
        shape = (*lead, rows, columns)
        mean = normal(*shape, dtype=dtype, extreme=extreme)
        logvar = (
            torch.tensor([-1.5], dtype=OPMATH[dtype])
            if one
            else normal(*shape, dtype=dtype, extreme=2 * extreme)
        )
        target, largest = targets(dtype, (rows, columns))[kind]
        arguments = (mean, logvar, target, largest)
        elements, theirs = both(gaussian.gaussian_log_prob, (*arguments, 0), device, kernel)
        assert_same_bits(elements, theirs)
        if not extreme:
            ours, theirs = both(gaussian.gaussian_log_prob, (*arguments, 1), device, kernel)
            size = elements[0].double().abs().sum(-1) + logvar.double().expand(shape).abs().sum(-1) + columns
            assert_near(ours[0], theirs[0], size)
        for event_dims in (0, 1):
            grad = torch.randn(shape[: len(shape) - event_dims], dtype=OPMATH[dtype])
            backward = (grad, *arguments, event_dims)
            ours, theirs = both(gaussian.gaussian_log_prob_backward, backward, device, kernel)
            assert_same_bits(ours[:1], theirs[:1])
            if not one:
                assert_same_bits(ours[1:], theirs[1:])
            elif not extreme:
                assert ours[1].shape == logvar.shape
                each = gaussian.gaussian_log_prob_backward(
                    grad, mean, logvar.to(dtype).expand(shape), target, largest, event_dims
                )[1]
                assert_near(ours[1], theirs[1], each.double().abs().sum())


@pytest.mark.parametrize("operator", [bernoulli.bernoulli_log_prob, gaussian.gaussian_log_prob])
def test_data_of_any_strides_is_read_in_place(device, kernel, operator):
    parameters = normal(4, 6, 82)[..., 1::2], normal(4, 6, 82)[..., :41], normal(41).expand(4, 6, 41)
    data = torch.randint(0, 256, (6, 82), dtype=torch.uint8)
    shared = data[0, :41]
    for parameter in parameters:
        first = (parameter,) if operator is bernoulli.bernoulli_log_prob else (parameter, parameter)
        for target in (data[:, :41], data[:, ::2], shared, shared.expand(6, 41), shared.expand(4, 6, 41)):
            assert_same_bits(*both(operator, (*first, target, 255, 0), device, kernel))
            ours, theirs = both(operator, (*first, target, 255, 1), device, kernel)
            assert_near(ours[0], theirs[0])
    point = torch.tensor(200, dtype=torch.uint8)
    assert_same_bits(*both(operator, (*first, point, 255, 0), device, kernel))


@pytest.mark.parametrize(("dtype", "extreme"), CASES)
@pytest.mark.parametrize(("samples", "enough"), [(1, 1), (7, 1024), (8, 1024), (9, 1), (9, 1024), (16, 1)])
def test_samples_their_weights_and_the_gradients(
    device, kernel, samples, dtype, extreme, enough, monkeypatch
):
    # With few latents runs of samples are dealt to several programs, with many they are not.
    monkeypatch.setattr(log_weight_cuda, "ENOUGH_PROGRAMS", enough)
    rows, columns = {1: (2, 1100), 8: (1, 1)}.get(samples, (3, 13))
    mu = normal(rows, columns, dtype=dtype, extreme=extreme)
    logvar = normal(rows, columns, dtype=dtype, scale=2, extreme=2 * extreme)
    latent = (mu, logvar, torch.tensor(SEED), 2**32 - 60, 2**33 + 5, 1, samples)
    (z, weight), (their_z, their_weight) = both(log_weight.reparametrize_log_weight, latent, device, kernel)
    assert_same_bits([z], [their_z])
    if not extreme:
        # A weight is a difference: of terms about as large as z^2.
        assert_near(weight, their_weight, z.double().square().sum(-1) + 4.0 * columns)
    grad_z, grad_weight = torch.randn_like(their_z), torch.randn_like(their_weight)
    for grads in ((grad_z, grad_weight), (None, grad_weight), (grad_z, None)):
        arguments = (*grads, *latent)
        assert_same_bits(*both(log_weight.reparametrize_log_weight_backward, arguments, device, kernel))


def test_a_sum_over_many_runs_of_samples_is_the_same_however_it_is_dealt(device, kernel, monkeypatch):
    latent = (normal(2, 5), normal(2, 5), torch.tensor(SEED), 0, 0, 1, 50)
    grads = (normal(50, 2, 5), normal(50, 2))
    for enough in (1024, 1):
        monkeypatch.setattr(log_weight_cuda, "ENOUGH_PROGRAMS", enough)
        arguments = (*grads, *latent)
        ours, theirs = both(log_weight.reparametrize_log_weight_backward, arguments, device, kernel)
        for a, b in zip(ours, theirs, strict=True):
            # In float64 from runs of eight on: at most the last bit depends on the order.
            assert_near(a, b)


def test_a_posterior_that_is_the_prior_has_a_weight_of_one(device, kernel):
    prior = torch.zeros(5, 33)
    arguments = (prior, prior, torch.tensor(SEED), 3, 0, 1, 9)
    assert not both(log_weight.reparametrize_log_weight, arguments, device, kernel)[0][1].any()


def test_halves_and_expanded_gradients_of_samples_are_read_in_place(device, kernel):
    mu, logvar = normal(4, 6, 10).chunk(2, -1)
    latent = (mu, logvar, torch.tensor(SEED), 3, 1, 1, 9)
    assert_same_bits(
        both(log_weight.reparametrize_log_weight, latent, device, kernel)[0][:1],
        log_weight.reparametrize_log_weight(*latent)[:1],
    )
    grads = (torch.ones(()).expand(9, 4, 6, 5), torch.ones(9, 1, 1).expand(9, 4, 6))
    assert_same_bits(*both(log_weight.reparametrize_log_weight_backward, (*grads, *latent), device, kernel))


def a_data_set(dtype, *shape):
    pixels = torch.randint(0, 256, shape)
    if dtype is torch.uint8:
        return pixels.to(dtype)
    return pixels > 127 if dtype is torch.bool else (pixels / 255).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "batch"),
    [
        *itertools.product([torch.uint8, torch.float32], [torch.float32, torch.bfloat16]),
        (torch.bool, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16),
    ],
)
def test_batches_have_the_bits_of_the_cpu(device, kernel, dtype, batch):
    index, numbers = torch.randint(0, 5, (13,)), torch.randint(0, 2**40, (13,))
    seed = torch.tensor(SEED)
    for shape in ((5, 3, 7), (5, 1100), (5,)):
        data = a_data_set(dtype, *shape)
        for largest in (None, 255.0, 7.3):
            for noise in (
                (None, None, 0, largest, "none"),
                (None, None, 0, largest, "threshold"),
                (numbers if largest else None, seed, 2**32 - 1, largest, "dynamic"),
            ):
                assert_same_bits(*both(gather.gather_batch, (data, index, *noise, batch), device, kernel))


def test_every_byte_is_drawn_as_on_the_cpu(device, kernel):
    data = torch.arange(256, dtype=torch.uint8).reshape(256, 1).expand(256, 64).contiguous()
    arguments = (data, torch.arange(256), None, torch.tensor(SEED), 3, 255.0, "dynamic", torch.float32)
    assert_same_bits(*both(gather.gather_batch, arguments, device, kernel))


def test_data_sets_of_any_strides_make_batches(device, kernel):
    data = a_data_set(torch.uint8, 20, 30)
    for view in (data[:, :20], data[::2], data[:, ::2], data.t(), data[:1].expand(20, 30), data[:, 3:4]):
        index = torch.randint(0, len(view), (13,))
        arguments = (view, index, None, torch.tensor(SEED), 3, 255.0, "dynamic", torch.float32)
        assert_same_bits(*both(gather.gather_batch, arguments, device, kernel))


def test_a_batch_written_over_another_says_so(device, kernel):
    data, index = a_data_set(torch.uint8, 20, 30).to(device), torch.randint(0, 20, (13,), device=device)
    out = torch.empty(13, 30, device=device)
    version = out._version
    kernel(gather.gather_batch_into)(data, index, None, None, 0, 255.0, "none", out)
    assert out._version == version + 1
    assert_same_bits(
        [out.cpu()], [gather.gather_batch(data.cpu(), index.cpu(), None, None, 0, 255.0, "none", out.dtype)]
    )


def test_nothing_outside_the_data_is_read_for_an_index_that_is_none_of_it(device, kernel, monkeypatch):
    if device.type != "cpu":
        pytest.skip("a failed assertion ends the work of the process on the device")
    data = torch.ones(20, 30)
    from triton.runtime import interpreter

    for index in (-1, 20, 2**62):
        arguments = (data, torch.tensor([0, index, 3]), None, None, 0, None, "none", torch.float32)
        batch = kernel(gather.gather_batch)(*arguments)
        assert torch.equal(batch[:, 0], torch.tensor([1.0, 0.0, 1.0]))
        with monkeypatch.context() as patch:
            patch.setattr(
                interpreter.interpreter_builder,
                "options",
                interpreter.InterpreterOptions(debug=True, sanitize_overflow=False),
            )
            with pytest.raises(Exception, match="not a row of the data"):
                kernel(gather.gather_batch)(*arguments)


def test_nothing_makes_nothing(device, kernel):
    none, seed = torch.empty(0, 3, device=device), torch.tensor(SEED, device=device)
    flat = torch.empty(4, 0, device=device)
    index = torch.empty(0, dtype=torch.int64, device=device)
    for reduction, shape in (("none", (0, 3)), ("sample", (0,)), ("dimension", (3,)), ("sum", ())):
        value = kernel(kl.gaussian_kl_prior)(none, none, none, none, 1, reduction)
        assert value.shape == shape
        assert not value.any()
        grads = kernel(kl.gaussian_kl_prior_backward)(value, none, none, none, none, 1, reduction)
        assert [g.shape for g in grads] == [(0, 3)] * 4
    assert not kernel(bernoulli.bernoulli_log_prob)(flat, flat, 1, 1).any()
    assert kernel(bernoulli.bernoulli_log_prob_backward)(flat.sum(1), flat, flat, 1, 1).shape == (4, 0)
    one = torch.ones(1, device=device)
    assert not kernel(gaussian.gaussian_log_prob)(flat, one, flat, 1, 1).any()
    assert kernel(gaussian.gaussian_log_prob_backward)(flat.sum(1), flat, one, flat, 1, 1)[1].item() == 0
    z, weight = kernel(log_weight.reparametrize_log_weight)(flat, flat, seed, 0, 0, 1, 3)
    assert (z.shape, weight.shape) == ((3, 4, 0), (3, 4))
    assert not weight.any()
    assert kernel(gather.gather_batch)(
        none.new_ones(5, 2), index, None, None, 0, None, "none", torch.float32
    ).shape == (0, 2)


@triton.jit
def rows_of_data(out, first, rows, data_rows):
    at = tl.arange(0, 8)
    tl.store(out + at, data_row(first.to(tl.int64) + at, rows, data_rows, True))


@pytest.mark.parametrize("rows", [7, 1000])
def test_row_numbers_beyond_31_bits_meet_their_row_of_the_data(device, rows):
    """By the rule itself: parameters with so many rows would take gigabytes."""
    out = torch.zeros(8, dtype=torch.int64, device=device)
    rows_of_data[(1,)](out, 2**31 - 3, 2**32, rows)
    assert out.tolist() == [(2**31 - 3 + i) % rows for i in range(8)]


def test_rows_that_lie_beyond_32_bits_are_read_where_they_are(device, kernel):
    """Two gigabytes and more apart, in memory that is asked for and hardly touched."""
    near = normal(3, 8, dtype=torch.float16)
    far = torch.empty(2**31 + 64, dtype=torch.float16, device=device).as_strided((3, 8), (2**30, 1))
    far.copy_(near)
    forward = torch.ops.fastvae.reparametrize_kl.default
    found = kernel(forward)(far, far, torch.tensor(SEED, device=device), 1, 2, 1, "none")
    assert_same_bits([t.cpu() for t in found], forward(near, near, torch.tensor(SEED), 1, 2, 1, "none"))
    pixels = torch.randint(0, 256, (3, 8), dtype=torch.uint8)
    data = far.untyped_storage()
    bytes_of = torch.empty(0, dtype=torch.uint8, device=device).set_(data, 0, (3, 8), (2**31, 1))
    bytes_of.copy_(pixels)
    index = torch.tensor([2, 0, 1])
    batch = kernel(gather.gather_batch)(
        bytes_of, index.to(device), None, None, 0, 255.0, "none", torch.float32
    )
    expected = gather.gather_batch(pixels, index, None, None, 0, 255.0, "none", torch.float32)
    assert_same_bits([batch.cpu()], [expected])


def test_what_does_not_fit_is_refused(device, kernel):
    x, wide, seed = (
        torch.zeros(4, 6, device=device),
        torch.zeros(4, 7, device=device),
        torch.tensor(1, device=device),
    )
    of_rows, index = x.sum(1), torch.zeros(4, dtype=torch.int64, device=device)
    pixels = x.to(torch.uint8)
    run = [
        (kl.gaussian_kl_prior, (x, x, x, wide, 1, "sample")),
        (kl.gaussian_kl_prior, (x, x, x.double(), x, 1, "sample")),
        (kl.gaussian_kl_prior_backward, (of_rows[:2], x, x, x, x, 1, "sample")),
        (bernoulli.bernoulli_log_prob, (x, wide, 1, 1)),
        (bernoulli.bernoulli_log_prob, (x, x.double(), 1, 1)),
        (bernoulli.bernoulli_log_prob, (x, pixels, 0, 1)),
        (bernoulli.bernoulli_log_prob, (x, x, 255, 1)),
        (bernoulli.bernoulli_log_prob, (x.long(), x, 1, 1)),
        (bernoulli.bernoulli_log_prob_backward, (of_rows.double(), x, x, 1, 1)),
        (gaussian.gaussian_log_prob, (x, wide, x, 1, 1)),
        (gaussian.gaussian_log_prob, (x, x.sum().double(), x, 1, 1)),
        (gaussian.gaussian_log_prob_backward, (x, x, x, x, 1, 1)),
        (log_weight.reparametrize_log_weight, (x, wide, seed, 0, 0, 1, 2)),
        (log_weight.reparametrize_log_weight, (x, x, seed.int(), 0, 0, 1, 2)),
        (log_weight.reparametrize_log_weight, (x, x, seed, 2**32 - 1, 0, 1, 2)),
        (log_weight.reparametrize_log_weight_backward, (None, x, x, x, seed, 0, 0, 1, 2)),
        (log_weight.reparametrize_log_weight_backward, (x, None, x, x, seed, 0, 0, 1, 2)),
        (gather.gather_batch, (x.double(), index, None, None, 0, None, "none", torch.float32)),
        (gather.gather_batch, (x, index, None, None, 0, None, "none", torch.float16)),
        (gather.gather_batch, (x, index.int(), None, None, 0, None, "none", torch.float32)),
        (gather.gather_batch, (x, index, index[:2], seed, 0, None, "dynamic", torch.float32)),
        (gather.gather_batch, (x, index, None, None, 0, None, "dynamic", torch.float32)),
        (gather.gather_batch, (x, index, None, seed, 0, None, "static", torch.float32)),
        (gather.gather_batch_into, (x, index, None, None, 0, None, "none", wide)),
        (
            gather.gather_batch_into,
            (x, index, None, None, 0, None, "none", torch.empty(6, 4, device=device).t()),
        ),
    ]
    for operator, arguments in run:
        with pytest.raises(ValueError):
            kernel(operator)(*arguments)
