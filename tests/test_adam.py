"""Adam on the CPU: what holds on every device, and that nothing depends on threads or on how tensors lie."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from adam_tests import (
    ADAM,
    DECAY,
    RATE,
    AdamTests,
    Marked,
    TorchAdam,
    assert_close,
    assert_same,
    numbers,
    ok,
    rates_of,
    spoiled,
)
from fastvae import _core
from fastvae.training import fused_adam, native_adam
from fastvae.training.native_adam import NativeAdam
from fastvae.training.optimizer import CautiousAdam

CHUNK = 1 << 15
"""Elements that a thread takes at a time."""

LARGE = [CHUNK - 1, 4 * CHUNK + 17, 3, 2 * CHUNK]


class TestNativeAdam(AdamTests):
    adam = NativeAdam

    @pytest.fixture
    def device(self):
        return torch.device("cpu")


def trained(sizes, steps):
    parameters = numbers(sizes, 0)
    adam = NativeAdam(parameters, rates_of(parameters, (RATE, DECAY)), **ADAM)
    for step in range(1, steps + 1):
        adam.step(ok("cpu"), numbers(sizes, step))
    return parameters


def test_any_number_of_threads_gives_the_same_bits(threads):
    threads(1)
    alone = trained(LARGE, 3)
    for count in (2, 3, 8):
        threads(count)
        assert_same(trained(LARGE, 3), alone)


def test_a_step_has_the_bits_of_steps_of_its_parts():
    """Where a parameter lies among the others, and in which, makes no difference to a number."""
    (whole,) = trained([5000], 3)
    parts = [whole_at_start.clone() for whole_at_start in numbers([5000], 0)[0].split(617)]
    adam = NativeAdam(parts, rates_of(parts, (RATE, DECAY)), **ADAM)
    for step in range(1, 4):
        adam.step(ok("cpu"), list(numbers([5000], step)[0].split(617)))
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_found_wherever_it_is(threads, value):
    threads(2)
    parameters, gradients = numbers(LARGE, 0), numbers(LARGE, 1)
    adam = NativeAdam(parameters, rates_of(parameters, (RATE, DECAY)), **ADAM)
    before = [parameter.clone() for parameter in parameters]
    places = [
        ("gradient", number, position)
        for number, size in enumerate(LARGE)
        for position in {0, 1, 15, 16, 63, 64, CHUNK - 1, CHUNK, size // 2, size - 2, size - 1}
        if position < size
    ]
    for where in places:
        assert float(adam.step(*spoiled(ok("cpu"), gradients, where, value))) == 1.0, where
    assert_same(parameters, before)


def test_empty_parameters_are_no_trouble():
    sizes = [0, 5, 0]
    parameters = numbers(sizes, 0)
    rates = rates_of(parameters, (RATE, DECAY))
    assert native_adam.takes(parameters)
    adam, reference = NativeAdam(parameters, rates, **ADAM), TorchAdam(parameters, rates)
    gradients = numbers(sizes, 1)
    assert float(adam.step([*ok("cpu"), torch.empty(0)], [gradients[0], gradients[1], None])) == 0.0
    reference.step(gradients)
    assert_close(parameters, reference.parameters, 1)


def test_averages_go_to_tensors_that_fit():
    adam = _core.Adam((0.9, 0.999), 1e-8, [(3, RATE, 0.0), (2, RATE, 0.0)])
    fitting = [torch.zeros(3), torch.zeros(2), torch.zeros(3), torch.zeros(2)]
    powers = [[0.9, 0.999], [1.0, 0.0]]
    adam.restore(fitting, powers)
    assert adam.averages(fitting) == powers
    memory = torch.zeros(5)
    for wrong in (
        fitting[:3],
        [*fitting, torch.zeros(1)],
        fitting[::-1],
        [*fitting[:3], torch.zeros(2, dtype=torch.float64)],
        [*fitting[:3], torch.zeros(4)[::2]],
        [*fitting[:3], None],
    ):
        for call in (adam.averages, lambda tensors: adam.restore(tensors, powers)):
            with pytest.raises(ValueError, match=r"expected plain, contiguous .* of \[3, 2, 3, 2\] elements"):
                call(wrong)
    with pytest.raises(ValueError, match="two tensors share memory"):
        adam.averages([memory[:3], memory[3:], torch.zeros(3), memory[2:4]])
    with pytest.raises(ValueError, match="made for 2 tensors, got the powers of 1"):
        adam.restore(fitting, powers[:1])
    for power in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"powers must lie in \[0, 1\], got"):
            adam.restore(fitting, [[0.5, 0.5], [power, 0.5]])


def unaligned(size):
    """Floats that begin between two floats."""
    memory = torch.frombuffer(bytearray(4 * size + 1), dtype=torch.uint8)
    return torch.from_numpy(memory.numpy()[1:].view(np.float32))


@pytest.mark.parametrize(
    "kind",
    ["float64", "bfloat16", "transposed", "negated", "subclass", "unaligned", "shared", "none", "empty"],
)
def test_what_it_does_not_take_is_left_to_torch(kind):
    weight = torch.ones(4, 6)
    parameters = {
        "float64": [weight.double()],
        "bfloat16": [weight, weight.bfloat16()],
        "transposed": [weight.t()],
        "negated": [torch._neg_view(weight)],
        "subclass": [weight.clone().as_subclass(Marked)],
        "unaligned": [unaligned(24)],
        "shared": [weight[:3], weight[2:]],
        "none": [],
        "empty": [torch.empty(0)],
    }[kind]
    assert not native_adam.takes(parameters)
    assert native_adam.takes([weight[:2], weight[2:]]), "neighbours share nothing"
    assert not fused_adam.are_apart([weight[2:], torch.zeros(3), weight[:3]])
    assert fused_adam.are_apart([weight[2:], torch.zeros(0), weight[:2], torch.zeros(0)])


def test_two_parameters_in_the_same_memory_train_as_torch_trains_them():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.there = nn.Parameter(torch.ones(3, 3))
            self.back = nn.Parameter(self.there.detach().view(9))

    model, other = Tied(), Tied()
    adam = CautiousAdam(model, learning_rate=RATE, weight_decay=DECAY)
    torchs = torch.optim.AdamW(other.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    for _ in range(3):
        adam.step([model.there.square().sum() + model.back.exp().sum()])
        torchs.zero_grad()
        (other.there.square().sum() + other.back.exp().sum()).backward()
        torchs.step()
    assert torch.equal(model.there, other.there)


def test_a_parameter_that_came_to_share_its_memory_is_refused():
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    adam = NativeAdam([first, second], [(RATE, 0.0)] * 2, **ADAM)
    second.data = first.data
    with pytest.raises(ValueError, match="came to share its memory"):
        adam.step(ok("cpu"), [torch.ones(3), torch.ones(3)])
    assert torch.equal(first, torch.ones(3))
    first.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="its storage was resized or freed"):
        adam.step(ok("cpu"), [torch.ones(3), torch.ones(3)])


def test_what_lies_in_the_memory_of_a_parameter_is_what_it_was_before_the_step():
    """A gradient, which ``x.square().sum() / 2`` may have so, or an output."""
    first, second = numbers([5000, 5000], 0)
    adam = NativeAdam([first], [(RATE, 0.0)], **ADAM)
    other = NativeAdam([copy := first.clone()], [(RATE, 0.0)], **ADAM)
    adam.step(ok("cpu"), [first])
    other.step(ok("cpu"), [copy.clone()])
    assert torch.equal(first, copy)
    for outputs in ([first, second], [first.view(50, 100).t()]):
        assert float(adam.step(outputs, [second])) == 0.0
        other.step(ok("cpu"), [second])
        assert torch.equal(first, copy)


@pytest.mark.parametrize("of", ["gradient", "output"])
def test_memory_that_was_freed_is_not_read(of):
    weight, freed = torch.ones(3), torch.ones(3)
    adam = NativeAdam([weight], [(RATE, 0.0)], **ADAM)
    freed.untyped_storage().resize_(0)
    outputs, gradient = (ok("cpu"), freed) if of == "gradient" else ([freed], torch.ones(3))
    with pytest.raises(RuntimeError, match="its storage was resized or freed"):
        adam.step(outputs, [gradient])
    assert torch.equal(weight, torch.ones(3))


def test_attributes_that_hide_methods_cannot_free_what_is_written_to():
    weight, gradient, output = torch.ones(1000), torch.ones(1000), torch.ones(3)

    def untyped_storage():
        weight.untyped_storage().resize_(0)
        return torch.Tensor.untyped_storage(output)

    output.untyped_storage = untyped_storage
    adam = _core.Adam((0.9, 0.999), 1e-8, [(1000, RATE, 0.0)])
    assert adam.step([weight], [gradient], [output]) is not None
    assert weight.untyped_storage().nbytes() == 4000
    assert (weight < 1).all()


def test_a_parameter_that_got_other_strides_goes_on_as_it_was():
    """As a module has it that turns to ``channels_last`` in its first step."""
    weight, other = (torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    adam, reference = (NativeAdam([p], [(RATE, DECAY)], **ADAM) for p in (weight, other))
    for step in range(1, 5):
        if step == 3:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
            assert not weight.is_contiguous()
        gradient = numbers([300], step)[0].view(3, 4, 5, 5)
        for outputs in (ok("cpu"), [torch.tensor([math.nan])]):
            flags = [float(each.step(outputs, [gradient])) for each in (adam, reference)]
            assert flags == [float(len(outputs) == 1)] * 2
            assert torch.equal(weight, other)


def test_a_parameter_that_is_not_used_any_more_may_become_anything():
    used, frozen = torch.ones(3), torch.ones(3)
    adam = NativeAdam([used, frozen], [(RATE, 0.0)] * 2, **ADAM)
    adam.step(ok("cpu"), [torch.ones(3), torch.ones(3)])
    frozen.data = frozen.data.bfloat16()
    adam.step(ok("cpu"), [torch.ones(3).to_sparse(), None])
    assert not torch.equal(used, frozen.float())


@pytest.mark.parametrize("axes", [0, 9])
def test_tensors_of_any_number_of_axes(axes):
    parameters = numbers([1, 1], 0)
    parameters[0] = parameters[0].view((1,) * axes)
    others = [parameter.clone() for parameter in parameters]
    rates = [(RATE, 0.0)] * 2
    adam, reference = native(parameters, rates), TorchAdam(others, rates)
    gradients = numbers([1, 1], 1)
    gradients[0] = gradients[0].view((1,) * axes)
    assert float(adam.step([torch.ones((1,) * axes)], gradients)) == 0.0
    reference.step(gradients)
    assert_close(parameters, reference.parameters, 1)


def test_many_parameters():
    sizes = [7] * 700
    parameters = list(torch.cat(numbers(sizes, 0)).split(7))
    adam, reference = (make(parameters, rates_of(parameters, (RATE, DECAY))) for make in (native, TorchAdam))
    gradients = list(torch.cat(numbers(sizes, 1)).split(7))
    assert float(adam.step(ok("cpu"), gradients)) == 0.0
    reference.step(gradients)
    assert_close(parameters, reference.parameters, 1)
    gradients[350] = parameters[349][:3].new_tensor([1.0]).expand(7)
    assert adam._adam.step(parameters, [*gradients[:350], parameters[3], *gradients[351:]], []) is None
    overlapping = [*parameters[:-1], torch.cat(parameters)[:7]]
    assert native_adam.takes(overlapping)
    assert not native_adam.takes([*parameters[:-1], parameters[0][2:]])


def test_gradients_may_share_memory():
    parameters = numbers([7, 7], 0)
    adam, reference = (make(parameters, [(RATE, 0.0)] * 2) for make in (native, TorchAdam))
    (gradient,) = numbers([7], 1)
    adam.step(ok("cpu"), [gradient, gradient])
    reference.step([gradient, gradient])
    assert_close(parameters, reference.parameters, 1)


def native(parameters, rates):
    return NativeAdam(parameters, rates, **ADAM)


def test_a_skipped_step_is_not_a_change():
    """A backward that kept the value may go on."""
    weight = torch.ones(3, requires_grad=True)
    product = weight * weight
    with torch.no_grad():
        adam = NativeAdam([weight], [(RATE, 0.0)], **ADAM)
        adam.step(ok("cpu"), [torch.full((3,), math.nan)])
    product.sum().backward()


def test_the_flag_is_float32_on_the_cpu_whatever_the_defaults_are():
    weight, gradient, output = torch.ones(3), torch.ones(3), torch.ones(2)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            skipped = NativeAdam([weight], [(RATE, 0.0)], **ADAM).step([output], [gradient])
    finally:
        torch.set_default_dtype(before)
    assert (skipped.dtype, skipped.device.type, float(skipped)) == (torch.float32, "cpu", 0.0)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match=r"betas must lie in \[1/2, 1\), got 1"):
        _core.Adam((0.9, 1.0), 1e-8, [])
    adam = _core.Adam((0.9, 0.999), 1e-8, [(3, RATE, 0.0)])
    with pytest.raises(MemoryError, match="the averages of Adam"):
        _core.Adam((0.9, 0.999), 1e-8, [(2**60, RATE, 0.0)])
    with pytest.raises(ValueError, match="made for 1 tensors, got 2 parameters and 1 gradients"):
        adam.step([torch.ones(3), torch.ones(3)], [None], [])
    assert adam.step([torch.ones(4)], [torch.ones(4)], []) is None
    assert adam.step([torch.ones(3)], [torch.ones(4)], []) is None
    assert adam.step([torch.ones(3)], [torch.ones(3, dtype=torch.float64)], []) is None
    assert adam.step([torch.ones(3)], [torch.ones(3)], [torch.ones(2, dtype=torch.float64)]) is None


def test_a_step_count_beyond_float64_goes_on_as_it_was():
    """The kernels of torch, whose powers are 0 then."""
    model, other = (nn.Linear(3, 2, dtype=torch.float64) for _ in range(2))
    adam, again = (CautiousAdam(each, learning_rate=RATE, weight_decay=0.0) for each in (model, other))
    assert adam._own is None
    adam.step([model.weight.square().sum()])
    for steps in adam._groups[0].steps:
        steps.fill_(2**21)
    other.load_state_dict(model.state_dict())
    again.restore(adam.averages())
    assert again.averages()["weight"].powers[1] == 0
    for each, optimizer in ((model, adam), (other, again)):
        optimizer.step([(each.weight - 3).square().sum()])
    assert torch.equal(model.weight, other.weight)
