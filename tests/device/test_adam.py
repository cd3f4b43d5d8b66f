"""Adam in two launches: the arithmetic of float64 to a few roundings, and steps that are called off whole."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from adam_tests import (
    ADAM,
    DECAY,
    RATE,
    SIZES,
    AdamTests,
    TorchAdam,
    assert_close,
    assert_same,
    numbers,
    ok,
    placed,
    rates_of,
    spoiled,
)
from fastvae.training import fused_adam
from fastvae.training.fused_adam import CHUNK, MOST_TENSORS, FusedAdam
from fastvae.training.native_adam import NativeAdam


class TestFusedAdam(AdamTests):
    adam = FusedAdam

    @pytest.fixture(autouse=True)
    def _interpreted(self, device, monkeypatch):
        """Have the optimizer take the kernels in the interpreter too."""
        if device.type == "cpu":
            monkeypatch.setattr(fused_adam, "takes", lambda _: True)


def test_a_parameter_that_got_other_strides_is_refused(device):
    parameter = nn.Parameter(torch.ones(4, 6, device=device))
    adam = FusedAdam([parameter], [(RATE, 0.0)], **ADAM)
    parameter.data = parameter.data.t()
    with pytest.raises(ValueError, match="must stay 24 contiguous float32 numbers"):
        adam.step(ok(device), [torch.ones(6, 4, device=device)])


def test_more_tensors_than_a_launch_takes(device):
    """A number that is not finite in the last launch calls off the first one's updates too."""
    sizes = [7] * (MOST_TENSORS + 2) + [0] + [1030]
    parameters = placed(numbers(sizes, 0), device)
    rates = rates_of(parameters, (RATE, DECAY), (RATE / 10, 0.0))
    adam, reference = FusedAdam(parameters, rates, **ADAM), TorchAdam(parameters, rates)
    assert len(adam._packs) == 2
    for step in range(1, 4):
        gradients = numbers(sizes, step)
        assert float(adam.step(ok(device), placed(gradients, device))) == 0.0
        reference.step(gradients)
        assert_close(parameters, reference.parameters, step)
        before = [p.clone() for p in parameters]
        for where in (("gradient", -1, -1), ("gradient", 0, 0), ("output", 0, 0)):
            assert float(adam.step(*spoiled(ok(device), placed(gradients, device), where, math.inf))) == 1.0
            assert_same(parameters, before)
    whole = [None] * (len(sizes) - 1) + placed(gradients, device)[-1:]
    adam.step(ok(device), whole)
    reference.step([None] * (len(sizes) - 1) + gradients[-1:])
    assert_close(parameters, reference.parameters, 4)


def test_programs_look_at_several_chunks(device, monkeypatch):
    """Large tensors have more chunks than there are flags."""
    monkeypatch.setattr(fused_adam, "MOST_FLAGS", 4)
    monkeypatch.setattr(fused_adam, "FEWEST_FLAGS", 4)
    sizes = [3 * CHUNK, 10 * CHUNK + 1]
    parameters = placed(numbers(sizes, 0), device)
    rates = rates_of(parameters, (RATE, DECAY))
    adam, reference = FusedAdam(parameters, rates, **ADAM), TorchAdam(parameters, rates)
    (pack,) = adam._packs
    assert (pack.steps, len(pack.flags)) == (5, 4)
    gradients = numbers(sizes, 1)
    for number, size in enumerate(sizes):
        for position in (*range(0, size, CHUNK), size - 1):
            where = ("gradient", number, position)
            assert float(adam.step(*spoiled(ok(device), placed(gradients, device), where, math.nan))) == 1.0
    adam.step(ok(device), placed(gradients, device))
    reference.step(gradients)
    assert_close(parameters, reference.parameters, 1)


@pytest.mark.parametrize("change", ["float64", "bfloat16", "mixed", "transposed", "none"])
def test_what_it_does_not_take_is_left_to_torch(device, change):
    layer = nn.Linear(3, 4).to(device)
    if change in {"float64", "bfloat16"}:
        layer.to(getattr(torch, change))
    elif change == "mixed":
        layer.bias = nn.Parameter(layer.bias.detach().double())
    elif change == "transposed":
        layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    else:
        layer.requires_grad_(False)
    assert not fused_adam.takes([parameter for parameter in layer.parameters() if parameter.requires_grad])


def test_a_captured_step_has_the_bits_of_one_that_is_not(cuda):
    def trained(captured):
        parameters = placed(numbers(SIZES, 0), cuda)
        adam = FusedAdam(parameters, rates_of(parameters, (RATE, DECAY)), **ADAM)
        outputs, gradients = ok(cuda), [torch.zeros_like(p) for p in parameters]
        skipped = []

        def fill(step):
            for gradient, value in zip(gradients, numbers(SIZES, step), strict=True):
                gradient.copy_(value)
            outputs[1][-1] = math.nan if step == 3 else 1.0

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            fill(1)
            adam.step(outputs, gradients)
            graph = torch.cuda.CUDAGraph()
            if captured:
                with torch.cuda.graph(graph, stream=stream):
                    flag = adam.step(outputs, gradients)
            for step in range(2, 7):
                fill(step)
                if captured:
                    graph.replay()
                else:
                    flag = adam.step(outputs, gradients)
                skipped.append(float(flag))
            stream.synchronize()
        assert skipped == [0.0, 1.0, 0.0, 0.0, 0.0]
        return parameters

    assert_same(trained(True), trained(False))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_device(cuda):
    parameters = placed(numbers(SIZES, 0), cuda)
    adam = FusedAdam(parameters, rates_of(parameters, (RATE, DECAY)), **ADAM)
    outputs, gradients = ok(cuda), placed(numbers(SIZES, 1), cuda)
    adam.step(outputs, gradients)
    torch.cuda.set_sync_debug_mode("error")
    try:
        adam.step(outputs, gradients)
        adam.step(outputs[:1], [None, *gradients[1:]])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_a_tensor_beyond_32_bits_of_offsets(cuda):
    """The last element of one with more than 2^31."""
    size = 2**31 + 2 * CHUNK + 1
    if torch.cuda.mem_get_info(cuda)[0] < 5 * 4 * size:
        pytest.skip("needs 43 GB of free memory")
    parameter, gradient = torch.ones(size, device=cuda), torch.zeros(size, device=cuda)
    adam = FusedAdam([parameter], [(RATE, 0.0)], **ADAM)
    gradient[-1] = gradient[2**31] = 1.0
    adam.step(ok(cuda), [gradient])
    assert parameter[[0, 2**31 - 1, 2**31 + 1]].tolist() == [1.0] * 3
    torch.testing.assert_close(parameter[[2**31, size - 1]].cpu(), torch.full((2,), 1 - RATE))
    gradient[-1] = math.inf
    assert float(adam.step(ok(cuda), [gradient])) == 1.0


def test_it_has_the_bits_of_the_one_for_the_cpu(device):
    here, there = placed(numbers(SIZES, 0), device), placed(numbers(SIZES, 0), "cpu")
    rates = rates_of(here, (RATE, DECAY), (RATE, 0.0))
    adam, native = FusedAdam(here, rates, **ADAM), NativeAdam(there, rates, **ADAM)
    for step in range(1, 30):
        gradients = numbers(SIZES, step, scale=(1.0, 1e-12, 1e-22)[step % 3])
        outputs = [torch.tensor([math.nan if step == 7 else 1.0])]
        skipped = adam.step(placed(outputs, device), placed(gradients, device))
        assert_same([skipped], [native.step(outputs, gradients)])
        assert_same(here, there)
