"""The noise contract: known answers, and independence of everything but (seed, draw, row, column)."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fastvae import _core, noise
from fastvae.ops.noise import fallback, reference

KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
# torch.compile and torch.jit warn about parts of torch itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]
DISTRIBUTIONS = [noise.normal, noise.uniform]
seeds = st.integers(-(2**63), 2**63 - 1)
draws = st.integers(0, 2**32 - 1)
offsets = st.integers(0, 2**62)
shapes = st.tuples(st.integers(0, 9), st.integers(0, 70))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view({4: torch.int32, 8: torch.int64, 2: torch.int16}[tensor.element_size()])


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(bits(a), bits(b))


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers_of_the_reference(counter, key, words):
    result = reference.philox([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
    assert tuple(int(word) for word in result) == words


def test_known_answer_of_the_kernels():
    """The upper 24 bits of all four words, through the public door; the Rust tests have the other answers."""
    _, _, words = KNOWN_ANSWERS[0]
    assert (noise.uniform((1, 4), 0) * 2**24).flatten().tolist() == [word >> 8 for word in words]


def run_document() -> dict:
    """The names that the code of docs/noise.md defines."""
    text = (Path(__file__).parent.parent / "docs" / "noise.md").read_text()
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(code, "docs/noise.md", "exec"), names)
    return names


docs = pytest.mark.skipif(
    not (Path(__file__).parent.parent / "docs" / "noise.md").exists(),
    reason="docs/ is not beside these tests",
)


@docs
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers_of_the_document(counter, key, words):
    assert tuple(int(word) for word in run_document()["philox"](counter, key)) == words


@docs
@pytest.mark.parametrize(
    ("seed", "draw", "row", "columns"), [(0, 0, 0, 9), (-5, 7, 2**40, 33), (2**62, 2**32 - 1, 5, 4)]
)
def test_the_document_describes_the_kernels(seed, draw, row, columns):
    """docs/noise.md is executable, and gives the kernels' bits."""
    document = run_document()
    for name in ("normal", "uniform"):
        expected = document[name](seed, draw, row, columns)
        got = getattr(noise, name)((1, columns), seed, draw=draw, row_offset=row)[0].numpy()
        assert got.dtype == expected.dtype == np.float32
        assert np.array_equal(got.view(np.int32), expected.view(np.int32)), name
    assert document["fold_in"](seed, row) == noise.fold_in(seed, row) % 2**64


@docs
def test_the_document_has_the_radius_of_the_reference_at_its_ends():
    """Where u is smallest, where it rounds to 1 (a radius of -0) and on both sides of 3/4."""
    words = [0, 1, 3 * 2**30 - 1, 3 * 2**30, 2**32 - 129, 2**32 - 128, 2**32 - 1]
    with np.errstate(over="ignore"):
        described = np.array([run_document()["radius"](word) for word in words], np.float32)
    assert np.array_equal(
        described.view(np.int32), reference.radius(torch.tensor(words)).numpy().view(np.int32)
    )


def test_a_radius_of_zero_has_the_sign_of_the_reference():
    """Where u rounds to 1, which it does once in 2^25 pairs."""
    seed, draw, column = 1, 12, 3_772_110
    _, _, radial, angular = reference.philox((column // 4, draw, 0, 0), (seed, 0))
    assert radial == 0xFFFFFFFF
    pair = noise.normal((1, column + 2), seed, draw=draw)[0, -2:]
    r = reference.radius(torch.tensor([radial]))
    expected = torch.cat([r * part for part in reference.half_circle(torch.tensor([angular]))])
    assert same(pair, expected)
    assert pair.signbit().tolist() == [True, False]


@given(shapes, seeds, draws, offsets)
def test_kernels_and_reference_give_the_same_bits(shape, seed, draw, offset):
    key = torch.tensor(seed)
    for name in ("normal", "uniform"):
        expected = getattr(reference, name)(*shape, key, draw, offset, None)
        assert same(getattr(noise, name)(shape, seed, draw=draw, row_offset=offset), expected), name


def test_integers_of_numpy_are_integers():
    assert noise.fold_in(np.int64(-3), np.uint8(5)) == noise.fold_in(-3, 5)
    assert torch.equal(noise.fold_in(torch.tensor(3), np.int32(5)), noise.fold_in(torch.tensor(3), 5))
    with pytest.raises(TypeError, match="tag must be an int"):
        noise.fold_in(np.int64(3), 0.5)
    with pytest.raises(TypeError, match=r"shape must be a sequence of ints, got 5; one row is \(5,\)"):
        noise.normal(5, 1)


@given(st.integers(0, 300), seeds, draws)
def test_permutation_and_fold_in_match_the_reference(n, seed, draw):
    key = torch.tensor(seed)
    order = noise.permutation(n, seed, draw=draw)
    assert torch.equal(order, reference.permutation(n, key, draw))
    assert torch.equal(order.sort().values, torch.arange(n))
    folded = noise.fold_in(seed, draw)
    assert folded == int(reference.fold_in(key, torch.tensor(draw)))
    assert folded == int(noise.fold_in(key, draw)) == int(noise.fold_in(seed, torch.tensor(draw)))


@pytest.mark.parametrize("draw", DISTRIBUTIONS)
@given(st.integers(2, 60), st.integers(1, 40), st.data())
def test_a_batch_may_be_split_anywhere(draw, rows, columns, data):
    cut = data.draw(st.integers(1, rows - 1))
    whole = draw((rows, columns), 11, row_offset=3)
    first, second = (
        draw((cut, columns), 11, row_offset=3),
        draw((rows - cut, columns), 11, row_offset=3 + cut),
    )
    assert same(whole, torch.cat([first, second]))


@pytest.mark.parametrize("draw", DISTRIBUTIONS)
def test_a_column_does_not_depend_on_how_many_follow(draw):
    wide = draw((3, 20000), 5)
    for columns in (1, 2, 3, 4, 5, 63, 64, 65, 1023, 1024, 1025, 16384, 16385):
        assert same(wide[:, :columns], draw((3, columns), 5)), columns


@pytest.mark.parametrize("draw", DISTRIBUTIONS)
def test_listed_rows_get_the_noise_of_their_numbers(draw):
    whole = draw((50, 7), 5)
    rows = torch.tensor([49, 0, 17, 17, 3])
    assert same(draw((5, 7), 5, rows=rows), whole[rows])
    strided = torch.stack([rows, rows], dim=1)[:, 0]
    assert same(draw((5, 7), 5, rows=strided), whole[rows])


@pytest.mark.parametrize("draw", DISTRIBUTIONS)
@pytest.mark.parametrize("shape", [(5, 1_000_000), (1_000_000, 5), (300, 1000)])
def test_thread_counts_give_the_same_bits(draw, shape, threads):
    threads(1)
    alone = draw(shape, 9)
    for count in (2, 3, 8):
        threads(count)
        assert same(alone, draw(shape, 9)), count


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_is_the_same_noise_converted(dtype):
    assert same(noise.normal((20, 30), 3, dtype=dtype), noise.normal((20, 30), 3).to(dtype))


def test_event_dims_are_columns():
    flat = noise.normal((6, 20), 4)
    assert same(noise.normal((2, 3, 4, 5), 4, event_dims=2), flat.reshape(2, 3, 4, 5))
    assert same(noise.normal((7,), 4, event_dims=0), noise.normal((7, 1), 4)[:, 0])
    assert noise.normal((), 4).shape == ()


def test_the_levels_of_this_processor_are_known():
    assert _core.levels()[0] == "portable"
    assert _core.simd_level() in _core.levels()


@pytest.mark.parametrize("draw", DISTRIBUTIONS)
@given(shapes, seeds, draws, offsets)
def test_out_is_written_over_and_returned(draw, shape, seed, number, offset):
    options = {"draw": number, "row_offset": offset}
    out = torch.full(shape, torch.nan)
    assert draw(shape, seed, out=out, **options) is out
    assert same(out, draw(shape, seed, **options))


@pytest.mark.parametrize("draw", DISTRIBUTIONS)
def test_out_may_be_a_part_of_a_larger_tensor(draw):
    whole = torch.zeros(9, 4, 5)
    rows = torch.tensor([3, 1, 7])
    draw((3, 4, 5), 2, rows=rows, event_dims=2, out=whole[3:6])
    assert same(whole[3:6], draw((3, 4, 5), 2, rows=rows, event_dims=2))
    assert not whole[:3].any()
    assert not whole[6:].any()


@pytest.mark.parametrize("draw", DISTRIBUTIONS)
def test_out_may_be_stored_with_the_opposite_sign(draw):
    memory = torch.zeros(3, 5)
    out = torch._neg_view(memory)
    assert draw((3, 5), 4, out=out) is out
    assert same(out.resolve_neg(), draw((3, 5), 4))
    assert same(-memory, draw((3, 5), 4))


@pytest.mark.parametrize("draw", DISTRIBUTIONS)
def test_rows_may_be_stored_with_the_opposite_sign(draw):
    rows = torch.tensor([3, 1, 7])
    assert same(draw((3, 5), 4, rows=torch._neg_view(-rows)), draw((3, 5), 4, rows=rows))


@pytest.mark.parametrize("draw", DISTRIBUTIONS)
def test_out_that_loses_its_memory_while_the_seed_is_drawn_is_not_written_to(draw):
    out = torch.zeros(1000, 6)

    def seed():
        out.untyped_storage().resize_(0)
        return torch.tensor(1)

    plain = {noise.normal: _core.plain_normal, noise.uniform: _core.plain_uniform}[draw]
    with pytest.raises(RuntimeError, match="out was changed"):
        plain((1000, 6), None, 0, 0, 1, out, seed)


@pytest.mark.parametrize("draw", DISTRIBUTIONS)
def test_out_is_compiled_mapped_and_filled_by_the_reference_alike(draw):
    expected = draw((3, 5), 4)
    outs = torch.zeros(3, 3, 5)
    compiled = torch.compile(lambda seed, out: draw((3, 5), seed, out=out) * 2, fullgraph=True)
    assert same(compiled(torch.tensor(4), outs[0]), expected * 2)
    torch.func.vmap(lambda out: draw((3, 5), 4, out=out))(outs[1:2])
    arguments = (3, 5, torch.tensor(4), 0, 0, None)
    fallback.written_over(getattr(reference, draw.__name__))(*arguments, outs[2])
    assert same(outs, expected.expand(3, 3, 5))
    operator = getattr(torch.ops.fastvae, f"{draw.__name__}_into").default
    torch.library.opcheck(operator, (*arguments, outs[0]))


@pytest.mark.parametrize("draw", DISTRIBUTIONS)
def test_a_backward_that_kept_the_old_noise_fails(draw):
    out = draw((3, 5), 4)
    loss = (torch.ones(5, requires_grad=True) * out).sum()
    draw((3, 5), 5, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_manual_seed_governs_the_default():
    torch.manual_seed(5)
    first, second = noise.normal((4, 4)), noise.normal((4, 4))
    torch.manual_seed(5)
    assert same(first, noise.normal((4, 4)))
    assert same(second, noise.normal((4, 4)))
    assert not torch.equal(first, second)


def test_a_generator_overrides_the_default():
    generator = torch.Generator().manual_seed(3)
    state = torch.get_rng_state()
    first = noise.normal((4, 4), generator)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, noise.normal((4, 4), generator))
    assert same(first, noise.normal((4, 4), torch.Generator().manual_seed(3)))


def test_seeds_are_64_bits_however_they_are_written():
    assert same(noise.normal((3, 3), 2**64 - 1), noise.normal((3, 3), -1))
    assert same(noise.normal((3, 3), -1), noise.normal((3, 3), torch.tensor([-1])))


def test_draws_and_folded_seeds_are_other_noise():
    base = noise.normal((10, 10), 1)
    for other in (
        noise.normal((10, 10), 1, draw=1),
        noise.normal((10, 10), 2),
        noise.normal((10, 10), noise.fold_in(1, 0)),
        noise.normal((10, 10), 1, row_offset=10),
    ):
        assert (base == other).float().mean() < 0.05


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: noise.normal((2, 2), 2**64), ValueError, "64 bits"),
        (lambda: noise.normal((2, 2), 1.5), TypeError, "seed must be an int"),
        (lambda: noise.normal((2, 2), True), TypeError, "seed must be an int"),
        (lambda: noise.normal((2, 2), torch.tensor(1.0)), TypeError, "int64 tensor of one element"),
        (lambda: noise.normal((2, 2), torch.tensor([1, 2])), TypeError, "int64 tensor of one element"),
        (lambda: noise.normal((2, 2), 0, draw=2**32), ValueError, "draw"),
        (lambda: noise.normal((2, 2), 0, draw=-1), ValueError, "draw"),
        (lambda: noise.normal((2, 2), 0, row_offset=-1), ValueError, "row_offset"),
        (lambda: noise.normal((2, -2), 0), ValueError, "negative"),
        (lambda: noise.normal((2, 2), 0, dtype=torch.int64), TypeError, "dtype"),
        (lambda: noise.normal((2, 2), 0, event_dims=3), ValueError, "event_dims"),
        (lambda: noise.normal((2, 2), 0, rows=torch.arange(3)), ValueError, "one number per row"),
        (lambda: noise.normal((2, 2), 0, rows=[0, 1]), TypeError, "int64 tensor"),
        (lambda: noise.normal((2, 2), 0, rows=torch.arange(2), row_offset=1), ValueError, "not both"),
        (lambda: noise.normal((2, 2), 0, out=np.zeros((2, 2))), TypeError, "float32 tensor.*ndarray"),
        (
            lambda: noise.normal((2, 2), 0, out=torch.zeros(2, 2).half()),
            TypeError,
            r"float32 tensor, .*float16.*out\.copy_",
        ),
        (
            lambda: noise.uniform((2, 2), 0, dtype=torch.float64, out=torch.zeros(2, 2)),
            TypeError,
            "dtype=torch.float64",
        ),
        (lambda: noise.normal((2, 2), 0, out=torch.zeros(4)), ValueError, r"contiguous, of shape \(2, 2\)"),
        (lambda: noise.normal((2, 3), 0, out=torch.zeros(3, 2).t()), ValueError, "contiguous"),
        (
            lambda: noise.normal((2, 2), 0, device="meta", out=torch.zeros(2, 2)),
            ValueError,
            "on meta, got .* on cpu",
        ),
        (
            lambda: noise.normal((2, 2), 0, out=torch.zeros(2, 2, requires_grad=True)),
            ValueError,
            "must not require grad",
        ),
        (
            lambda: torch.ops.fastvae.normal_into(2, 2, torch.tensor(1), 0, 0, None, torch.zeros(3)),
            ValueError,
            "4 contiguous float32",
        ),
        (lambda: noise.permutation(-1, 0), ValueError, "n must lie"),
        (lambda: noise.permutation(2.5, 0), TypeError, "n must be an integer"),
        (lambda: noise.fold_in(1.0, 2), TypeError, "seed must be"),
        (lambda: noise.fold_in(1, "a"), TypeError, "tag must be"),
        (lambda: noise.fold_in(1, 2**64), ValueError, "64 bits"),
    ],
)
def test_bad_arguments_are_explained(call, error, message):
    with pytest.raises(error, match=message):
        call()


class Subclass(torch.Tensor):
    pass


def resized(size):
    tensor = torch.zeros(2, 6)
    tensor.untyped_storage().resize_(size)
    return tensor


def plainly(draw, shape, seed=1, *, number=0, offset=0, event_dims=1, out=None):
    """The short way: it gives None, with nothing done, where it is not for it to say."""
    plain = {noise.normal: _core.plain_normal, noise.uniform: _core.plain_uniform}[draw]
    return plain(shape, seed, number, offset, event_dims, out, lambda: torch.randint(9, ()))


def through_the_operator(draw, shape, seed, *, number=0, offset=0, event_dims=1):
    split = len(shape) - event_dims
    rows, columns = math.prod(shape[:split]), math.prod(shape[split:])
    operator = getattr(torch.ops.fastvae, draw.__name__)
    return operator(rows, columns, torch.tensor(seed), number, offset, None).reshape(shape)


@pytest.mark.parametrize("draw", DISTRIBUTIONS)
@pytest.mark.parametrize("shape", [(1,), (41,), (6, 401), (2, 3, 4), [5, 2], torch.Size([7, 3]), (300, 300)])
@pytest.mark.parametrize("seed", [0, -1, 2**64 - 1, 2**63, -(2**63), torch.tensor(5), torch.tensor([[-9]])])
def test_the_short_way_gives_the_bits_of_the_operator(draw, shape, seed):
    bits = int(seed) if isinstance(seed, torch.Tensor) else seed - (2**64 if seed >= 2**63 else 0)
    for options in (
        {},
        {"number": 2**32 - 1, "offset": 2**63 - 301},
        {"event_dims": 0},
        {"event_dims": len(shape)},
    ):
        expected = through_the_operator(draw, tuple(shape), bits, **options)
        made, out = plainly(draw, shape, seed, **options), torch.full(tuple(shape), torch.nan)
        assert same(made, expected)
        assert made.is_contiguous()
        assert not made.requires_grad
        assert plainly(draw, shape, seed, out=out, **options) is out
        assert same(out, expected)


def test_the_short_way_is_taken(monkeypatch):
    operators = []
    monkeypatch.setattr(noise, "raw", lambda operator, *_: operators.append(operator))
    device, out, seed = torch.device("cpu"), torch.empty(3, 2), torch.tensor(3)
    expected = plainly(noise.normal, (3, 2), 3)
    for key, options in ((3, {}), (seed, {}), (3, {"device": device}), (seed, {"out": out})):
        assert same(noise.normal((3, 2), key, **options), expected)
    noise.uniform((3, 2), draw=1, row_offset=2)
    assert not operators
    with pytest.raises(AttributeError):  # of the None that the operator gave
        noise.normal((3, 2), 3, dtype=torch.float64)
    assert operators


@pytest.mark.parametrize(
    "arguments",
    [
        {"shape": (2, -6)},
        {"shape": (2, 0)},
        {"shape": (2.0, 6)},
        {"shape": (True, 6)},
        {"shape": (np.int64(2), 6)},
        {"shape": (torch.tensor(2), 6)},
        {"shape": np.array([2, 6])},
        {"shape": range(2, 4)},
        {"shape": "ab"},
        {"shape": 6},
        {"shape": (2**40, 2**40)},
        {"shape": (2**63, 1)},
        {"shape": ()},
        {"shape": (1,) * 7 + (2, 6)},
        {"seed": True},
        {"seed": 1.0},
        {"seed": 2**64},
        {"seed": -(2**63) - 1},
        {"seed": np.int64(1)},
        {"seed": torch.tensor(1, dtype=torch.int32)},
        {"seed": torch.tensor(True)},
        {"seed": torch.tensor(1.0)},
        {"seed": torch.arange(2)},
        {"seed": torch.tensor(1, device="meta")},
        {"seed": torch.tensor(1).as_subclass(Subclass)},
        {"seed": torch.Generator()},
        {"offset": 2**63 - 1},
        {"number": -1},
        {"number": 2**32},
        {"number": True},
        {"number": 1.0},
        {"number": np.int64(1)},
        {"offset": -1},
        {"offset": 2**63},
        {"offset": False},
        {"event_dims": -1},
        {"event_dims": 3},
        {"event_dims": True},
        {"out": torch.zeros(2, 6).double()},
        {"out": torch.zeros(2, 6).half()},
        {"out": torch.zeros(2, 6, dtype=torch.int32)},
        {"out": torch.zeros(6, 2)},
        {"out": torch.zeros(12)},
        {"out": torch.zeros(6, 2).t()},
        {"out": torch.zeros(2, 12)[:, ::2]},
        {"out": torch.zeros(2, 12)[:, :6]},
        {"out": torch.zeros(6).expand(2, 6)},
        {"out": torch.zeros(2, 6, device="meta")},
        {"out": torch.zeros(2, 6, requires_grad=True)},
        {"out": torch.zeros(2, 6, requires_grad=True) * 1},
        {"out": torch._neg_view(torch.zeros(2, 6))},
        {"out": torch.zeros(2, 6).as_subclass(Subclass)},
        {"out": torch.nn.Parameter(torch.zeros(2, 6))},
        {"out": resized(20)},
        {"out": resized(0)},
        {"out": np.zeros((2, 6), np.float32)},
    ],
)
@pytest.mark.parametrize("draw", DISTRIBUTIONS)
def test_what_is_not_plain_is_left_to_the_long_way(draw, arguments):
    arguments = {"shape": (2, 6), **arguments}
    out = arguments.get("out")
    version = out._version if isinstance(out, torch.Tensor) else 0
    assert plainly(draw, **arguments) is None
    if isinstance(out, torch.Tensor):
        assert out._version == version


def test_the_short_way_draws_no_seed_in_vain():
    state = torch.get_rng_state()
    for options in ({"number": -1}, {"event_dims": 2}, {"out": torch.zeros(4)}):
        assert plainly(noise.normal, (3,), None, **options) is None
    assert torch.equal(torch.get_rng_state(), state)
    drawn = torch.randint(9, ())
    torch.set_rng_state(state)
    assert same(plainly(noise.normal, (3,), None), noise.normal((3,), drawn))


def test_the_default_seed_is_one_number_of_torchs_generator():
    for options in ({}, {"out": torch.empty(3, 5)}, {"dtype": torch.float64}):
        torch.manual_seed(4)
        expected = noise.normal((3, 5), torch.randint(-(2**63), 2**63 - 1, ()))
        state = torch.get_rng_state()
        torch.manual_seed(4)
        assert same(noise.normal((3, 5), **options).float(), expected)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("draw", DISTRIBUTIONS)
def test_whoever_watches_sees_the_operator(draw, watch):
    name = draw.__name__
    with watch:
        draw((2, 3), 1)
        draw((2, 3), 1, out=torch.empty(2, 3))
    assert {f"fastvae.{name}.default", f"fastvae.{name}_into.default"} <= set(watch.seen)
    with torch.autograd.profiler.profile() as profile:
        draw((2, 3), 1)
    assert f"fastvae::{name}" in {event.name for event in profile.function_events}
    with FakeTensorMode():
        assert isinstance(draw((2, 3), 1), FakeTensor)
    with torch.device("meta"):
        assert same(draw((2, 3), 1), draw((2, 3), 1))


@pytest.mark.parametrize("draw", DISTRIBUTIONS)
def test_forward_mode_takes_noise_for_a_constant(draw):
    with torch.autograd.forward_ad.dual_level():
        out = torch.empty(2, 3)
        assert same(draw((2, 3), 1, out=out), draw((2, 3), 1))
    assert same(out, draw((2, 3), 1))


@pytest.mark.parametrize("draw", DISTRIBUTIONS)
def test_inference_tensors_are_made_and_written_to(draw):
    expected = draw((2, 3), 1)
    with torch.inference_mode():
        out = torch.empty(2, 3)
        assert draw((2, 3), 1).is_inference()
        assert same(draw((2, 3), 1, out=out), expected)
    assert same(draw((2, 3), 2, out=out), draw((2, 3), 2))


def test_a_row_beyond_the_counter_is_refused():
    with pytest.raises(ValueError, match="2\\^34 columns"):
        _core.normal(0, 0, 2**34 + 1, 0, 0, 0, 0, 1)
