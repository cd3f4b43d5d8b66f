"""The kernels for CUDA without a device: their maths in Triton's interpreter, their code by its compiler."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastvae.models import Terms
from fastvae.ops import (
    bernoulli_log_prob,
    cuda,
    gather_batch,
    gaussian_kl,
    gaussian_log_prob,
    reparametrize,
    reparametrize_kl,
    reparametrize_log_weight,
)
from fastvae.ops import noise as noise_ops
from fastvae.ops.cuda import CUDA_KERNELS, TILE, WARPS, compiles_for
from fastvae.ops.noise import reference
from fastvae.training import small_layers
from fastvae.training.fused_adam import FusedAdam
from fastvae.training.history import add_in_one_launch

triton = pytest.importorskip("triton", reason="needs Triton: pip install 'fastvae[test]' brings it on Linux")

DEVICE_TESTS = Path(__file__).parent / "device"
FILES = sorted({path.name for path in DEVICE_TESTS.glob("test_*.py")} - {"test_on_cuda.py"})


@pytest.mark.skipif(
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9),
    reason="needs Triton 3.9: older interpreters round a fused multiply-add twice",
)
@pytest.mark.parametrize("file", FILES)
def test_in_the_interpreter(file):
    """A process of its own: Triton looks for the variable when a kernel is defined."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", DEVICE_TESTS / file]
    done = subprocess.run(
        command,
        cwd=DEVICE_TESTS.parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout, done.stdout


def test_triton_is_imported_by_the_first_call_that_needs_it():
    code = """
import sys, torch
import fastvae
from fastvae import functional as F
mu, logvar = torch.zeros(3, 4, requires_grad=True), torch.zeros(3, 4, requires_grad=True)
z, kl = F.reparametrize_kl(mu, logvar, seed=1)
(z.sum() + kl.sum()).backward()
assert "triton" not in sys.modules, "it takes a second, for nothing"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_triton_that_cannot_start_is_done_without(monkeypatch):
    """Where there is no C compiler for its launchers, say."""
    from triton.runtime.driver import driver

    class Broken:
        def get_current_target(self):
            raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(driver, "_active", Broken())
    with pytest.warns(RuntimeWarning, match=r"Failed to find C compiler\): .* plain torch operations"):
        assert not compiles_for.__wrapped__(0)
    monkeypatch.setattr(driver, "_active", OneDevice(90))
    assert compiles_for.__wrapped__(0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    assert not compiles_for.__wrapped__(0)


class OneDevice:
    """A driver for Triton that knows what to compile for, and has nothing to run on."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return device


@pytest.fixture(params=[80, 90], ids=["sm_80", "sm_90"])
def compiled(request, monkeypatch, tmp_path):
    """From an operator or a function and its arguments to the PTX of the kernels that a call would launch."""
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = []
    run = JITFunction.run

    class Started:
        def __getitem__(self, grid):
            return lambda *_: None

    def compile_only(self, *arguments, grid, warmup, **options):
        assert warmup, "launched by itself"
        self.device_caches.clear()
        found.append(run(self, *arguments, grid=grid, warmup=True, **options))
        return Started()

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(cuda, "STARTERS", {})
    monkeypatch.setattr(driver, "_active", OneDevice(request.param))

    def ptx_of(function, *arguments, **options):
        found.clear()
        cuda.STARTERS.clear()
        CUDA_KERNELS.get(function, function)(*arguments, **options)
        assert found
        return [kernel.asm["ptx"] for kernel in found]

    yield ptx_of
    for kernel in {id(k): k for k in _kernels()}.values():
        kernel.device_caches.clear()


def _kernels():
    from triton.runtime.jit import JITFunction

    return [
        value
        for name, module in sys.modules.items()
        if name.startswith("fastvae.ops.triton.")
        for value in vars(module).values()
        if isinstance(value, JITFunction)
    ]


def latent(dtype, shape=(64, 1024)):
    return torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)


def calls(dtype):
    """Each operator once as training calls it, with long rows: there the code has to be at its best."""
    mu, logvar = latent(dtype)
    opmath = torch.float64 if dtype is torch.float64 else torch.float32
    seed, rows = torch.tensor(1), torch.zeros(64, dtype=opmath)
    pixels, index = torch.zeros(64, 1024, dtype=torch.uint8), torch.arange(64)
    z, weight = torch.zeros(8, 64, 1024, dtype=dtype), torch.zeros(8, 64, dtype=opmath)
    log_weight = reparametrize_log_weight.schema
    yield reparametrize.schema.reparametrize, (mu, logvar, seed, 1, 1, 1)
    yield reparametrize.schema.reparametrize_backward, (mu, logvar, seed, 1, 1, 1)
    for reduction in ("none", "sample", "dimension"):
        yield gaussian_kl.schema.gaussian_kl, (mu, logvar, 1, reduction)
    yield reparametrize_kl.schema.reparametrize_kl, (mu, logvar, seed, 0, 0, 1, "sample")
    yield reparametrize_kl.schema.reparametrize_kl, (mu, logvar, seed, 0, 0, 1, "sample", 0.5, 1)
    yield reparametrize_kl.schema.reparametrize_kl_backward, (mu, rows, mu, logvar, seed, 0, 0, 1, "sample")
    yield gaussian_kl.schema.gaussian_kl_prior, (mu, logvar, mu, logvar, 1, "sample")
    yield gaussian_kl.schema.gaussian_kl_prior_backward, (rows, mu, logvar, mu, logvar, 1, "sample")
    yield log_weight.reparametrize_log_weight, (mu, logvar, seed, 0, 0, 1, 8)
    yield log_weight.reparametrize_log_weight_backward, (z, weight, mu, logvar, seed, 0, 0, 1, 8)
    yield bernoulli_log_prob.schema.bernoulli_log_prob, (z, pixels, 255, 1)
    yield bernoulli_log_prob.schema.bernoulli_log_prob_backward, (weight, z, pixels, 255, 1)
    yield gaussian_log_prob.schema.gaussian_log_prob, (z, z, pixels, 255, 1)
    yield gaussian_log_prob.schema.gaussian_log_prob_backward, (weight, z, z, pixels, 255, 1)
    if dtype is torch.float32:
        yield noise_ops.schema.normal, (64, 1024, seed, 0, 0, None)
        yield noise_ops.schema.uniform, (64, 1024, seed, 0, 0, index)
        yield noise_ops.schema.permutation, (1000, seed, 0)
        yield noise_ops.schema.fold_in, (seed, seed)
        for binarize in ("none", "threshold", "dynamic"):
            yield gather_batch.schema.gather_batch, (pixels, index, None, seed, 0, 255.0, binarize, dtype)


def test_every_kernel_of_the_cpu_has_one_for_cuda():
    from fastvae.ops.library import CPU_KERNELS

    assert not [str(operator) for operator in CPU_KERNELS if operator not in CUDA_KERNELS]


LOOSE = re.compile(r"\S*\.(?:approx|ftz)\S*|div\.full\S*|\.local\b")
"""What is not correctly rounded, or loses subnormal numbers, or goes through memory of a thread's own."""

CORRECTED = "rsqrt.approx.ftz.f32"
"""What the square root of the noise begins with; what it makes of that is rounded once."""

CONTRACTED = re.compile(r"\b(?:add|sub|mul)\.f(?:32|64)\b|\bmad\.f\S*")
"""What an assembler may fuse: with a rounding mode it does not."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_code_for_a_device_rounds_as_the_kernels_of_the_cpu_do(compiled, dtype):
    for operator, arguments in calls(dtype):
        for ptx in compiled(operator, *arguments):
            assert not LOOSE.findall(ptx.replace(CORRECTED, "")), operator
            assert not CONTRACTED.findall(ptx), operator


def test_neighbours_are_written_together(compiled):
    """A thread has whole blocks of the noise: it writes them without asking its neighbours."""
    mu, logvar = latent(torch.float32)
    (ptx,) = compiled(reparametrize.schema.reparametrize, mu, logvar, torch.tensor(1), 0, 0, 1)
    assert "st.global.v4" in ptx
    assert "ld.global.v4" in ptx
    assert ".shared" not in ptx


def step_of_adam(sizes, *, shift=0):
    """A step for parameters of these sizes, if wanted where no 16 bytes begin."""
    parameters = [torch.zeros(size + shift)[shift:] for size in sizes]
    adam = FusedAdam(parameters, [(1e-3, 0.1)] * len(sizes), beta1=0.9, beta2=0.999, eps=1e-8)
    adam.step([torch.zeros(70), torch.zeros(70)], [torch.zeros(size) for size in sizes])


def add_to_totals():
    terms = Terms(torch.zeros(70), torch.zeros(70))
    add_in_one_launch(torch.zeros(4, dtype=torch.float64), terms, torch.zeros(()))


@pytest.mark.parametrize("sizes", [[5000], [784 * 400, 400, 3], [1025] * 64], ids=["1", "3", "64"])
def test_adam_is_rounded_as_it_says_and_reads_neighbours_together(compiled, sizes):
    looks, updates = compiled(step_of_adam, sizes)
    for ptx in (looks, updates):
        assert not LOOSE.findall(ptx)
        assert not CONTRACTED.findall(ptx)
        assert "ld.global.v4" in ptx
    # A whole chunk is eight elements of four tensors for each thread, of which three are written.
    assert updates.count("st.global.v4") >= 6
    rounded = len(re.findall(r"\bdiv\.rn\.f32\b", updates)), len(re.findall(r"\bsqrt\.rn\.f32\b", updates))
    assert rounded == (16, 16), "of a whole chunk and of a last one, once for each element"


def test_adam_takes_parameters_that_lie_anywhere(compiled):
    """Their averages and gradients are aligned all the same."""
    looks, updates = compiled(step_of_adam, [4096, 1025], shift=1)
    assert "ld.global.v4" in looks
    assert 4 <= updates.count("st.global.v4") < updates.count("st.global")
    for ptx in (looks, updates):
        assert not LOOSE.findall(ptx)
        assert not CONTRACTED.findall(ptx)


def test_a_step_of_adam_is_compiled_once(compiled):
    """Wherever its gradients and outputs lie, and whichever parameters have a gradient."""
    parameters = [torch.zeros(size) for size in (5000, 41, 1)]
    adam = FusedAdam(parameters, [(1e-3, 0.1)] * 3, beta1=0.9, beta2=0.999, eps=1e-8)
    codes = set()
    for outputs, shifts in (((70, 70), (0, 0, 0)), ((1,), (1, 0, 2)), ((64, 3, 9), (None, 1, 0))):
        gradients = [
            None if shift is None else torch.zeros(parameter.numel() + shift)[shift:]
            for parameter, shift in zip(parameters, shifts, strict=True)
        ]
        codes.add(tuple(compiled(adam.step, [torch.zeros(size + 1)[1:] for size in outputs], gradients)))
    assert len(codes) == 1


def test_totals_are_rounded_as_they_say(compiled):
    (ptx,) = compiled(add_to_totals)
    assert not LOOSE.findall(ptx)
    assert not CONTRACTED.findall(ptx)


def layer_and_gradients(rows, inputs, outputs):
    x, weight, bias = torch.zeros(rows, inputs), torch.zeros(outputs, inputs), torch.zeros(outputs)
    y = small_layers.forward(x, weight, bias, relu=True)
    small_layers.of_input(y, y, weight)
    small_layers.of_weight(y, y, x, weight)


def test_a_layer_is_one_kernel_for_each_result_that_reads_neighbours_together(compiled, monkeypatch):
    monkeypatch.setattr(small_layers, "_has_kernels", lambda _: True)
    kernels = compiled(layer_and_gradients, 20, 200, 100)
    assert len(kernels) == 3
    for ptx in kernels:
        assert not LOOSE.findall(ptx)
        assert "ld.global.v4" in ptx
    assert compiled(layer_and_gradients, 17, 212, 90) == kernels, "the same for layers of about that size"


def test_a_layer_of_long_sums_is_no_more_code(compiled, monkeypatch):
    """A sum that was written out for each of its parts would take minutes to compile, in a capture."""
    monkeypatch.setattr(small_layers, "_has_kernels", lambda _: True)
    forward, of_input, _ = compiled(layer_and_gradients, 2, 1500, 1100)
    assert len(compiled(layer_and_gradients, 2, 4096, 60)[0]) < 1.1 * len(forward)
    assert len(compiled(layer_and_gradients, 2, 60, 4096)[1]) < 1.1 * len(of_input)


@pytest.mark.usefixtures("compiled")
def test_what_starts_a_kernel_is_remembered_for_calls_that_it_fits():
    operator, seed = reparametrize.schema.reparametrize, torch.tensor(1)
    mu, logvar = latent(torch.float32)

    def starters(mu, logvar, draw=0, row_offset=0):
        CUDA_KERNELS[operator](mu, logvar, seed, draw, row_offset, 1)
        return len(cuda.STARTERS)

    assert starters(mu, logvar) == 1
    assert starters(mu.clone(), logvar.clone(), draw=5, row_offset=48) == 1, "numbers that no code depends on"
    assert starters(mu, logvar, row_offset=2**31) == 2, "64 bits"
    assert starters(mu[:63], logvar[:63]) == 3, "another shape"
    shifted = torch.zeros(64 * 1024 + 1)[1:].view(64, 1024)
    assert starters(mu, shifted) == 4, "not aligned to 16 bytes"
    assert starters(mu.half(), logvar.half()) == 5, "another dtype"


def test_nothing_is_fused_but_what_the_contract_fuses(compiled):
    """A compiler that fused a product and a sum by itself would have more of them."""
    (ptx,) = compiled(noise_ops.schema.normal, 64, 1024, torch.tensor(1), 0, 0, None)
    of_the_root = 2
    of_a_pair = (
        (len(reference.LOG) - 1) + 1 + of_the_root + 1 + (len(reference.SIN) - 1) + (len(reference.COS) - 1)
    )
    pairs_of_a_thread = TILE // (32 * WARPS) // 2
    assert len(re.findall(r"\bfma\.rn\.f32\b", ptx)) == of_a_pair * pairs_of_a_thread
    (ptx,) = compiled(noise_ops.schema.uniform, 64, 1024, torch.tensor(1), 0, 0, None)
    assert "fma" not in ptx
