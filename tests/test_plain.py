"""The short way of plain tensors: which ones take it, and that it gives the bits of the long way."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastvae import _core, noise
from fastvae import functional as F
from fastvae.ops import (
    bernoulli_log_prob,
    gather_batch,
    gaussian_kl,
    gaussian_log_prob,
    library,
    reparametrize,
    reparametrize_kl,
    reparametrize_log_weight,
)

SEED = torch.tensor(77)
REDUCED = {"none": (6, 18), "sample": (6,), "dimension": (18,), "sum": ()}


def calls(dtype: torch.dtype = torch.float32) -> dict[str, tuple]:
    """An operator with arguments for each short way."""
    mu, logvar = torch.randn(6, 36).to(dtype).chunk(2, -1)
    grad_z = torch.randn(6, 18).to(dtype)
    noise = (SEED, 2, 5, 1)
    pixels = torch.randint(256, (6, 18), dtype=torch.uint8)
    found = {
        "reparametrize": (reparametrize.schema.reparametrize, mu, logvar, *noise),
        "reparametrize_backward": (reparametrize.schema.reparametrize_backward, grad_z, logvar, *noise),
        "bernoulli, bytes": (bernoulli_log_prob.schema.bernoulli_log_prob, mu, pixels, 255, 1),
        "bernoulli, bool": (bernoulli_log_prob.schema.bernoulli_log_prob, mu, pixels > 99, 1, 1),
        "bernoulli, floats": (bernoulli_log_prob.schema.bernoulli_log_prob, mu, pixels.to(dtype) / 255, 1, 1),
        "bernoulli_backward": (
            bernoulli_log_prob.schema.bernoulli_log_prob_backward,
            torch.randn(6).to(dtype),
            mu,
            pixels,
            255,
            1,
        ),
    }
    gaussian = gaussian_log_prob.schema
    variances = {"each": logvar, "one": logvar[0, 0], "one of two axes": logvar[:1, :1]}
    for name, variance in variances.items():
        for target in (pixels, pixels > 99, pixels.to(dtype) / 255):
            reading = (target, 255 if target.dtype is torch.uint8 else 1, 1)
            found[f"gaussian, {name}, {target.dtype}"] = (gaussian.gaussian_log_prob, mu, variance, *reading)
            found[f"gaussian_backward, {name}, {target.dtype}"] = (
                gaussian.gaussian_log_prob_backward,
                *(torch.randn(6).to(dtype), mu, variance, *reading),
            )
    samples, backward = (4, 6, 18), reparametrize_log_weight.schema.reparametrize_log_weight_backward
    grads = (torch.randn(samples).to(dtype), torch.randn(samples[:2]).to(dtype))
    found["log_weight"] = (
        reparametrize_log_weight.schema.reparametrize_log_weight,
        *(mu, logvar, *noise, 4),
    )
    for name, given in {
        "both": grads,
        "z": (grads[0], None),
        "weight": (None, grads[1]),
        "expanded": tuple(grad[:1, :1].expand_as(grad) for grad in grads),
        "weights apart": (None, grads[0][..., 0]),
    }.items():
        found[f"log_weight_backward, {name}"] = (backward, *given, mu, logvar, *noise, 4)
    for reduction, shape in REDUCED.items():
        grad = torch.randn(shape).to(dtype)
        kl, both = gaussian_kl.schema, reparametrize_kl.schema
        found |= {
            f"kl, {reduction}": (kl.gaussian_kl, mu, logvar, 1, reduction),
            f"kl_backward, {reduction}": (kl.gaussian_kl_backward, grad, mu, logvar, 1, reduction),
            f"both, {reduction}": (both.reparametrize_kl, mu, logvar, *noise, reduction),
            f"both_backward, {reduction}": (
                both.reparametrize_kl_backward,
                grad_z,
                grad,
                mu,
                logvar,
                *noise,
                reduction,
            ),
        }
    if dtype is torch.float32:
        index = torch.tensor([3, 0, 3])
        for kind, seed, rows in (
            ("none", None, None),
            ("threshold", None, None),
            ("dynamic", SEED, index + 9),
        ):
            for data in (pixels, pixels > 99, pixels / 255):
                found[f"gather, {kind}, {data.dtype}"] = (
                    gather_batch.schema.gather_batch,
                    *(data, index, rows, seed, 3, None if data.is_floating_point() else 255.0, kind),
                    torch.float32,
                )
    return found


def both_ways(operator, *arguments):
    short = library.PLAIN_KERNELS[operator](*arguments)
    return short, library.CPU_KERNELS[operator](*arguments)


def assert_same(short, long):
    for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (short, long)), strict=True):
        assert torch.equal(a, b)
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", calls())
def test_plain_tensors_give_the_bits_of_the_long_way(name, dtype):
    if name not in calls(dtype):
        pytest.skip("batches are of float32")
    short, long = both_ways(*calls(dtype)[name])
    assert short is not None
    assert_same(short, long)


LATENT = (reparametrize_kl.schema.reparametrize_kl, (SEED, 2, 5, 1, "sample"))


@pytest.mark.parametrize(
    ("shape", "event_dims"), [((), 0), ((1,), 1), ((5,), 0), ((2, 3, 4), 2), ((2, 1, 3, 1), 1), ((1,) * 8, 3)]
)
def test_every_shape(shape, event_dims):
    mu, logvar = torch.randn(shape), torch.randn(shape)
    short, long = both_ways(LATENT[0], mu, logvar, SEED, 2, 5, event_dims, "sample")
    assert_same(short, long)


def readable() -> dict[str, torch.Tensor]:
    """Layouts that kernels read where they are."""
    return {
        "parameter": nn.Parameter(torch.randn(6, 18)),
        "offset": torch.randn(109)[1:].view(6, 18),
        "expanded rows": torch.randn(18).expand(6, 18),
        "every other row": torch.randn(12, 18)[::2],
        "recorded": torch.randn(6, 18, requires_grad=True).mul(2),
        "inference": torch.inference_mode()(torch.ones)(6, 18),
    }


@pytest.mark.parametrize("name", readable())
def test_layouts_that_are_read_in_place(name):
    tensor = readable()[name]
    with torch.no_grad():
        short, long = both_ways(LATENT[0], tensor, tensor, *LATENT[1])
    assert short is not None
    assert_same(short, long)


class Subclass(torch.Tensor):
    pass


def resized(size: int) -> torch.Tensor:
    tensor = torch.zeros(6, 18)
    tensor.untyped_storage().resize_(size)
    return tensor


def unaligned() -> torch.Tensor:
    raw = bytearray(1) + torch.zeros(6, 18).numpy().tobytes()
    return torch.frombuffer(raw, dtype=torch.float32, offset=1).view(6, 18)


def not_plain() -> dict[str, object]:
    zeros = torch.zeros(6, 18)
    return {
        "no tensor": 0.0,
        "subclass": zeros.as_subclass(Subclass),
        "half": zeros.half(),
        "integers": zeros.long(),
        "meta": zeros.to("meta"),
        "sparse": zeros.to_sparse(),
        "mkldnn": zeros.to_mkldnn(),
        "negated": torch._neg_view(zeros),
        "zero tensor": torch._efficientzerotensor((6, 18)),
        "unaligned": unaligned(),
        "resized": resized(16),
        "freed": resized(0),
        "transposed": torch.zeros(18, 6).t(),
        "every other column": torch.zeros(6, 36)[:, ::2],
        "empty": torch.zeros(0, 18),
        "nine axes": torch.zeros((1,) * 7 + (6, 18)),
        "another shape": torch.zeros(6, 17),
        "another dtype": zeros.double(),
    }


@pytest.mark.parametrize("name", not_plain())
def test_what_is_not_plain_is_left_to_the_long_way(name):
    tensor, plain = not_plain()[name], torch.zeros(6, 18)
    operator, arguments = LATENT
    assert library.PLAIN_KERNELS[operator](plain, tensor, *arguments) is None
    assert library.PLAIN_KERNELS[operator](plain, plain, tensor, 2, 5, 1, "sample") is None
    gaussian = gaussian_log_prob.schema
    density = library.PLAIN_KERNELS[gaussian.gaussian_log_prob]
    density_backward = library.PLAIN_KERNELS[gaussian.gaussian_log_prob_backward]
    assert density(plain, tensor, plain, 1, 1) is None
    assert density(plain, plain, tensor, 1, 1) is None
    assert density_backward(tensor, plain, plain, plain, 1, 1) is None
    assert density_backward(torch.zeros(6), plain, tensor, plain, 1, 1) is None
    backward = library.PLAIN_KERNELS[reparametrize_kl.schema.reparametrize_kl_backward]
    assert backward(tensor, torch.zeros(6), plain, plain, *arguments) is None
    assert backward(plain, tensor, plain, plain, *arguments) is None
    weights = reparametrize_log_weight.schema
    several = library.PLAIN_KERNELS[weights.reparametrize_log_weight]
    assert several(plain, tensor, SEED, 2, 5, 1, 3) is None
    assert several(plain, plain, tensor, 2, 5, 1, 3) is None
    backward = library.PLAIN_KERNELS[weights.reparametrize_log_weight_backward]
    assert backward(tensor, None, plain, plain, SEED, 2, 5, 1, 3) is None
    assert backward(None, tensor, plain, plain, SEED, 2, 5, 1, 3) is None
    if name not in {"another shape", "another dtype"}:
        assert library.PLAIN_KERNELS[operator](tensor, tensor, *arguments) is None
        assert several(tensor, tensor, SEED, 2, 5, 1, 3) is None
        gather = library.PLAIN_KERNELS[gather_batch.schema.gather_batch]
        assert gather(tensor, torch.tensor([0]), None, None, 0, None, "none", torch.float32) is None


def test_attributes_that_hide_methods_are_not_called():
    """They could change a tensor whose address is known already."""
    mu, logvar, seed, out = torch.randn(6, 18), torch.randn(6, 18), torch.tensor(3), torch.zeros(6, 18)
    expected = F.reparametrize_kl(mu, logvar, seed=3), noise.normal((6, 18), 3)

    def called(*_):
        raise AssertionError

    for tensor in (mu, logvar, seed, out):
        for name in ("untyped_storage", "storage_offset", "is_neg", "new_empty"):
            setattr(tensor, name, called)
    z, kl = library.PLAIN_KERNELS[LATENT[0]](mu, logvar, seed, 0, 0, 1, "sample")
    assert_same((z, kl), expected[0])
    assert _core.plain_normal((6, 18), seed, 0, 0, 1, out, called) is out
    assert_same(out, expected[1])


def seed_beyond_its_storage(size: int) -> torch.Tensor:
    seed = torch.arange(2)[1]
    seed.untyped_storage().resize_(size)
    return seed


@pytest.mark.parametrize(
    "arguments",
    [
        (SEED, 2, 5, 3, "sample"),
        (SEED, 2, 5, 1, "median"),
        (SEED, 2, 5, 1, "sample", 0.5, 1),
        (SEED.int(), 2, 5, 1, "sample"),
        (torch.arange(2), 2, 5, 1, "sample"),
        (seed_beyond_its_storage(0), 2, 5, 1, "sample"),
        (seed_beyond_its_storage(8), 2, 5, 1, "sample"),
    ],
)
def test_arguments_that_are_not_plain(arguments):
    plain = torch.zeros(6, 18)
    assert library.PLAIN_KERNELS[LATENT[0]](plain, plain, *arguments) is None


def test_samples_of_as_many_axes_as_can_be_read_are_left_to_the_long_way():
    mu = torch.zeros((1,) * 6 + (6, 18))
    operator = reparametrize_log_weight.schema.reparametrize_log_weight
    assert library.PLAIN_KERNELS[operator](mu, mu, SEED, 0, 0, 1, 2) is None
    z, _ = F.reparametrize_log_weight(mu[0], mu[0], num_samples=2, seed=1)
    assert torch.equal(F.reparametrize_log_weight(mu, mu, num_samples=2, seed=1)[0], z.unsqueeze(1))


def test_no_sample_is_left_to_the_long_way():
    mu = torch.zeros(6, 18)
    operator = reparametrize_log_weight.schema.reparametrize_log_weight
    assert library.PLAIN_KERNELS[operator](mu, mu, SEED, 0, 0, 1, 0) is None
    assert operator(mu, mu, SEED, 0, 0, 1, 0)[0].shape == (0, 6, 18)


def test_gradients_of_another_number_of_samples_are_left_to_the_long_way():
    mu = torch.zeros(6, 18)
    operator = reparametrize_log_weight.schema.reparametrize_log_weight_backward
    arguments = (torch.zeros(4, 6, 18), None, mu, mu, SEED, 0, 0, 1, 3)
    assert library.PLAIN_KERNELS[operator](*arguments) is None
    with pytest.raises(ValueError, match=r"grad_z must be .* of shape \(3, 6, 18\)"):
        library.raw(operator, *arguments)


@pytest.mark.parametrize(
    ("target", "target_max", "event_dims"),
    [
        (torch.zeros(6, 18, dtype=torch.uint8), 0, 1),
        (torch.zeros(6, 18, dtype=torch.bool), 255, 1),
        (torch.zeros(6, 18), 255, 1),
        (torch.zeros(6, 18).double(), 1, 1),
        (torch.zeros(5, 18), 1, 1),
        (torch.zeros(18), 1, 1),
        (torch.zeros(6, 18), 1, 0),
    ],
)
def test_targets_that_are_not_plain(target, target_max, event_dims):
    short = library.PLAIN_KERNELS[bernoulli_log_prob.schema.bernoulli_log_prob]
    assert short(torch.zeros(6, 18), target, target_max, event_dims) is None
    short = library.PLAIN_KERNELS[gaussian_log_prob.schema.gaussian_log_prob]
    assert short(torch.zeros(6, 18), torch.zeros(()), target, target_max, event_dims) is None


@pytest.mark.parametrize("logvar", [torch.zeros(2), torch.zeros(18), torch.zeros(()).double()])
def test_log_variances_that_are_not_plain(logvar):
    zeros = torch.zeros(6, 18)
    short = library.PLAIN_KERNELS[gaussian_log_prob.schema.gaussian_log_prob]
    assert short(zeros, logvar, zeros, 1, 1) is None


def test_whoever_watches_sees_the_operator(watch):
    mu = torch.randn(6, 18)
    with watch:
        F.reparametrize_kl(mu, mu, seed=1)
    assert "fastvae.reparametrize_kl.default" in watch.seen
    with torch.autograd.profiler.profile() as profile:
        F.reparametrize_kl(mu, mu, seed=1)
    assert "fastvae::reparametrize_kl" in {event.name for event in profile.function_events}


OPERATIONS = {
    "reparametrize": lambda mu: F.reparametrize(mu, mu, seed=1),
    "gaussian_kl": lambda mu: F.gaussian_kl(mu, mu),
    "reparametrize_kl": lambda mu: F.reparametrize_kl(mu, mu, seed=1)[1],
    "reparametrize_log_weight": lambda mu: F.reparametrize_log_weight(mu, mu, num_samples=3, seed=1)[1],
    "bernoulli_log_prob": lambda mu: F.bernoulli_log_prob(mu, torch.ones(6, 18)),
    "gaussian_log_prob": lambda mu: F.gaussian_log_prob(mu, 0.0, torch.ones(6, 18)),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")
@pytest.mark.filterwarnings("ignore:Converting a tensor:torch.jit.TracerWarning")
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_trace_records_the_operator(name):
    """Not the memory that it was given, which a run of the trace would leave as it is."""
    operation, first, second = OPERATIONS[name], torch.randn(6, 18), torch.randn(6, 18)
    traced = torch.jit.trace(operation, first, check_trace=False)
    assert torch.equal(traced(second), operation(second))


@pytest.mark.parametrize("name", OPERATIONS)
def test_batched_gradients_are_those_of_each(name):
    """By torch's older vmap, which hides its batches in tensors of the usual type."""
    mu = torch.randn(6, 18, requires_grad=True)
    result = OPERATIONS[name](mu)
    grads = torch.randn(3, *result.shape)
    (batched,) = torch.autograd.grad(result, mu, grads, is_grads_batched=True, retain_graph=True)
    for grad, one in zip(grads, batched, strict=True):
        torch.testing.assert_close(one, torch.autograd.grad(result, mu, grad, retain_graph=True)[0])


def left_over(tensor: torch.Tensor) -> torch.Tensor:
    """What `torch.func.grad` wrapped a tensor in, after its end."""
    kept = []
    torch.func.grad(lambda x: (kept.append(x), x.sum())[1])(tensor)
    return kept[0]


CODES = torch.randn(6, 18)


@pytest.mark.parametrize(
    ("arguments", "described"),
    [
        ((CODES, nn.Parameter(CODES), SEED, 0, 1.0, "sample", None), True),
        ((CODES, CODES.bfloat16()), False),
        ((CODES, CODES.to("meta")), False),
        ((CODES, CODES.as_subclass(Subclass)), False),
        ((CODES, torch.empty(0)), False),
        ((CODES, left_over(CODES)), False),
        ((), True),
    ],
)
def test_what_memory_describes(arguments, described):
    assert _core.all_described(arguments) is described


@pytest.mark.parametrize("name", ["mu", "logvar"])
def test_what_is_left_over_from_a_transform_counts_as_what_it_was(name):
    given = {"mu": CODES.clone().requires_grad_(), "logvar": (CODES / 9).requires_grad_()}
    expected = F.reparametrize_kl(**given, seed=3)
    for output, wanted in zip(
        F.reparametrize_kl(**given | {name: left_over(given[name])}, seed=3), expected, strict=True
    ):
        assert torch.equal(output, wanted)
        assert output.requires_grad


def test_torch_is_not_asked_to_look_at_arguments_that_memory_describes(monkeypatch):
    """Nothing but time tells the two ways apart, so what would take it is forbidden."""

    def forbidden(*_):
        raise AssertionError("torch looks at every argument")

    monkeypatch.setattr(torch.autograd.Function, "apply", forbidden)
    mu, logvar = CODES.clone().requires_grad_(), CODES.clone().requires_grad_()
    sum(output.sum() for output in F.reparametrize_kl(mu, logvar)).backward()
    assert mu.grad is not None
    with pytest.raises(AssertionError, match="torch looks at every argument"):
        F.reparametrize_kl(mu.bfloat16(), logvar.bfloat16())


def test_the_short_way_is_taken(monkeypatch):
    taken = []
    for operator, function in library.PLAIN_KERNELS.items():

        def record(*arguments, operator=operator, function=function):
            result = function(*arguments)
            taken.append((str(operator), result is not None))
            return result

        monkeypatch.setitem(library.PLAIN_KERNELS, operator, record)
    data = torch.randint(256, (9, 18), dtype=torch.uint8)
    x = F.gather_batch(data, torch.arange(6), data_max=255, binarize="dynamic", seed=1)
    mu, logvar = torch.randn(6, 36).requires_grad_().chunk(2, -1)
    z, kl = F.reparametrize_kl(mu, logvar)
    (F.bernoulli_log_prob(z, x) - kl).mean().backward()
    F.reparametrize_log_weight(mu, logvar, num_samples=3)[1].mean().backward()
    F.gaussian_log_prob(mu, 0.0, x).mean().backward()
    assert taken == [
        ("fastvae.gather_batch.default", True),
        ("fastvae.reparametrize_kl.default", True),
        ("fastvae.bernoulli_log_prob.default", True),
        ("fastvae.bernoulli_log_prob_backward.default", True),
        ("fastvae.reparametrize_kl_backward.default", True),
        ("fastvae.reparametrize_log_weight.default", True),
        ("fastvae.reparametrize_log_weight_backward.default", True),
        ("fastvae.gaussian_log_prob.default", True),
        ("fastvae.gaussian_log_prob_backward.default", True),
    ]


@pytest.mark.parametrize(
    ("change", "usual"),
    [
        ({}, True),
        ({"mu": nn.Parameter(torch.zeros(6, 18))}, True),
        ({"mu": torch.zeros(6, 17)}, False),
        ({"logvar": torch.zeros(6, 18).double()}, False),
        ({"logvar": None}, False),
        ({"event_dims": 3}, False),
        ({"event_dims": True}, False),
        ({"event_dims": -1}, False),
        ({"draw": 2**32}, False),
        ({"draw": 1.0}, False),
        ({"row_offset": 2**63 - 1}, True),
        ({"row_offset": 2**63}, False),
        ({"row_offset": 2**70}, False),
    ],
)
def test_arguments_that_need_no_word(change, usual):
    zeros = torch.zeros(6, 18)
    arguments = {"mu": zeros, "logvar": zeros, "event_dims": 1, "draw": 0, "row_offset": 0}
    assert _core.plain_latent(**{**arguments, **change}) is usual


# The exchange API


class Header(ctypes.Structure):
    """``DLPackExchangeAPIHeader``."""

    _fields_ = (("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("previous", ctypes.c_void_p))


CAPSULE_NAME = b"dlpack_exchange_api"


def torch_with(header: Header | None) -> SimpleNamespace:
    """A stand-in for torch whose tensors have this table."""
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    members = {"header": header}  # for as long as the capsule has its address
    if header is not None:
        members["__dlpack_c_exchange_api__"] = new(ctypes.addressof(header), CAPSULE_NAME, None)
    kind = type("Tensor", (), members)
    return SimpleNamespace(Tensor=kind, nn=nn, float32=torch.float32, get_num_threads=torch.get_num_threads)


def test_a_table_of_another_major_version_is_refused():
    assert _core.use_torch_tensors(torch)
    assert not _core.use_torch_tensors(torch_with(Header(2, 0, None)))
    assert not _core.use_torch_tensors(torch_with(Header(0, 9, None)))
    assert not _core.use_torch_tensors(torch_with(None))


def test_without_the_table_the_long_way_gives_the_same_bits():
    code = """
import hashlib, sys, torch
if len(sys.argv) > 1:
    torch.Tensor.__dlpack_c_exchange_api__ = None
from fastvae import _core, functional as F
from fastvae.ops import library
torch.manual_seed(0)
mu, logvar = (torch.randn(50, 33).requires_grad_() for _ in range(2))
z, kl = F.reparametrize_kl(mu, logvar)
(z.sin().sum() + kl.sum()).backward()
results = [z.detach(), kl.detach(), mu.grad, logvar.grad]
print(_core.plain_latent(mu, logvar, 1, 0, 0))
print(hashlib.sha256(b"".join(t.numpy().tobytes() for t in results)).hexdigest())
"""
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code, *extra], capture_output=True, text=True, check=True
        ).stdout
        for extra in ([], ["without"])
    ]
    (short, bits), (long, same_bits) = (output.split() for output in outputs)
    assert (short, long) == ("True", "False")
    assert bits == same_bits
