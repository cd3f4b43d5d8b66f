"""What holds for Adam on every device: it is torch's, to a few roundings, and steps are called off whole."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastvae.training.optimizer import BETA1, BETA2, EPSILON, LIKELIHOOD_RATE, CautiousAdam

SIZES = [1, 3, 1023, 1025, 5000, 4096]
RATE, DECAY = 1e-2, 0.1
ADAM = {"beta1": BETA1, "beta2": BETA2, "eps": EPSILON}
ROUNDING = 2.0**-23
ROUNDED = tuple(torch.tensor([BETA1, BETA2], dtype=torch.float32).tolist())
"""The betas of the kernels."""


def numbers(sizes, step, *, scale=1.0):
    """Parameters, or the gradients of a step: of several magnitudes, the same each time."""
    generator = torch.Generator().manual_seed(step)
    return [
        scale
        * torch.randn(size, generator=generator)
        * 10.0 ** torch.randint(-3, 2, (size,), generator=generator)
        for size in sizes
    ]


def placed(tensors, device, *, shift=0):
    """Copies on the device, if wanted where no 16 bytes begin."""
    return [torch.cat((t.new_zeros(shift), t)).to(device)[shift:] for t in tensors]


def ok(device, *sizes):
    """Outputs with nothing to say against the step."""
    return [torch.randn(size, device=device) for size in sizes or (70, 70)]


def rates_of(tensors, *rates):
    """A learning rate and a weight decay for each, in turns."""
    return [rates[number % len(rates)] for number in range(len(tensors))]


def spoiled(outputs, gradients, where, value):
    """One number among them replaced."""
    kind, number, position = where
    outputs, gradients = [o.clone() for o in outputs], [g.clone() for g in gradients]
    (outputs if kind == "output" else gradients)[number].view(-1)[position] = value
    return outputs, gradients


class TorchAdam:
    """torch's AdamW, one parameter at a time: the definition in float64, or what people use in float32."""

    def __init__(self, tensors, rates, *, dtype=torch.float64, betas=ROUNDED):
        self.parameters = [t.detach().to("cpu", dtype, copy=True).requires_grad_() for t in tensors]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [parameter], "lr": learning_rate, "weight_decay": weight_decay}
                for parameter, (learning_rate, weight_decay) in zip(self.parameters, rates, strict=True)
            ],
            betas=betas,
            eps=EPSILON,
            foreach=False,
        )

    def step(self, gradients):
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.to("cpu", parameter.dtype)
        self.optimizer.step()


def assert_close(found, expected, steps, *, rate=RATE, roundings=1):
    """Each step rounds a parameter twice, by half a digit, and what it moves by a few times.

    That is up to 32 learning rates, and where averages cancel it is no more exact than the largest of them.
    """
    for here, there in zip(found, expected, strict=True):
        torch.testing.assert_close(
            here.detach().cpu().double(),
            there.detach().double(),
            rtol=roundings * steps * ROUNDING,
            atol=roundings * steps * 32 * rate * ROUNDING,
        )


def assert_same(found, expected):
    for here, there in zip(found, expected, strict=True):
        assert torch.equal(here.cpu(), there.cpu())


PLACES = [
    *[("output", number, position) for number in range(3) for position in (0, -1)],
    *[("gradient", number, -1) for number in range(len(SIZES))],
    ("gradient", 4, 0),
    ("gradient", 4, 1024),
]


class Model(nn.Module):
    """A network and a likelihood with a parameter of its own."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.inner = nn.Sequential(nn.Linear(5, 41), nn.Tanh(), nn.Linear(41, 1))
        self.likelihood = nn.Module()
        self.likelihood.logvar = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return self.inner(x).squeeze(1), self.likelihood.logvar * x.square().sum(1)


class Marked(torch.Tensor):
    """A tensor that wants to see what is done with it."""


class AdamTests:
    """The tests; ``adam`` is the class, and the fixture ``device`` where its parameters are."""

    adam = None

    @pytest.mark.parametrize("shift", [0, 1])
    def test_it_is_adamw(self, device, shift):
        """Several sizes, rates and decays at a time, wherever parameters and gradients lie."""
        parameters = placed(numbers(SIZES, 0), device, shift=shift)
        rates = rates_of(parameters, (RATE, DECAY), (RATE, 0.0), (RATE / 10, 3 * DECAY))
        adam, reference = self.adam(parameters, rates, **ADAM), TorchAdam(parameters, rates)
        usual = TorchAdam(parameters, rates, dtype=torch.float32, betas=(BETA1, BETA2))
        for step in range(1, 7):
            gradients = numbers(SIZES, step)
            skipped = adam.step(ok(device), placed(gradients, device, shift=step % 2))
            assert (skipped.dtype, skipped.shape, float(skipped)) == (torch.float32, (), 0.0)
            reference.step(gradients)
            usual.step(gradients)
            assert_close(parameters, reference.parameters, step)
            assert_close(parameters, usual.parameters, step, roundings=3)

    def test_many_steps_keep_to_it(self, device):
        """What is counted on the device stays the power of beta that it is."""
        parameters = placed(numbers([5], 0), device)
        adam = self.adam(parameters, [(RATE, 0.0)], **ADAM)
        reference, outputs = TorchAdam(parameters, [(RATE, 0.0)]), ok(device)
        for step in range(1, 201):
            gradients = numbers([5], step)
            adam.step(outputs, placed(gradients, device))
            reference.step(gradients)
            if step in {1, 10, 100, 200}:
                assert_close(parameters, reference.parameters, step)

    @pytest.mark.parametrize("scale", [0.0, 1e-25, 1e-12, 1e12])
    def test_gradients_of_any_size(self, device, scale):
        """Squares may be subnormal or 0 in float32: then it is eps that counts."""
        parameters = placed(numbers(SIZES[:4], 0), device)
        rates = rates_of(parameters, (RATE, DECAY))
        adam = self.adam(parameters, rates, **ADAM)
        reference = TorchAdam(parameters, rates, dtype=torch.float64)
        for step in range(1, 4):
            gradients = numbers(SIZES[:4], step, scale=scale)
            adam.step(ok(device), placed(gradients, device))
            reference.step(gradients)
            assert_close(parameters, reference.parameters, step)

    def test_averages_beyond_the_normal_numbers_are_0(self, device):
        """Processors are slow with those, and where a gradient has ended an average would stay there."""
        smallest = torch.finfo(torch.float32).smallest_normal
        of_mean = torch.tensor([0.9, -0.9, 1.1, -1.1]) * smallest / (1 - ROUNDED[0])
        (parameter,) = parameters = placed([torch.zeros(4)], device)
        adam = self.adam(parameters, [(RATE, 0.0)], **ADAM)
        adam.step(ok(device), placed([of_mean], device))
        assert (parameter == 0).tolist() == [True, True, False, False]
        # What is left of the others ends too, in the next step.
        moved = parameter.clone()
        for _ in range(3):
            adam.step(ok(device), placed([torch.zeros(4)], device))
        assert torch.equal(parameter, moved)

    def test_zeros_keep_their_sign(self, device):
        (parameter,) = parameters = placed([torch.tensor([0.0, -0.0])], device)
        self.adam(parameters, [(RATE, 0.0)], **ADAM).step(ok(device), placed([torch.zeros(2)], device))
        assert torch.signbit(parameter).tolist() == [False, True]

    def test_a_parameter_without_a_gradient_is_left_alone_and_counts_no_step(self, device):
        parameters = placed(numbers(SIZES, 0), device)
        rates = rates_of(parameters, (RATE, DECAY))
        adam, reference = self.adam(parameters, rates, **ADAM), TorchAdam(parameters, rates)
        for step, without in enumerate([{2}, set(), {0, 4}, set(range(len(SIZES))), {5}, set()], 1):
            gradients = [None if i in without else g for i, g in enumerate(numbers(SIZES, step))]
            before = [p.clone() for p in parameters]
            adam.step(ok(device), [None if g is None else g.to(device) for g in gradients])
            reference.step(gradients)
            assert_same([parameters[i] for i in without], [before[i] for i in without])
            assert_close(parameters, reference.parameters, step)

    @pytest.mark.parametrize("where", PLACES, ids=str)
    def test_a_step_with_a_number_that_is_not_finite_is_as_if_it_had_not_been(self, device, where):
        parameters = placed(numbers(SIZES, 0), device)
        undisturbed = placed(numbers(SIZES, 0), device)
        rates = rates_of(parameters, (RATE, DECAY))
        adam, other = (self.adam(some, rates, **ADAM) for some in (parameters, undisturbed))
        outputs = ok(device, 70, 1, 2049)
        values = {2: math.nan, 3: math.inf, 5: -math.inf}
        for step in range(1, 7):
            gradients = placed(numbers(SIZES, step), device)
            if step in values:
                before = [p.clone() for p in parameters]
                assert float(adam.step(*spoiled(outputs, gradients, where, values[step]))) == 1.0
                assert_same(parameters, before)
            else:
                assert float(adam.step(outputs, gradients)) == 0.0
                other.step(outputs, gradients)
                assert_same(parameters, undisturbed)

    def test_the_largest_numbers_are_finite_and_do_no_harm(self, device):
        largest = torch.finfo(torch.float32).max
        parameters = placed(numbers([3], 0), device)
        adam = self.adam(parameters, [(RATE, 0.0)], **ADAM)
        outputs = [
            torch.tensor([largest, -largest], device=device),
            torch.tensor(1e300, dtype=torch.float64, device=device),
        ]
        gradient = torch.tensor([largest, -largest, 0.0], device=device)
        before = parameters[0].clone()
        assert float(adam.step(outputs, [gradient])) == 0.0
        assert_same(parameters, [before])  # beside a square that is infinite
        outputs[1] = torch.tensor(math.inf, dtype=torch.float64, device=device)
        assert float(adam.step(outputs, [gradient])) == 1.0
        assert float(adam.step([torch.tensor([1.0, math.nan], device=device).bfloat16()], [gradient])) == 1.0

    def test_gradients_that_are_not_plain(self, device):
        """Transposed, expanded, negated, sparse or of another dtype: their numbers count, and stay."""
        shape = (4, 6)
        plain = torch.randn(shape)
        of_kind = {
            "transposed": plain.t().contiguous().t(),
            "expanded": plain[:1].expand(shape),
            "negated": torch._neg_view(-plain),
            "sparse": plain.to_sparse(),
            "half": plain.half(),
        }
        parameters = [torch.randn(shape).to(device) for _ in of_kind]
        rates = rates_of(parameters, (RATE, DECAY))
        adam, reference = self.adam(parameters, rates, **ADAM), TorchAdam(parameters, rates)
        here = [
            torch._neg_view(-plain.to(device)) if kind == "negated" else gradient.to(device)
            for kind, gradient in of_kind.items()
        ]
        before = [g.to_dense().clone() if g.is_sparse else g.clone() for g in here]
        adam.step(ok(device), here)
        reference.step([g.to_dense() if g.is_sparse else g for g in of_kind.values()])
        assert_close(parameters, reference.parameters, 1)
        assert_same([g.to_dense() if g.is_sparse else g for g in here], before)

    def test_the_same_steps_have_the_same_bits(self, device):
        def trained():
            parameters = placed(numbers(SIZES, 0), device)
            adam = self.adam(parameters, rates_of(parameters, (RATE, DECAY)), **ADAM)
            for step in range(1, 4):
                adam.step(ok(device), placed(numbers(SIZES, step), device, shift=step % 2))
            return parameters

        assert_same(trained(), trained())

    def test_a_backward_that_kept_an_old_value_fails(self, device):
        weight = torch.ones(3, device=device, requires_grad=True)
        product = weight * weight
        with torch.no_grad():
            self.adam([weight], [(RATE, 0.0)], **ADAM).step(ok(device), [torch.ones(3, device=device)])
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.sum().backward()

    def test_what_became_of_a_parameter_is_looked_at(self, device):
        parameter = nn.Parameter(torch.ones(4, 6, device=device))
        adam = self.adam([parameter], [(RATE, 0.0)], **ADAM)
        with pytest.raises(ValueError, match=r"a gradient has shape \(5,\)"):
            adam.step(ok(device), [torch.ones(5, device=device)])
        parameter.data = parameter.data.double()
        with pytest.raises(ValueError, match=r"became torch.float64 of \(4, 6\) .* stay 24 .*numbers"):
            adam.step(ok(device), [torch.ones(4, 6, device=device)])
        parameter.data = torch.ones(5, device=device)
        with pytest.raises(ValueError, match=r"became torch.float32 of \(5,\) .* stay 24 .*numbers"):
            adam.step(ok(device), [torch.ones(5, device=device)])

    def test_outputs_and_gradients_may_be_of_a_class_of_their_own(self, device):
        """As those are that come of data of such a class."""
        parameters, others = placed(numbers([5], 0), device), placed(numbers([5], 0), device)
        adam, other = (self.adam(some, [(RATE, 0.0)], **ADAM) for some in (parameters, others))
        gradients = placed(numbers([5], 1), device)
        outputs = ok(device)
        marked = [[t.as_subclass(Marked) for t in tensors] for tensors in (outputs, gradients)]
        assert type(adam.step(*marked)) is torch.Tensor
        other.step(outputs, gradients)
        assert_same(parameters, others)
        marked[0][1][3] = math.nan
        assert float(adam.step(*marked)) == 1.0

    def test_another_one_with_its_averages_goes_on_with_the_same_bits(self, device):
        """Also where a parameter has no numbers, or has not moved in each step."""
        sizes = [*SIZES, 0, 7]
        parameters = placed(numbers(sizes, 0), device)
        rates = rates_of(parameters, (RATE, DECAY), (RATE, 0.0))
        adam = self.adam(parameters, rates, **ADAM)

        def step(adam, number):
            gradients = placed(numbers(sizes, number), device)
            adam.step(ok(device), [*gradients[:-1], gradients[-1] if number % 2 else None])

        for number in (1, 2, 3):
            step(adam, number)
        others = [parameter.clone() for parameter in parameters]
        other = self.adam(others, rates, **ADAM)
        kept = adam.averages()
        assert [each.mean.numel() for each in kept] == sizes
        counts = [3 if size else 0 for size in sizes[:-1]] + [2]
        for each, count in zip(kept, counts, strict=True):
            assert each.powers.tolist() == pytest.approx([beta**count for beta in ROUNDED], rel=1e-15, abs=0)
        other.restore(kept)
        for number in (4, 5):
            step(adam, number)
            step(other, number)
        assert_same(others, parameters)

    def test_the_optimizer_takes_it_with_the_rates_of_each_parameter(self, device):
        model, other = Model().to(device), Model()
        optimizer = CautiousAdam(model, learning_rate=RATE, weight_decay=DECAY)
        assert isinstance(optimizer._own, self.adam)
        names = [name for name, _ in other.named_parameters()]
        reference = TorchAdam(
            list(other.parameters()),
            [
                (LIKELIHOOD_RATE * RATE, 0.0) if name.startswith("likelihood.") else (RATE, DECAY)
                for name in names
            ],
        )
        x = torch.randn(9, 5)
        for _ in range(4):
            x_here = x.to(device)
            assert float(optimizer.step(model(x_here), (torch.ones(9, device=device),) * 2)) == 0.0
            reference.step([parameter.grad for parameter in model.parameters()])
        assert_close(model.parameters(), reference.parameters, 4, rate=LIKELIHOOD_RATE * RATE)
