"""The log-probabilities under what torch does to functions: compile, export, transforms, checkpoints.

The truth is autograd through plain torch operations.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fastvae import functional as F
from fastvae.models import Bernoulli, Gaussian

SHAPE = (3, 4, 5)
# torch.compile and torch.jit warn about parts of torch itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]
BYTES = torch.randint(0, 256, SHAPE[1:], dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def plain_bernoulli(logits, x):
    terms = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, x.expand(logits.shape), reduction="none"
    )
    return -terms.sum(-1)


def plain_gaussian(mean, logvar, x):
    return -0.5 * (logvar + (x - mean) ** 2 * (-logvar).exp() + math.log(2 * math.pi)).sum(-1)


def values_of(tensor):
    return BYTES.to(tensor.dtype) / 255


# Losses that are not the last operation: the incoming gradients are not 1.
def bernoulli_loss(logits, logvar):
    return F.bernoulli_log_prob(logits * logvar, BYTES, target_max=255).mul(0.1).sin().sum()


def plain_bernoulli_loss(logits, logvar):
    return plain_bernoulli(logits * logvar, values_of(logits)).mul(0.1).sin().sum()


def target_loss(logits, logvar):
    """The data, which depends on the inputs here, has gradients too."""
    return F.bernoulli_log_prob(logits, logvar[0].sigmoid()).mul(0.1).sin().sum()


def plain_target_loss(logits, logvar):
    return plain_bernoulli(logits, logvar[0].sigmoid()).mul(0.1).sin().sum()


def predicted_loss(mean, logvar):
    return F.gaussian_log_prob(mean, logvar, BYTES, target_max=255).mul(0.1).sin().sum()


def plain_predicted_loss(mean, logvar):
    return plain_gaussian(mean, logvar, values_of(mean)).mul(0.1).sin().sum()


def learned_loss(mean, logvar):
    return F.gaussian_log_prob(mean, logvar[0, 0, 0], logvar[0]).mul(0.1).sin().sum()


def plain_learned_loss(mean, logvar):
    return plain_gaussian(mean, logvar[0, 0, 0].expand(SHAPE), logvar[0]).mul(0.1).sin().sum()


def fixed_loss(mean, logvar):
    return F.gaussian_log_prob(mean * logvar, 0.3, BYTES, target_max=255).mul(0.1).sin().sum()


def plain_fixed_loss(mean, logvar):
    return plain_gaussian(mean * logvar, torch.full_like(mean, 0.3), values_of(mean)).mul(0.1).sin().sum()


LOSSES = [
    (bernoulli_loss, plain_bernoulli_loss),
    (target_loss, plain_target_loss),
    (predicted_loss, plain_predicted_loss),
    (learned_loss, plain_learned_loss),
    (fixed_loss, plain_fixed_loss),
]
IDS = ["bernoulli", "target", "predicted", "learned", "fixed"]
losses = pytest.mark.parametrize(("loss", "plain"), LOSSES, ids=IDS)


def inputs(dtype=torch.float64, requires_grad=True):
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(SHAPE, generator=generator, dtype=dtype).requires_grad_(requires_grad) for _ in range(2)
    )


def assert_all_close(got, expected, tolerance=1e-10):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@losses
def test_gradients(loss, plain):
    tensors = inputs()
    torch.testing.assert_close(loss(*tensors), plain(*tensors), rtol=1e-12, atol=1e-12)
    assert_all_close(
        torch.autograd.grad(loss(*tensors), tensors), torch.autograd.grad(plain(*tensors), tensors)
    )


@losses
def test_gradcheck_and_gradgradcheck(loss, plain):
    assert torch.autograd.gradcheck(loss, inputs())
    assert torch.autograd.gradgradcheck(loss, inputs())


@pytest.mark.parametrize("event_dims", [0, 1, 2])
def test_gradcheck_of_every_event(event_dims):
    options = {"target_max": 255, "event_dims": event_dims}
    logits, logvar = inputs()
    one = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: F.bernoulli_log_prob(t, BYTES, **options), logits)
    assert torch.autograd.gradcheck(lambda *t: F.gaussian_log_prob(*t, BYTES, **options), (logits, logvar))
    assert torch.autograd.gradcheck(lambda *t: F.gaussian_log_prob(*t, BYTES, **options), (logits, one))


def test_the_gradient_at_zero():
    """Where |l| has a kink the log-probability has none, forwards, backwards and twice."""
    for x in (0.0, 0.25, 1.0):
        logit = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
        target = torch.full((1, 1), x, dtype=torch.float64)
        (grad,) = torch.autograd.grad(F.bernoulli_log_prob(logit, target).sum(), logit, create_graph=True)
        (second,) = torch.autograd.grad(grad.sum(), logit)
        assert float(grad.detach()) == x - 0.5
        assert float(second) == -0.25
        (alone,) = torch.autograd.grad(F.bernoulli_log_prob(logit, target).sum(), logit)
        by_transform = torch.func.grad(lambda l, t=target: F.bernoulli_log_prob(l, t).sum())(logit.detach())
        assert float(alone) == float(by_transform) == x - 0.5


def test_only_parameters_and_data_are_saved():
    saved = []
    logits, logvar = inputs(torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        F.bernoulli_log_prob(logits, BYTES, target_max=255)
        F.gaussian_log_prob(logits, logvar, BYTES, target_max=255)
        F.gaussian_log_prob(logits, 0.5, BYTES, target_max=255)
    pointers = {logits.data_ptr(), logvar.data_ptr(), BYTES.data_ptr()}
    assert all(t.data_ptr() in pointers or t.numel() == 1 for t in saved)


@losses
def test_func_grad_and_hessian(loss, plain):
    tensors = inputs(requires_grad=False)
    assert_all_close(
        torch.func.grad(loss, argnums=(0, 1))(*tensors), torch.func.grad(plain, argnums=(0, 1))(*tensors)
    )
    assert_all_close([torch.func.hessian(loss)(*tensors)], [torch.func.hessian(plain)(*tensors)])


@losses
def test_jvp_and_forward_mode(loss, plain):
    tensors = inputs(requires_grad=False)
    tangents = tuple(torch.randn_like(t) for t in tensors)
    assert_all_close(torch.func.jvp(loss, tensors, tangents), torch.func.jvp(plain, tensors, tangents))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(tensors[0], tangents[0])
        got, expected = (
            torch.autograd.forward_ad.unpack_dual(function(dual, tensors[1])).tangent
            for function in (loss, plain)
        )
    assert_all_close([got], [expected])
    assert got != 0


def test_vmap_gives_each_example_what_it_gets_alone():
    logits, logvar = inputs(requires_grad=False)

    def one(l, v, x):
        return (
            F.bernoulli_log_prob(l, x, target_max=255),
            F.gaussian_log_prob(l, v, x, target_max=255),
            F.gaussian_log_prob(l, v[0], x, target_max=255),
        )

    got = torch.func.vmap(torch.func.vmap(one), in_dims=(0, 0, None))(logits, logvar, BYTES)
    for i in range(SHAPE[0]):
        for j in range(SHAPE[1]):
            alone = one(logits[i, j], logvar[i, j], BYTES[j])
            assert_all_close([g[i, j] for g in got], alone, 1e-12)
    grads = torch.func.vmap(torch.func.grad(lambda l, v, x: sum(one(l, v, x))), in_dims=(0, 0, 0))(
        logits[0], logvar[0], BYTES
    )
    for j in range(SHAPE[1]):
        alone = torch.func.grad(lambda l, v, x: sum(one(l, v, x)))(logits[0, j], logvar[0, j], BYTES[j])
        assert_all_close([grads[j]], [alone], 1e-12)


@pytest.fixture
def compiler():
    """torch.compile with the whole pipeline up to the graph, which needs no C++ compiler."""
    torch.compiler.reset()
    yield lambda f, **options: torch.compile(f, fullgraph=True, backend="aot_eager", **options)
    torch.compiler.reset()


@losses
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(loss, plain, dynamic, compiler):
    compiled = compiler(loss, dynamic=dynamic)
    tensors = inputs()
    expected = loss(*tensors), *torch.autograd.grad(loss(*tensors), tensors)
    value = compiled(*tensors)
    assert_all_close((value, *torch.autograd.grad(value, tensors)), expected, 1e-12)
    with torch.no_grad():
        assert_all_close([compiled(*tensors)], expected[:1], 1e-12)


@losses
def test_compile_of_func_grad(loss, plain, compiler):
    """The combination that gives silent zeros through any autograd function."""
    tensors = inputs(requires_grad=False)
    got = compiler(torch.func.grad(loss, argnums=(0, 1)))(*tensors)
    assert_all_close(got, torch.func.grad(plain, argnums=(0, 1))(*tensors))


class Decoder(torch.nn.Module):
    """Parameters in front of the likelihoods, and in one."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(5, 10)
        self.gray, self.real = Bernoulli(), Gaussian("learned")
        self.own, self.fixed = Gaussian("predicted"), Gaussian(0.5)

    def forward(self, x):
        params = self.layer(x)
        mean, _ = params.chunk(2, -1)
        return (
            self.gray.log_prob(mean, x.sigmoid())
            + self.real.log_prob(mean, x)
            + self.own.log_prob(params.unflatten(-1, (2, 5)), x)
            + self.fixed.log_prob(mean, x)
        ).sum()


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_model_can_be_trained(strict):
    model, x = Decoder(), torch.randn(4, 5)
    expected = model(x)
    expected.backward()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (x,), strict=strict, dynamic_shapes=({0: batch},))
    exported = program.module()
    value = exported(x)
    value.backward()
    torch.testing.assert_close(value, expected)
    for (name, parameter), copy in zip(model.named_parameters(), exported.parameters(), strict=True):
        torch.testing.assert_close(copy.grad, parameter.grad, msg=name)
    larger = torch.randn(9, 5)
    torch.testing.assert_close(exported(larger), model(larger))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant):
    tensors = inputs(torch.float32)

    def block(logits, logvar):
        return sum(loss(logits, logvar) for loss, _ in LOSSES)

    expected = torch.autograd.grad(block(*tensors), tensors)
    checkpoint(block, *tensors, use_reentrant=use_reentrant).backward()
    for tensor, grad in zip(tensors, expected, strict=True):
        assert torch.equal(tensor.grad, grad)


def test_autocast():
    """A linear layer gives bfloat16; log-probabilities are float32, and a learned variance stays so."""
    model, x = Decoder(), torch.randn(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        params = model.layer(x)
        assert params.dtype == torch.bfloat16
        mean, logvar = params.chunk(2, -1)
        gray, real = model.gray.log_prob(mean, x.sigmoid()), model.real.log_prob(mean, x)
        mixed = F.gaussian_log_prob(mean, logvar.float(), x)
        value = model(x)
    assert gray.dtype == real.dtype == mixed.dtype == torch.float32
    assert torch.equal(gray, F.bernoulli_log_prob(mean.float(), x.sigmoid()))
    assert torch.equal(real, F.gaussian_log_prob(mean.float(), 0.0, x))
    assert torch.equal(mixed, F.gaussian_log_prob(mean.float(), logvar.float(), x))
    value.backward()
    assert model.layer.weight.grad.dtype == model.real.log_variance.grad.dtype == torch.float32


def operator_samples():
    """Every operator with float32 and strided bfloat16 parameters, for opcheck."""
    for dtype in (torch.float32, torch.bfloat16):
        for grad in (False, True):
            logits, logvar = (
                torch.randn(5, 4, 3).to(dtype).transpose(0, 2).detach().requires_grad_(grad) for _ in range(2)
            )
            one, floats = torch.tensor(0.4, requires_grad=grad), torch.rand(4, 5, requires_grad=grad)
            for target, largest in ((BYTES, 255), (BYTES > 100, 1), (floats, 1)):
                yield "bernoulli_log_prob", (logits, target, largest, 1)
                yield "gaussian_log_prob", (logits, logvar, target, largest, 2)
                yield "gaussian_log_prob", (logits, one, target, largest, 0)
        upstream = torch.randn(3, 4)
        logits, logvar = logits.detach(), logvar.detach()
        yield "bernoulli_log_prob_backward", (upstream, logits, BYTES, 255, 1)
        yield "gaussian_log_prob_backward", (upstream, logits, logvar, BYTES, 255, 1)
        yield "gaussian_log_prob_backward", (upstream, logits, torch.tensor(0.4), BYTES, 255, 1)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(("name", "arguments"), list(operator_samples()))
def test_opcheck(name, arguments):
    torch.library.opcheck(getattr(torch.ops.fastvae, name).default, arguments)


def test_the_bare_operators_are_differentiable():
    """Not only the public functions: a direct call must not lose a gradient silently."""
    logits, logvar = inputs()
    value = torch.ops.fastvae.bernoulli_log_prob(logits, BYTES, 255, 1)
    value = value + torch.ops.fastvae.gaussian_log_prob(logits, logvar, BYTES, 255, 1)
    got = torch.autograd.grad(value.sum(), (logits, logvar))
    x = values_of(logits)
    plain = plain_bernoulli(logits, x) + plain_gaussian(logits, logvar, x)
    assert_all_close(got, torch.autograd.grad(plain.sum(), (logits, logvar)))
    _, tangent = torch.func.jvp(
        lambda l: torch.ops.fastvae.bernoulli_log_prob(l, BYTES, 255, 1), (logits,), (logits,)
    )
    _, expected = torch.func.jvp(lambda l: plain_bernoulli(l, x), (logits,), (logits,))
    assert_all_close([tangent], [expected])


def test_sparse_gradients_are_taken():
    """``gather(sparse_grad=True)`` sends them."""
    index = torch.zeros(SHAPE[0], 1, dtype=torch.int64)

    def gradients(sparse_grad):
        logits, logvar = inputs()
        value = F.bernoulli_log_prob(logits, BYTES, target_max=255)
        value = value * F.gaussian_log_prob(logits, logvar, BYTES, target_max=255)
        loss = value.gather(1, index, sparse_grad=sparse_grad).sum()
        return torch.autograd.grad(loss, (logits, logvar))

    assert_all_close(gradients(sparse_grad=True), gradients(sparse_grad=False))


def test_meta_tensors_have_shapes_and_no_values():
    logits = torch.zeros(SHAPE, device="meta")
    assert F.bernoulli_log_prob(logits, BYTES.to("meta"), target_max=255).shape == SHAPE[:2]
    assert F.gaussian_log_prob(logits, 0.5, BYTES.to("meta"), target_max=255).device.type == "meta"
