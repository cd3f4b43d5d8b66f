"""Batches gathered in one pass have the bits of the operations that they stand for.

The truth is torch: ``index_select``, a division, the contract's uniforms, a comparison.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from fastvae import _core, noise
from fastvae import functional as F
from fastvae.data import open_data
from fastvae.data.base import Subset
from fastvae.data.binarize import Binarize
from fastvae.data.loader import LoaderData
from fastvae.data.resident import ResidentData
from fastvae.data.stream import StreamData
from fastvae.ops.gather_batch import reference
from fastvae.training import train

SEED = 11
KINDS = [None, "dynamic", "threshold"]
kinds = pytest.mark.parametrize("kind", KINDS)
# torch.compile and torch.jit warn about parts of torch itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


def plain(data, index, *, data_max=None, binarize=None, seed=SEED, draw=0, rows=None, dtype=torch.float32):
    """The same, step by step."""
    x = data[index].to(torch.float32)
    if data_max is not None:
        x.div_(data_max)
    if binarize == "dynamic":
        rows = index if rows is None else rows
        x = (noise.uniform(x.shape, seed, draw=draw, rows=rows, event_dims=x.dim() - 1) < x).float()
    elif binarize == "threshold":
        x = (x > 0.5).float()
    return x.to(dtype)


def same(a, b):
    """Equal in shape, dtype and every bit."""
    whole = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return (a.shape, a.dtype) == (b.shape, b.dtype) and torch.equal(a.view(whole), b.view(whole))


def pixels(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def grays(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


DATA = pixels(30, 5, 7)
INDEX = torch.tensor([29, 0, 3, 3, 17, 29])


# Bits


@given(
    samples=st.integers(1, 20),
    batch=st.integers(0, 12),
    shape=st.lists(st.sampled_from([0, 1, 2, 3, 15, 16, 17, 33, 130]), max_size=2),
    dtype=st.sampled_from([torch.uint8, torch.bool, torch.float32, torch.bfloat16, torch.float16]),
    gap=st.integers(0, 2),
    data_max=st.sampled_from([None, 255, 2, 0.3]),
    kind=st.sampled_from(KINDS),
    result=st.sampled_from([torch.float32, torch.bfloat16]),
    draw=st.integers(0, 2**32 - 1),
    seed=st.integers(0, 2**32),
)
def test_every_batch_is_that_of_the_plain_operations(
    samples, batch, shape, dtype, gap, data_max, kind, result, draw, seed
):
    generator = torch.Generator().manual_seed(seed)
    columns = int(np.prod(shape, dtype=np.int64))
    memory = torch.randint(0, 256, (samples, columns + gap), generator=generator, dtype=torch.uint8)
    memory = memory if dtype is torch.uint8 else (memory / 255).to(dtype)
    data = memory[:, :columns].unflatten(1, shape) if shape else memory[:, 0]
    index = torch.randint(0, samples, (batch,), generator=generator)
    if kind and dtype is torch.uint8:
        data_max = data_max or 255
    options = {"data_max": data_max, "binarize": kind, "seed": seed, "draw": draw, "dtype": result}
    got = F.gather_batch(data, index, **options)
    assert got.is_contiguous()
    assert same(got, plain(data, index, **options))


def test_every_pixel_is_divided_as_torch_divides():
    data = torch.arange(256, dtype=torch.uint8)[:, None]
    index = torch.arange(256)
    got = F.gather_batch(data, index, data_max=255)
    assert same(got, data.float().div_(255))
    truth = (torch.arange(256, dtype=torch.float64) / 255)[:, None]
    assert same(got, truth.float())
    narrow = F.gather_batch(data, index, data_max=255, dtype=torch.bfloat16)
    assert same(narrow, truth.to(torch.bfloat16)), "rounded twice, and no less right for it"


def test_values_that_are_no_numbers_and_signs_of_zero_pass_through():
    data = torch.tensor([[0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, 0.5, 1.0]])
    zero = torch.zeros(1, dtype=torch.int64)
    assert same(F.gather_batch(data, zero), data)
    assert F.gather_batch(data, zero, binarize="threshold").tolist() == [[0, 0, 1, 0, 0, 0, 0, 1]]
    for seed in range(20):
        got = F.gather_batch(data, zero, binarize="dynamic", seed=seed)
        assert same(got, plain(data, zero, binarize="dynamic", seed=seed))
        assert got[0, [0, 1, 2, 3, 4, 7]].tolist() == [0, 0, 1, 0, 0, 1]


def test_drawn_pixels_have_their_value_as_mean():
    """Five standard errors of 200,000 draws each."""
    data = torch.tensor([0, 1, 64, 200, 254, 255], dtype=torch.uint8)[:, None].expand(-1, 200_000)
    means = F.gather_batch(data.contiguous(), torch.arange(6), data_max=255, binarize="dynamic", seed=3).mean(
        1
    )
    probability = torch.tensor([0, 1, 64, 200, 254, 255]) / 255
    assert ((means - probability).abs() <= 5 * (probability * (1 - probability) / 200_000).sqrt()).all()


@pytest.mark.parametrize("data", [DATA, grays(30, 5, 7)], ids=["uint8", "float32"])
def test_a_sample_looks_the_same_in_whatever_batch_it_comes(data):
    options = {"data_max": 255 if data.dtype is torch.uint8 else None, "binarize": "dynamic", "seed": SEED}
    whole = F.gather_batch(data, torch.arange(30), **options)
    assert same(F.gather_batch(data, INDEX, **options), whole[INDEX])
    order = noise.permutation(30, 2)
    for size in (1, 4, 29):
        parts = [F.gather_batch(data, part, **options) for part in order.split(size)]
        assert same(torch.cat(parts), whole[order])
    assert not torch.equal(whole, F.gather_batch(data, torch.arange(30), **options, draw=1))


def test_rows_name_the_samples_of_a_part():
    part = DATA[10:20]
    index = torch.tensor([9, 0, 4])
    options = {"data_max": 255, "binarize": "dynamic", "seed": SEED}
    got = F.gather_batch(part, index, rows=index + 10, **options)
    assert same(got, F.gather_batch(DATA, index + 10, **options))
    strided = torch.stack([index + 10, index], 1)[:, 0]
    assert same(got, F.gather_batch(part, index, rows=strided, **options))
    assert same(F.gather_batch(part, index, rows=index * 0 + 2**62, **options),
                plain(part, index, rows=index * 0 + 2**62, **options))  # fmt: skip


@kinds
@pytest.mark.parametrize(
    "view",
    [
        lambda t: t,
        lambda t: t[::2],
        lambda t: t[:, 1:3],
        lambda t: t[:1].expand(30, 5, 7),
        lambda t: t.transpose(1, 2),
        lambda t: t[:, :, ::2],
        lambda t: t.permute(2, 0, 1),
        lambda t: t[:, :1, :1],
        lambda t: t[:, :, 0],
        lambda t: t[3:4],
    ],
)
def test_strides_of_every_kind(view, kind):
    for data in (view(DATA), view(grays(30, 5, 7))):
        data_max = 255 if data.dtype is torch.uint8 else None
        index = torch.tensor([0, len(data) - 1, 0])
        options = {"data_max": data_max, "binarize": kind, "seed": SEED}
        assert same(F.gather_batch(data, index, **options), plain(data, index, **options))


def test_a_lazily_negated_view_is_read_with_its_sign():
    data = torch.complex(torch.zeros(4, 3), grays(4, 3)).conj().imag
    assert data.is_neg()
    assert same(F.gather_batch(data, torch.tensor([2, 1])), data[[2, 1]].resolve_neg())


def test_out_index_and_rows_may_be_stored_with_the_opposite_sign():
    memory, index, rows = torch.zeros(2, 3), torch.tensor([2, 1]), torch.tensor([7, 5])
    out, data = torch._neg_view(memory), grays(4, 3)
    assert F.gather_batch(data, torch._neg_view(-index), out=out) is out
    assert same(out.resolve_neg(), data[index])
    assert same(-memory, data[index])
    options = {"seed": SEED, "binarize": "dynamic"}
    drawn = F.gather_batch(data, index, rows=torch._neg_view(-rows), **options)
    assert same(drawn, F.gather_batch(data, index, rows=rows, **options))
    with pytest.raises(IndexError, match="got -2"):
        F.gather_batch(data, torch._neg_view(index))


def test_a_strided_index():
    index = torch.stack([INDEX, INDEX.flip(0)], 1)[:, 0]
    assert same(F.gather_batch(DATA, index), DATA[INDEX].float())


@kinds
@pytest.mark.parametrize("shape", [(3, 400_000), (1_000_000, 1), (1500, 784)])
def test_thread_counts_give_the_same_bits(shape, kind, threads):
    data = pixels(*shape)
    index = noise.permutation(len(data), 1)
    results = []
    for count in (1, 2, 7):
        threads(count)
        results.append(F.gather_batch(data, index, data_max=255, binarize=kind, seed=SEED))
    assert same(results[0], results[1])
    assert same(results[0], results[2])


@pytest.mark.parametrize("level", _core.levels())
def test_every_instruction_set_gives_the_same_bits(level):
    """Another process, with a level forced; the Rust tests have every dtype and shape."""
    code = """
import torch
from fastvae import functional as F
data = torch.arange(256 * 45).mul(97).remainder(256).to(torch.uint8).view(256, 45)
for kind in (None, "dynamic", "threshold"):
    got = F.gather_batch(data, torch.arange(255, -1, -1), data_max=255, binarize=kind, seed=11)
    print(got.numpy().tobytes().hex())
"""
    environment = {**os.environ, "FASTVAE_SIMD": level}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    data = torch.arange(256 * 45).mul(97).remainder(256).to(torch.uint8).view(256, 45)
    for kind, line in zip(KINDS, run.stdout.split(), strict=True):
        expected = plain(data, torch.arange(255, -1, -1), data_max=255, binarize=kind)
        assert line == expected.numpy().tobytes().hex(), kind


# Seeds


def test_the_seed_is_taken_as_everywhere():
    options = {"data_max": 255, "binarize": "dynamic"}
    expected = plain(DATA, INDEX, **options)
    for seed in (SEED, np.int64(SEED), torch.tensor(SEED), torch.tensor([SEED]), SEED + 0):
        assert same(F.gather_batch(DATA, INDEX, seed=seed, **options), expected)
    torch.manual_seed(1)
    first, second = (F.gather_batch(DATA, INDEX, **options) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert same(first, F.gather_batch(DATA, INDEX, **options))


def test_nothing_is_drawn_where_nothing_is_random():
    state = torch.get_rng_state()
    F.gather_batch(DATA, INDEX)
    F.gather_batch(DATA, INDEX, data_max=255, binarize="threshold")
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("kind", ["dynamic", "threshold"])
def test_bytes_that_become_binary_have_a_value_that_is_1(kind):
    """Without one, any gray is a 1."""
    with pytest.raises(ValueError, match=r"needs data_max, .*=255 for pixels, data_max=1 where"):
        F.gather_batch(DATA, INDEX, binarize=kind, seed=SEED)
    binary = (DATA > 99).to(torch.uint8)
    assert same(F.gather_batch(binary, INDEX, data_max=1, binarize=kind, seed=SEED), binary[INDEX].float())
    assert same(F.gather_batch(DATA > 99, INDEX, binarize=kind, seed=SEED), binary[INDEX].float())


# A given tensor


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_out_is_written_over_and_returned(kind, dtype):
    out = torch.full((6, 5, 7), torch.nan, dtype=dtype)
    options = {"data_max": 255, "binarize": kind, "seed": SEED, "dtype": dtype}
    for index in (INDEX, INDEX.flip(0)):
        assert F.gather_batch(DATA, index, out=out, **options) is out
        assert same(out, plain(DATA, index, **options))
    strided = DATA.transpose(1, 2).contiguous().transpose(1, 2)
    assert same(F.gather_batch(strided, INDEX, out=out, **options), plain(DATA, INDEX, **options))


def test_out_may_be_a_part_of_a_larger_tensor():
    whole = torch.zeros(10, 5, 7)
    F.gather_batch(DATA, INDEX, out=whole[2:8])
    assert same(whole[2:8], DATA[INDEX].float())
    assert not whole[:2].any()
    assert not whole[8:].any()


@pytest.mark.parametrize("strided", [False, True])
def test_a_backward_that_kept_the_old_batch_fails(strided):
    """As it does for torch's own in-place operations: gradients of other data would be silently wrong."""
    data = DATA.transpose(1, 2) if strided else DATA
    out = F.gather_batch(data, INDEX)
    weight = torch.ones_like(out, requires_grad=True)
    loss = (weight * out).sum()
    F.gather_batch(data, INDEX.flip(0), out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros((6, 5, 7), np.float32), TypeError, "out must be a torch.float32 tensor.*numpy.ndarray"),
        (
            torch.zeros(6, 5, 7, dtype=torch.bfloat16),
            TypeError,
            "out must be a torch.float32 tensor, as dtype",
        ),
        (torch.zeros(5, 5, 7), ValueError, r"out must be contiguous, of shape \(6, 5, 7\) on cpu"),
        (torch.zeros(6, 35), ValueError, r"of shape \(6, 5, 7\)"),
        (torch.zeros(6, 7, 5).transpose(1, 2), ValueError, r"contiguous.*strides \(35, 1, 5\)"),
        (torch.zeros(6, 5, 7, device="meta"), ValueError, "on cpu, got a torch.float32 tensor.*on meta"),
        (torch.zeros(6, 5, 7, requires_grad=True), ValueError, "must not require grad"),
    ],
)
def test_an_out_that_does_not_fit(out, error, message):
    with pytest.raises(error, match=f"^gather_batch: .*{message}"):
        F.gather_batch(DATA, INDEX, out=out)


def test_out_must_not_be_the_data_or_the_index():
    data = grays(6, 4)
    with pytest.raises(ValueError, match="shares memory"):
        F.gather_batch(data, torch.arange(6), out=data)
    index = torch.arange(6)
    with pytest.raises(ValueError, match="shares memory"):
        F.gather_batch(data[:, :2], index, out=index.view(torch.float32).view(6, 2))
    assert torch.equal(data, grays(6, 4))
    assert torch.equal(index, torch.arange(6))


# Errors


@kinds
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(("bad", "position"), [(30, 2), (-1, 0), (2**62, 5), (-(2**63), 5)])
def test_an_index_out_of_range_is_named_before_anything_is_written(bad, position, strided, kind):
    data = DATA.transpose(1, 2) if strided else DATA
    index = INDEX.clone()
    index[position] = bad
    out = torch.full((6, *data.shape[1:]), 7.0)
    with pytest.raises(
        IndexError, match=rf"index must lie in \[0, 30\), the rows of data, got {bad} at position {position}"
    ):
        F.gather_batch(data, index, data_max=255, binarize=kind, seed=SEED, out=out)
    assert bool((out == 7).all())


def test_no_sample_can_be_taken_from_no_data():
    with pytest.raises(IndexError, match=r"\[0, 0\)"):
        F.gather_batch(DATA[:0], INDEX)
    with pytest.raises(IndexError, match=r"\[0, 3\), the rows of data, got 3"):
        F.gather_batch(torch.zeros(3, 0), torch.tensor([3]))
    assert F.gather_batch(DATA[:0], INDEX[:0]).shape == (0, 5, 7)


@pytest.mark.parametrize(
    ("data", "index", "error", "message"),
    [
        (DATA.numpy(), INDEX, TypeError, "data must be a torch tensor .*numpy.ndarray"),
        (DATA.double(), INDEX, TypeError, r"data must be uint8, bool, float32.*float64.*data.float\(\)"),
        (DATA.long(), INDEX, TypeError, "data must be uint8.*int64"),
        (DATA.to_sparse(), INDEX, TypeError, "dense"),
        (torch.tensor(3.0), INDEX, ValueError, "axis of samples"),
        (
            grays(30, 3).requires_grad_(),
            INDEX,
            ValueError,
            r"no gradient flows to data; give data.detach\(\)",
        ),
        (DATA, INDEX.tolist(), TypeError, "index must be an int64 tensor, got list"),
        (DATA, INDEX.int(), TypeError, "index must be an int64 tensor.*int32"),
        (DATA, INDEX[None], ValueError, r"index must be a dense tensor of shape \(B,\).*\(1, 6\)"),
        (DATA, INDEX.to("meta"), ValueError, "data is on cpu and index on meta"),
    ],
)
def test_inputs_that_do_not_fit(data, index, error, message):
    with pytest.raises(error, match=f"^gather_batch: .*{message}"):
        F.gather_batch(data, index)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": torch.float64}, TypeError, "dtype must be float32 or bfloat16, got torch.float64"),
        ({"dtype": None}, TypeError, "dtype must be float32"),
        ({"data_max": 0}, ValueError, "data_max must be a positive number"),
        ({"data_max": -1.0}, ValueError, "data_max must be a positive number"),
        ({"data_max": float("nan")}, ValueError, "data_max"),
        ({"data_max": float("inf")}, ValueError, "data_max"),
        ({"data_max": 1e-60}, ValueError, "data_max"),
        ({"data_max": True}, TypeError, "data_max must be a number, got bool"),
        ({"data_max": "255"}, TypeError, "data_max must be a number, got str"),
        ({"binarize": "none"}, ValueError, "binarize must be 'dynamic', 'threshold' or None, got 'none'"),
        ({"binarize": ["dynamic"]}, ValueError, "binarize must be"),
        ({"binarize": "dynamic", "seed": 0.5}, TypeError, "seed must be an int"),
        ({"binarize": "dynamic", "seed": torch.arange(2)}, TypeError, "int64 tensor of one element"),
        ({"binarize": "dynamic", "draw": -1}, ValueError, "draw must lie in"),
        ({"binarize": "dynamic", "draw": 2**32}, ValueError, "draw must lie in"),
        ({"binarize": "dynamic", "draw": 1.0}, TypeError, "draw must be an integer"),
        ({"binarize": "dynamic", "rows": [1]}, TypeError, "rows must be an int64 tensor"),
        ({"binarize": "dynamic", "rows": INDEX[:3]}, ValueError, r"one number per sample, shape \(6,\)"),
        (
            {"data_max": 255, "binarize": "dynamic", "rows": -INDEX},
            ValueError,
            r"rows must lie in \[0, 2\^63\), got -29",
        ),
    ],
)
def test_options_that_do_not_fit(options, error, message):
    with pytest.raises(error, match=message):
        F.gather_batch(DATA, INDEX, **options)


@pytest.mark.parametrize(
    ("data", "index", "rows", "seed", "out", "message"),
    [
        (DATA.double(), INDEX, None, None, None, "from data of torch.float64"),
        (DATA, INDEX.int(), None, None, None, "index must be 6 int64"),
        (DATA, INDEX, INDEX[:2], torch.tensor(1), None, "rows must be 6 int64"),
        (DATA, INDEX, None, None, None, "needs a seed"),
        (DATA, INDEX, None, torch.tensor(1), torch.zeros(2, 5, 7), "out must be contiguous"),
        (DATA, INDEX, None, torch.tensor(1), torch.zeros(6, 5, 7).long(), "no batch of torch.int64"),
    ],
)
def test_the_bare_operator_checks_what_it_is_given(data, index, rows, seed, out, message):
    """The kernel reads as far as these say."""
    operators = torch.ops.fastvae
    operator, last = (
        (operators.gather_batch, torch.float32) if out is None else (operators.gather_batch_into, out)
    )
    with pytest.raises(ValueError, match=message):
        operator(data, index, rows, seed, 0, None, "dynamic", last)


def test_a_freed_storage_is_noticed():
    data = pixels(30, 35).clone()
    data.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="resized or freed"):
        F.gather_batch(data, INDEX)


@pytest.mark.parametrize("size", [4, 4 * 6 * 35 - 1])
def test_nothing_is_written_past_the_storage_of_out(size):
    out = torch.zeros(len(INDEX), 35)
    out.untyped_storage().resize_(size)
    with pytest.raises(RuntimeError, match="resized or freed"):
        F.gather_batch(pixels(30, 35), INDEX, out=out)


# What torch does to functions


@pytest.mark.parametrize(
    ("data", "kind"),
    [(DATA, "dynamic"), (DATA.transpose(1, 2), "threshold"), (grays(30, 4)[:, 1:], "none")],
)
def test_opcheck(data, kind):
    arguments = (data, INDEX, None, torch.tensor(SEED), 3, 255.0, kind)
    torch.library.opcheck(torch.ops.fastvae.gather_batch.default, (*arguments, torch.bfloat16))
    out = torch.zeros(6, *data.shape[1:])
    torch.library.opcheck(torch.ops.fastvae.gather_batch_into.default, (*arguments, out))


def test_the_reference_gives_the_kernels_bits():
    key = torch.tensor(SEED)
    for kind in ("none", "dynamic", "threshold"):
        for dtype in (torch.float32, torch.bfloat16):
            arguments = (DATA, INDEX, None, key, 3, 255.0, kind)
            expected = torch.ops.fastvae.gather_batch(*arguments, dtype)
            assert same(reference.gather_batch(*arguments, dtype), expected)
            out = torch.zeros(6, 5, 7, dtype=dtype)
            reference.gather_batch_into(*arguments, out)
            assert same(out, expected)


def test_compiled_code_has_the_same_bits():
    def step(data, index, seed, out):
        drawn = F.gather_batch(data, index, data_max=255, binarize="dynamic", seed=seed)
        F.gather_batch(data, index, data_max=255, out=out)
        return drawn + out

    compiled = torch.compile(step, fullgraph=True)
    for seed, index in ((1, INDEX), (2, INDEX.flip(0)), (2, INDEX[:4])):
        buffers = torch.zeros(2, len(index), 5, 7)
        expected = step(DATA, index, torch.tensor(seed), buffers[0])
        assert same(compiled(DATA, index, torch.tensor(seed), buffers[1]), expected)
        assert same(buffers[0], buffers[1])


def test_export():
    class Look(torch.nn.Module):
        def forward(self, data, index):
            return F.gather_batch(data, index, data_max=255, binarize="dynamic", seed=SEED) * 2

    program = torch.export.export(Look(), (DATA, INDEX))
    assert same(program.module()(DATA, INDEX), 2 * plain(DATA, INDEX, data_max=255, binarize="dynamic"))


def test_vmap_gives_each_example_the_batch_it_would_get_alone():
    indices = torch.stack([INDEX, INDEX.flip(0)])
    options = {"data_max": 255, "binarize": "dynamic", "seed": SEED}
    got = torch.func.vmap(lambda index: F.gather_batch(DATA, index, **options))(indices)
    assert same(got, torch.stack([F.gather_batch(DATA, index, **options) for index in indices]))
    out = torch.zeros(2, 6, 5, 7)
    torch.func.vmap(lambda index, out: F.gather_batch(DATA, index, out=out, **options))(indices, out)
    assert same(out, got)


def test_gradients_of_what_follows_are_those_of_the_batch():
    weight = torch.ones(35, requires_grad=True)
    (F.gather_batch(DATA, INDEX, data_max=255).flatten(1) * weight).square().sum().backward()
    torch.testing.assert_close(weight.grad, 2 * (DATA[INDEX].flatten(1).float() / 255).square().sum(0))


# Data sets


class StepByStep(ResidentData):
    """Resident data that is gathered, scaled and drawn one operation after the other."""

    def batches(self, batch_size, *, order, device, seed=0, binarize=Binarize(), numbers=None):  # noqa: ARG002, B008
        order = torch.arange(len(self)) if order is None else order
        numbers = order if numbers is None else numbers
        for index, rows in zip(order.split(batch_size), numbers.split(batch_size), strict=True):
            x = self._values.index_select(0, index).float()
            yield binarize(x.div_(255) if self.pixels else x, rows), rows


def sources(values, scaled):
    return [kind(values, name="data", pixels=scaled) for kind in (ResidentData, StepByStep)]


@pytest.mark.parametrize("kind", ["none", "dynamic", "threshold"])
@pytest.mark.parametrize(("values", "scaled"), [(DATA, True), (DATA > 99, False), (grays(30, 5, 7), False)])
def test_batches_of_a_data_set_and_of_its_parts(values, scaled, kind):
    binarize = Binarize(kind, seed=-3)
    data, truth = ResidentData(values, name="data", pixels=scaled), values.float()
    if scaled:
        truth.div_(255)
    for part in (torch.tensor([3, 29, 7, 7, 0, 12]), torch.tensor([5, 0, 2]), None):
        for order in (None, noise.permutation(len(data), 1), torch.tensor([0, 0])):
            batches = list(data.batches(4, order=order, device=torch.device("cpu"), binarize=binarize))
            rows = torch.arange(len(data)) if order is None else order
            assert torch.equal(torch.cat([numbers for _, numbers in batches]), rows)
            assert same(torch.cat([x for x, _ in batches]), binarize(truth[rows], rows))
        if part is not None:  # a part of the part, the next time: rows count within it
            data, truth = Subset(data, part), truth[part]


@pytest.mark.parametrize("kind", ["none", "dynamic", "threshold"])
def test_every_kind_of_data_set_gives_the_same_batches(kind):
    """Those that cannot gather go step by step."""
    binarize = Binarize(kind, seed=5)
    values = pixels(11, 3, 2)
    expected = binarize(values / 255, torch.arange(11))

    class Items(Dataset):
        def __len__(self):
            return 11

        def __getitem__(self, index):
            return values[index]

    for data in (
        ResidentData(values, name="data", pixels=True),
        StreamData(Items(), values[0], name="items"),
        LoaderData(DataLoader(Items(), batch_size=4)),
    ):
        batches = list(data.batches(4, order=None, device=torch.device("cpu"), binarize=binarize))
        assert same(torch.cat([x for x, _ in batches]), expected), data
    numbers = torch.arange(11) + 100
    for data in (
        ResidentData(values, name="data", pixels=True),
        StreamData(Items(), values[0], name="items"),
    ):
        batches = list(
            data.batches(4, order=None, device=torch.device("cpu"), binarize=binarize, numbers=numbers)
        )
        assert same(torch.cat([x for x, _ in batches]), binarize(values / 255, numbers)), data
        assert torch.equal(torch.cat([rows for _, rows in batches]), numbers)


def test_a_batch_is_its_readers_to_keep():
    data = open_data(DATA)
    kept = [x for x, _ in data.batches(7, order=None, device=torch.device("cpu"))]
    assert same(torch.cat(kept), DATA.float() / 255)


@pytest.mark.parametrize("binarize", ["none", "dynamic", "threshold"])
@pytest.mark.parametrize("values", [pixels(60, 1, 4, 4), grays(60, 6)], ids=["pixels", "grays"])
def test_a_run_is_the_one_that_goes_step_by_step(values, binarize):
    results = [
        train(
            data,
            latent_dim=2,
            hidden_dims=(8,),
            epochs=2,
            batch_size=16,
            likelihood="bernoulli",
            binarize=binarize,
            progress=False,
            device="cpu",
        )
        for data in sources(values, values.dtype is torch.uint8)
    ]
    fused, plain_run = (result.model.state_dict() for result in results)
    for name, value in fused.items():
        assert torch.equal(value, plain_run[name]), name
    assert results[0].history[-1]["val_elbo"] == results[1].history[-1]["val_elbo"]
    assert torch.equal(results[0].encode(values[:9]), results[1].encode(values[:9]))
