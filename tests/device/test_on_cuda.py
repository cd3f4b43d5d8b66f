"""What only a device can show: torch's transforms, compiler and graphs around the kernels, and much noise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl

from fastvae import functional as F
from fastvae import noise
from fastvae.ops import cuda as cuda_ops
from fastvae.ops.triton.philox import root

SEED = 2024


def quiet_compiler(test):
    """torch's compiler warns of a precision that it would prefer, and of a graph that keeps its memory."""
    for message in ("TensorFloat32 tensor cores", "The CUDA Graph is empty"):
        test = pytest.mark.filterwarnings(f"ignore:{message}")(test)
    return test


@triton.jit
def roots(first, out, COUNT: tl.constexpr):  # noqa: N803
    at = tl.program_id(0) * COUNT + tl.arange(0, COUNT)
    tl.store(out + at, root((first + at).to(tl.float32, bitcast=True)))


@pytest.fixture
def inputs(cuda):
    """Mean and log-variance on the device, that want gradients."""

    def make(shape=(64, 33), dtype=torch.float32):
        mu, logvar = (torch.randn(shape).to(dtype) for _ in range(2))
        return mu.to(cuda).requires_grad_(), logvar.to(cuda).requires_grad_()

    return make


def operator_samples(device):
    """Every operator, with strided inputs, for opcheck."""
    ops = torch.ops.fastvae
    seed, noise_of = torch.tensor(5, device=device), (3, 2, 1)
    index = torch.tensor([3, 0, 3], device=device)
    for dtype in (torch.float32, torch.bfloat16):
        for grad in (False, True):
            a, b, c, d = (
                torch.randn(5, 6, device=device).to(dtype).t().detach().requires_grad_(grad) for _ in range(4)
            )
            samples = torch.randn(2, 6, 5, device=device).to(dtype).requires_grad_(grad)
            pixels = torch.randint(0, 256, (6, 5), device=device, dtype=torch.uint8)
            yield ops.reparametrize.default, (a, b, seed, *noise_of)
            for reduction in ("none", "sample", "dimension", "sum"):
                yield ops.gaussian_kl.default, (a, b, 1, reduction)
                yield ops.gaussian_kl_prior.default, (a, b, c, d, 1, reduction)
                yield ops.reparametrize_kl.default, (a, b, seed, *noise_of, reduction)
            yield ops.gaussian_kl.default, (a, b, 1, "sample", 0.4, 5)
            yield ops.reparametrize_log_weight.default, (a, b, seed, *noise_of, 9)
            yield ops.bernoulli_log_prob.default, (samples, pixels, 255, 1)
            yield ops.gaussian_log_prob.default, (samples, samples, pixels, 255, 1)
    yield ops.normal.default, (6, 5, seed, 3, 2, None)
    yield ops.uniform.default, (3, 5, seed, 3, 0, index)
    yield ops.normal_into.default, (6, 5, seed, 3, 2, None, torch.zeros(6, 5, device=device))
    yield ops.permutation.default, (50, seed, 0)
    yield ops.fold_in.default, (seed, seed)
    for binarize in ("none", "threshold", "dynamic"):
        yield (
            ops.gather_batch.default,
            (pixels, index, None, seed, 0, 255.0, binarize, torch.float32),
        )


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck(cuda):
    torch.manual_seed(0)
    for operator, arguments in operator_samples(cuda):
        torch.library.opcheck(operator, arguments)
    torch.library.opcheck(torch.ops.fastvae.draw_seed.default, (), {"device": cuda})


def test_gradcheck(cuda):
    def make(*shape):
        return torch.randn(shape, dtype=torch.float64, device=cuda).requires_grad_()

    mu, logvar, prior_mu, prior_logvar = (make(3, 5) for _ in range(4))
    target = torch.rand(3, 5, dtype=torch.float64, device=cuda)
    samples = make(2, 3, 5)
    for function, tensors in (
        (lambda m, l: F.reparametrize(m, l, seed=SEED), (mu, logvar)),
        (lambda m, l: F.reparametrize_kl(m, l, seed=SEED), (mu, logvar)),
        (lambda m, l: F.reparametrize_kl(m, l, seed=SEED, reduction="none"), (mu, logvar)),
        (F.gaussian_kl, (mu, logvar, prior_mu, prior_logvar)),
        (lambda m, l: F.reparametrize_log_weight(m, l, num_samples=9, seed=SEED), (mu, logvar)),
        (lambda l: F.bernoulli_log_prob(l, target), (samples,)),
        (lambda m, l: F.gaussian_log_prob(m, l, target), (samples, make(2, 3, 5))),
    ):
        assert torch.autograd.gradcheck(function, tensors)


def test_double_backward_is_that_of_the_cpu(cuda, inputs):
    mu, logvar = inputs(dtype=torch.float64)

    def second(m, l):
        z, kl = F.reparametrize_kl(m, l, seed=SEED)
        first = torch.autograd.grad((z.sin().sum() + kl.square().sum()), (m, l), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (m, l))

    here = second(mu, logvar)
    there = second(*(t.detach().cpu().requires_grad_() for t in (mu, logvar)))
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-9)


@quiet_compiler
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_code_gives_what_eager_code_gives(cuda, inputs, mode):
    mu, logvar = inputs()
    seed = torch.tensor(SEED, device=cuda)

    def step(m, l, counter):
        z, kl = F.reparametrize_kl(m, l, seed=noise.fold_in(seed, counter))
        return z.sin().sum(-1) - kl

    compiled = torch.compile(step, fullgraph=True, mode=mode)
    for count in range(5):
        counter = torch.tensor(count, device=cuda)
        torch.compiler.cudagraph_mark_step_begin()
        found = compiled(mu, logvar, counter)
        grads = torch.autograd.grad(found.sum(), (mu, logvar))
        expected = step(mu, logvar, counter)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for a, b in zip(grads, torch.autograd.grad(expected.sum(), (mu, logvar)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@quiet_compiler
def test_default_seeds_are_fresh_in_compiled_graphs(cuda, inputs):
    mu, logvar = (t.detach() for t in inputs())
    compiled = torch.compile(F.reparametrize, fullgraph=True, mode="reduce-overhead")
    drawn = []
    for _ in range(5):
        torch.compiler.cudagraph_mark_step_begin()
        drawn.append(compiled(mu, logvar).clone())
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_a_captured_graph_draws_fresh_noise_at_each_replay(cuda, inputs):
    """The step counter is a tensor that the graph itself advances; the noise is the CPU's of that step."""
    mu, logvar = inputs()
    seed, counter = torch.tensor(SEED, device=cuda), torch.zeros((), dtype=torch.int64, device=cuda)

    def step():
        z, kl = F.reparametrize_kl(mu, logvar, seed=noise.fold_in(seed, counter))
        grads = torch.autograd.grad(z.square().sum() + kl.sum(), (mu, logvar))
        counter.add_(1)
        return z.detach(), kl.detach(), *grads

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for count in range(3, 7):
        assert counter.item() == count
        graph.replay()
        m, l = (t.detach().cpu().requires_grad_() for t in (mu, logvar))
        z, kl = F.reparametrize_kl(m, l, seed=noise.fold_in(SEED, count))
        expected = (z.detach(), kl.detach(), *torch.autograd.grad(z.square().sum() + kl.sum(), (m, l)))
        assert torch.equal(results[0].cpu(), expected[0])
        for found, wanted in zip(results[1:], expected[1:], strict=True):
            torch.testing.assert_close(found.cpu(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_device(cuda, inputs):
    """Not a forward, not a backward, not a batch: the host runs ahead."""
    mu, logvar = inputs((128, 32))
    seed, step = torch.tensor(SEED, device=cuda), torch.zeros((), dtype=torch.int64, device=cuda)
    data = torch.randint(0, 256, (1000, 784), dtype=torch.uint8, device=cuda)
    index, weights = torch.arange(128, device=cuda), torch.randn(32, 784, device=cuda)
    log_variance = torch.zeros((), device=cuda, requires_grad=True)

    def work():
        key = noise.fold_in(seed, step)
        x = F.gather_batch(data, index, data_max=255, binarize="dynamic", seed=key)
        z, kl = F.reparametrize_kl(mu, logvar, seed=key, free_bits=0.1)
        F.gaussian_kl(mu, logvar, free_bits=0.3, group_size=4).sum().backward()
        logits = z @ weights
        loss = (kl - F.bernoulli_log_prob(logits, x) - F.gaussian_log_prob(logits, log_variance, x)).mean()
        samples, log_weight = F.reparametrize_log_weight(mu, logvar, num_samples=9, seed=key)
        loss = loss + samples.mean() + log_weight.mean() + F.gaussian_kl(mu, logvar, mu * 2, logvar).mean()
        torch.autograd.grad(loss, (mu, logvar, log_variance))
        noise.permutation(1000, key, device=cuda)
        step.add_(1)

    work()  # what is compiled and allocated once may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_same_bits_on_every_run(cuda, inputs):
    mu, logvar = (t.detach() for t in inputs((300, 5000)))
    for reduction in ("none", "sample", "dimension", "sum"):
        runs = [torch.ops.fastvae.gaussian_kl(mu, logvar, 1, reduction) for _ in range(5)]
        assert all(torch.equal(runs[0], run) for run in runs)


def test_ten_million_normals_have_the_bits_of_the_cpu(cuda):
    """``benches/noise_gpu.py`` compares ten times as many."""
    here = noise.normal((1000, 10_000), SEED, draw=3, row_offset=2**40, device=cuda)
    there = noise.normal((1000, 10_000), SEED, draw=3, row_offset=2**40)
    assert torch.equal(here.cpu().view(torch.int32), there.view(torch.int32))


def test_the_root_of_the_noise_is_rounded_once(cuda):
    """For 0 and every float32 from 2^-24 to 64, which is all that -2 ln u can be."""
    lowest, highest = torch.tensor([2.0**-24, 64.0]).view(torch.int32).tolist()
    count = 2**25
    out = torch.empty(count, device=cuda)
    for first in range(lowest, highest, count):
        roots[(count // 1024,)](first, out, COUNT=1024, **cuda_ops.OPTIONS)
        x = torch.arange(first, first + count, dtype=torch.int32, device=cuda).view(torch.float32)
        # A root in float64 is so good that rounding it again is as rounding it once.
        assert torch.equal(out, x.double().sqrt().float())
    roots[(1,)](0, out, COUNT=1024, **cuda_ops.OPTIONS)
    assert out[0].item() == 0


@pytest.mark.slow
def test_offsets_beyond_32_bits(cuda):
    free, _ = torch.cuda.mem_get_info(cuda)
    rows, columns = 2**31 // 1000 + 100, 1000
    if free < 14 * rows * columns:
        pytest.skip(f"needs {14 * rows * columns >> 30} GiB of device memory, {free >> 30} are free")
    mu = torch.zeros(rows, columns, dtype=torch.bfloat16, device=cuda)
    logvar = torch.zeros((), dtype=torch.bfloat16, device=cuda).expand(rows, columns)
    mu[-1] = 3
    z, kl = torch.ops.fastvae.reparametrize_kl(mu, logvar, torch.tensor(SEED, device=cuda), 0, 0, 1, "sample")
    expected = noise.normal((1, columns), SEED, row_offset=rows - 1) + 3
    assert torch.equal(z[-1:].cpu(), expected.to(torch.bfloat16))
    assert kl[-1].item() == pytest.approx(4.5 * columns)
    assert kl[:-1].abs().max().item() == 0


def test_without_triton_the_reference_runs_on_the_device(cuda, inputs, monkeypatch):
    mu, logvar = inputs()
    z, kl = F.reparametrize_kl(mu, logvar, seed=SEED)
    monkeypatch.setattr(cuda_ops, "has_triton", lambda: False)
    monkeypatch.setattr(cuda_ops, "kernels", lambda name: pytest.fail(f"imported {name}"))
    plain_z, plain_kl = F.reparametrize_kl(mu, logvar, seed=SEED)
    assert plain_z.device == mu.device
    torch.testing.assert_close(z, plain_z, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(kl, plain_kl, rtol=2e-6, atol=2e-6)
    grads = torch.autograd.grad(plain_z.sum() + plain_kl.sum(), (mu, logvar))
    assert all(grad.isfinite().all() for grad in grads)


def test_the_default_seed_is_governed_by_manual_seed(cuda, inputs):
    mu, logvar = (t.detach() for t in inputs())
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(F.reparametrize(mu, logvar))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_autocast_gives_a_float32_kl(cuda):
    encoder = torch.nn.Linear(20, 8, device=cuda)
    with torch.autocast("cuda", torch.bfloat16):
        mu, logvar = encoder(torch.randn(16, 20, device=cuda)).chunk(2, -1)
        z, kl = F.reparametrize_kl(mu, logvar, seed=SEED)
    assert z.dtype is torch.bfloat16
    assert kl.dtype is torch.float32
    (z.float().sum() + kl.sum()).backward()
    assert encoder.weight.grad is not None
    assert encoder.weight.grad.isfinite().all()


def test_transforms_of_torch_func(cuda, inputs):
    mu, logvar = (t.detach() for t in inputs((6, 5), torch.float64))

    def loss(m, l):
        z, kl = F.reparametrize_kl(m, l, seed=SEED)
        return z.sin().sum() + kl.sum()

    here = torch.func.grad(loss, argnums=(0, 1))(mu, logvar)
    there = torch.func.grad(loss, argnums=(0, 1))(mu.cpu(), logvar.cpu())
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-9)


def test_results_can_be_changed_in_place(cuda, inputs):
    mu, logvar = inputs()
    z, kl = F.reparametrize_kl(mu, logvar, seed=SEED)
    z *= 2
    kl *= 0.5
    log_prob = F.bernoulli_log_prob(z, torch.rand_like(z))
    log_prob += kl
    torch.autograd.grad(log_prob.sum(), (mu, logvar))


def test_another_stream(cuda, inputs):
    mu, logvar = (t.detach() for t in inputs((500, 700)))
    expected = F.reparametrize(mu, logvar, seed=SEED)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        found = F.reparametrize(mu, logvar, seed=SEED)
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(found, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_on_a_device_that_is_not_the_current_one(cuda):
    other = torch.device("cuda", 1 - (cuda.index or 0))
    mu, logvar = torch.randn(2, 64, 33).unbind()
    z = F.reparametrize(mu.to(other), logvar.to(other), seed=SEED)
    assert z.device == other
    assert torch.equal(z.cpu(), F.reparametrize(mu, logvar, seed=SEED))


OUTSIDE = """
import torch
from fastvae import functional as F
data = torch.zeros(10, 4, dtype=torch.uint8, device="cuda")
F.gather_batch(data, torch.tensor([0, {row}], device="cuda"), data_max=255)
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("row", [10, -1, 2**40])
def test_an_index_outside_the_data_raises_and_reads_nothing(cuda, row):
    """In a process of its own: after an assertion on the device nothing works in it any more."""
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDE.format(row=row)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.returncode != 0
    assert "assert" in done.stderr
    assert "illegal memory access" not in done.stderr
