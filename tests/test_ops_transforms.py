"""The operations under what torch does to functions: compile, export, transforms, checkpoints, autocast.

The truth is autograd through plain torch operations with the same noise.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fastvae import functional as F
from fastvae import noise
from fastvae.ops.layout import OPMATH

SHAPE = (6, 5)
# torch.compile and torch.jit warn about parts of torch itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]
NOISE = (torch.tensor(3), 0, 0, 1)


def plain_reparametrize(mu, logvar):
    return mu + (logvar / 2).exp() * noise.normal(SHAPE, 3, dtype=mu.dtype)


def plain_kl(mu, logvar, prior_mu=0.0, prior_logvar=None):
    k = torch.zeros_like(logvar) if prior_logvar is None else prior_logvar
    return 0.5 * ((logvar - k).exp() - 1 - (logvar - k) + (mu - prior_mu) ** 2 * (-k).exp()).sum(-1)


def fused_loss(mu, logvar):
    """A loss that is not the last operation: the incoming gradients are not 1."""
    z, kl = F.reparametrize_kl(mu, logvar, seed=3)
    return (z.sin().sum(-1) + kl.square()).sum()


def plain_loss(mu, logvar):
    return (plain_reparametrize(mu, logvar).sin().sum(-1) + plain_kl(mu, logvar).square()).sum()


def single_loss(mu, logvar):
    z = F.reparametrize(mu, logvar, seed=3)
    kl = F.gaussian_kl(mu, logvar)
    return (z.sin().sum(-1) + kl.square()).sum()


def prior_loss(mu, logvar):
    return F.gaussian_kl(mu, logvar, mu.sin(), logvar.cos()).square().sum()


def plain_prior_loss(mu, logvar):
    return plain_kl(mu, logvar, mu.sin(), logvar.cos()).square().sum()


LOSSES = [(fused_loss, plain_loss), (single_loss, plain_loss), (prior_loss, plain_prior_loss)]
IDS = ["fused", "single", "prior"]
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
    mu, logvar = inputs()
    torch.testing.assert_close(loss(mu, logvar), plain(mu, logvar), rtol=1e-12, atol=1e-12)
    assert_all_close(
        torch.autograd.grad(loss(mu, logvar), (mu, logvar)),
        torch.autograd.grad(plain(mu, logvar), (mu, logvar)),
    )


@losses
def test_gradcheck_and_gradgradcheck(loss, plain):
    assert torch.autograd.gradcheck(loss, inputs())
    assert torch.autograd.gradgradcheck(loss, inputs())


@pytest.mark.parametrize("event_dims", [0, 1, 2])
@pytest.mark.parametrize("reduction", ["sample", "none", "sum", "mean", "batchmean", "dimension"])
def test_gradcheck_of_every_reduction(event_dims, reduction):
    mu, logvar = inputs()
    options = {"event_dims": event_dims, "reduction": reduction}
    assert torch.autograd.gradcheck(lambda *t: F.gaussian_kl(*t, **options), (mu, logvar))
    assert torch.autograd.gradcheck(lambda *t: F.reparametrize_kl(*t, seed=3, **options), (mu, logvar))
    prior = tuple(t.detach().flip(0).requires_grad_() for t in (mu, logvar))
    assert torch.autograd.gradcheck(lambda *t: F.gaussian_kl(*t, **options), (mu, logvar, *prior))


def test_gradients_reach_a_broadcast_prior():
    mu, logvar = inputs(requires_grad=False)
    prior_mu = torch.randn(5, dtype=torch.float64, requires_grad=True)
    prior_logvar = torch.randn((), dtype=torch.float64, requires_grad=True)
    got = torch.autograd.grad(
        F.gaussian_kl(mu, logvar, prior_mu, prior_logvar).sum(), (prior_mu, prior_logvar)
    )
    plain = plain_kl(mu, logvar, prior_mu, prior_logvar.expand(SHAPE)).sum()
    assert_all_close(got, torch.autograd.grad(plain, (prior_mu, prior_logvar)))
    assert [g.shape for g in got] == [(5,), ()]


def test_half_a_prior_is_completed_with_the_standard_one():
    mu, logvar = inputs(requires_grad=False)
    torch.testing.assert_close(F.gaussian_kl(mu, logvar, prior_mu=mu), plain_kl(mu, logvar, mu))
    zeros = torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(F.gaussian_kl(mu, logvar, prior_logvar=zeros), plain_kl(mu, logvar))


def test_only_wanted_gradients_are_given():
    mu, logvar = inputs()
    z = F.reparametrize(mu, logvar.detach(), seed=3)
    (grad,) = torch.autograd.grad(z.sum(), mu)
    assert torch.equal(grad, torch.ones_like(mu))
    z = F.reparametrize(mu.detach(), logvar, seed=3)
    (grad,) = torch.autograd.grad(z.sum(), logvar)
    (expected,) = torch.autograd.grad(plain_reparametrize(mu, logvar).sum(), logvar)
    assert_all_close([grad], [expected])


def test_nothing_but_parameters_and_seed_is_saved():
    saved = []
    mu, logvar = inputs(torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        F.reparametrize_kl(mu, logvar, seed=3)
        F.reparametrize(mu, logvar, seed=3)
        F.gaussian_kl(mu, logvar)
    pointers = {mu.data_ptr(), logvar.data_ptr()}
    assert all(t.data_ptr() in pointers or t.numel() == 1 for t in saved)


@losses
def test_func_grad_and_hessian(loss, plain):
    mu, logvar = inputs(requires_grad=False)
    assert_all_close(
        torch.func.grad(loss, argnums=(0, 1))(mu, logvar), torch.func.grad(plain, argnums=(0, 1))(mu, logvar)
    )
    assert_all_close([torch.func.hessian(loss)(mu, logvar)], [torch.func.hessian(plain)(mu, logvar)])


LOGVARS = (-80.0, -60.0, -30.0, -18.0, -17.0, -10.0, -2.0, -1.0, -0.999, -0.5, 0.0, 0.5, 1.0, 10.0, 40.0)


@pytest.mark.parametrize(
    "kl",
    [
        lambda mu, logvar: F.gaussian_kl(mu, logvar, reduction="sum"),
        lambda mu, logvar: F.gaussian_kl(mu, logvar, mu / 4, torch.zeros_like(mu), reduction="sum"),
        lambda mu, logvar: F.reparametrize_kl(mu, logvar, seed=3, reduction="sum")[1],
    ],
    ids=["kl", "prior", "fused"],
)
def test_the_second_derivative_of_the_kl_at_any_variance(kl):
    """That of the variance itself, however small: e^logvar / 2."""
    mu, logvar = torch.full((1, len(LOGVARS)), 2.0), torch.tensor([LOGVARS])
    expected = (logvar.double().exp() / 2)[0]
    hessian = torch.func.hessian(lambda l: kl(mu, l))(logvar)[0, :, 0].diagonal()
    forward = torch.func.jacfwd(torch.func.jacfwd(lambda l: kl(mu, l)))(logvar)[0, :, 0].diagonal()
    logvar.requires_grad_()
    (grad,) = torch.autograd.grad(kl(mu, logvar), logvar, create_graph=True)
    (again,) = torch.autograd.grad(grad.sum(), logvar)
    for found in (hessian, forward, again[0]):
        torch.testing.assert_close(found.double(), expected, rtol=3e-7, atol=0)


@losses
def test_jvp_and_jacrev(loss, plain):
    mu, logvar = inputs(requires_grad=False)
    tangents = tuple(torch.randn_like(t) for t in (mu, logvar))
    assert_all_close(
        torch.func.jvp(loss, (mu, logvar), tangents), torch.func.jvp(plain, (mu, logvar), tangents)
    )
    assert_all_close([torch.func.jacrev(loss)(mu, logvar)], [torch.func.jacrev(plain)(mu, logvar)])


@losses
def test_forward_mode_levels(loss, plain):
    mu, logvar = inputs(requires_grad=False)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(mu, torch.ones_like(mu))
        got, expected = (
            torch.autograd.forward_ad.unpack_dual(function(dual, logvar)).tangent
            for function in (loss, plain)
        )
    assert_all_close([got], [expected])
    assert got != 0


def test_vmap_with_one_seed_gives_each_example_what_it_gets_alone():
    mu, logvar = inputs(requires_grad=False)

    def one(m, l):
        return F.reparametrize_kl(m, l, seed=3)

    z, kl = torch.func.vmap(one)(mu, logvar)
    for i in range(SHAPE[0]):
        alone = one(mu[i], logvar[i])
        assert_all_close([z[i], kl[i]], alone, 1e-12)


def test_vmap_over_seeds_and_gradients():
    mu, logvar = inputs(requires_grad=False)
    seeds = torch.arange(SHAPE[0])

    def loss(m, l, seed):
        return F.reparametrize(m, l, seed=seed).sin().sum()

    got = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))(mu, logvar, seeds)
    for i in range(SHAPE[0]):
        alone = torch.func.grad(loss, argnums=(0, 1))(mu[i], logvar[i], seeds[i])
        assert_all_close([got[0][i], got[1][i]], alone, 1e-12)


def test_vmap_asks_what_randomness_is_meant():
    mu, logvar = torch.zeros(4, 3), torch.zeros(4, 3)
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(F.reparametrize)(mu, logvar)
    same = torch.func.vmap(F.reparametrize, randomness="same")(mu, logvar)
    assert torch.equal(same[0], same[1])
    different = torch.func.vmap(F.reparametrize, randomness="different")(mu, logvar)
    assert not torch.equal(different[0], different[1])


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
    mu, logvar = inputs()
    expected = loss(mu, logvar), *torch.autograd.grad(loss(mu, logvar), (mu, logvar))
    value = compiled(mu, logvar)
    assert_all_close((value, *torch.autograd.grad(value, (mu, logvar))), expected, 1e-12)
    with torch.no_grad():
        assert_all_close([compiled(mu, logvar)], expected[:1], 1e-12)


def test_compile_keeps_dynamic_shapes_in_one_graph(compiler):
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(
        lambda m, l: F.reparametrize_kl(m, l, seed=3), fullgraph=True, dynamic=True, backend=count
    )
    for rows in (3, 5, 9):
        mu, logvar = torch.randn(rows, 7), torch.randn(rows, 7)
        for got, expected in zip(compiled(mu, logvar), F.reparametrize_kl(mu, logvar, seed=3), strict=True):
            assert torch.equal(got, expected)
    assert len(graphs) == 1


@losses
def test_compile_of_func_grad(loss, plain, compiler):
    """The combination that gives silent zeros through any autograd function."""
    mu, logvar = inputs(requires_grad=False)
    got = compiler(torch.func.grad(loss, argnums=(0, 1)))(mu, logvar)
    assert_all_close(got, torch.func.grad(plain, argnums=(0, 1))(mu, logvar))


@pytest.fixture
def inductor(tmp_path, monkeypatch):
    """torch.compile with its own code generator, where this machine has what that needs."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(3))
    except Exception as error:  # whatever is missing, the kernels are not to blame
        pytest.skip(f"torch.compile cannot build code here: {type(error).__name__}")
    yield torch.compile
    torch.compiler.reset()


def test_compiled_code_gives_the_same_bits(inductor):
    """Inductor's code calls the same kernels, so noise is the same compiled or not; so are default seeds."""

    def step(m, l):
        return F.reparametrize(m, l), F.reparametrize_kl(m, l)[0], F.reparametrize(m, l, seed=5)

    mu, logvar = inputs(torch.float32, requires_grad=False)
    torch.manual_seed(4)
    expected = step(mu, logvar)
    compiled = inductor(step, fullgraph=True)
    for _ in range(2):
        torch.manual_seed(4)
        got = compiled(mu, logvar)
        assert torch.equal(got[2], expected[2])
        drawn = list(got[:2])
        if torch.__version__ < "2.11" and torch.equal(got[0], expected[1]):
            drawn.reverse()  # its compiler may put one draw before another
        assert all(torch.equal(a, b) for a, b in zip(drawn, expected[:2], strict=True))
        assert not torch.equal(got[0], got[1])


def test_export():
    class Latent(torch.nn.Module):
        def forward(self, mu, logvar):
            z, kl = F.reparametrize_kl(mu, logvar, seed=3)
            return z, kl + F.gaussian_kl(mu, logvar, mu + 1, logvar), F.reparametrize(mu, logvar, seed=4)

    mu, logvar = inputs(torch.float32, requires_grad=False)
    batch = torch.export.Dim("batch")
    program = torch.export.export(Latent(), (mu, logvar), dynamic_shapes=({0: batch}, {0: batch}))
    larger = torch.randn(11, 5), torch.randn(11, 5)
    for got, expected in zip(program.module()(*larger), Latent()(*larger), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant):
    """The default seed is drawn again with torch's restored generator: recomputed noise is the same."""
    mu, logvar = inputs(torch.float32)

    def block(m, l):
        z, kl = F.reparametrize_kl(m, l)
        return z.sin().sum() + kl.sum()

    torch.manual_seed(8)
    expected = torch.autograd.grad(block(mu, logvar), (mu, logvar))
    torch.manual_seed(8)
    checkpoint(block, mu, logvar, use_reentrant=use_reentrant).backward()
    assert torch.equal(mu.grad, expected[0])
    assert torch.equal(logvar.grad, expected[1])


def test_autocast():
    """A linear layer gives bfloat16; the latent's arithmetic and its KL stay float32."""
    layer = torch.nn.Linear(5, 10)
    x = torch.randn(SHAPE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mu, logvar = layer(x).chunk(2, -1)
        assert mu.dtype == torch.bfloat16
        z, kl = F.reparametrize_kl(mu, logvar, seed=3)
        wide, wide_kl = F.reparametrize_kl(mu, logvar.float(), seed=3)
    assert z.dtype == torch.bfloat16
    assert kl.dtype == wide_kl.dtype == wide.dtype == torch.float32
    torch.testing.assert_close(kl, F.gaussian_kl(mu.float(), logvar.float()), rtol=1e-6, atol=0)
    kl.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_default_seeds_follow_manual_seed():
    mu, logvar = inputs(torch.float32, requires_grad=False)
    torch.manual_seed(2)
    first = F.reparametrize(mu, logvar), F.reparametrize(mu, logvar)
    torch.manual_seed(2)
    second = F.reparametrize(mu, logvar), F.reparametrize(mu, logvar)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], first[1])
    generator = torch.Generator().manual_seed(2)
    state = torch.get_rng_state()
    assert not torch.equal(
        F.reparametrize(mu, logvar, seed=generator), F.reparametrize(mu, logvar, seed=generator)
    )
    assert torch.equal(torch.get_rng_state(), state)


def operator_samples():
    """Every operator with inputs of each kind of arithmetic, transposed ones among them, for opcheck."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        opmath = OPMATH[dtype]
        for grad in (False, True):
            mu, logvar, prior_mu, prior_logvar = (
                torch.randn(5, 6).to(dtype).t().detach().requires_grad_(grad) for _ in range(4)
            )
            yield "reparametrize", (mu, logvar, *NOISE)
            for reduction in ("sample", "none", "dimension"):
                yield "gaussian_kl", (mu, logvar, 1, reduction)
            for reduction in ("sum", "dimension"):
                yield "gaussian_kl_prior", (mu, logvar, prior_mu, prior_logvar, 1, reduction)
            yield "reparametrize_kl", (mu, logvar, *NOISE, "sample")
        mu, logvar = torch.randn(5, 6).to(dtype).t(), torch.randn(6, 5).to(dtype)
        prior = prior_mu.detach(), prior_logvar.detach()
        z, kl, total = (
            torch.randn(6, 5).to(dtype),
            torch.randn(6, dtype=opmath),
            torch.randn((), dtype=opmath),
        )
        per_dimension = torch.randn(5, dtype=opmath)
        yield "reparametrize_backward", (z, logvar, *NOISE)
        yield "gaussian_kl_backward", (kl, mu, logvar, 1, "sample")
        yield "gaussian_kl_prior_backward", (total, mu, logvar, *prior, 1, "sum")
        yield "gaussian_kl_prior_backward", (total.expand(5), mu, logvar, *prior, 1, "dimension")
        yield "reparametrize_kl_backward", (z, kl, mu, logvar, *NOISE, "sample")
        yield "reparametrize_kl_backward", (z, per_dimension, mu, logvar, *NOISE, "dimension")
    yield "normal", (3, 5, NOISE[0], 0, 0, None)
    yield "uniform", (3, 5, NOISE[0], 0, 0, torch.arange(3))
    yield "permutation", (7, NOISE[0], 0)
    yield "fold_in", (NOISE[0], torch.tensor(4))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(("name", "arguments"), list(operator_samples()))
def test_opcheck(name, arguments):
    torch.library.opcheck(getattr(torch.ops.fastvae, name).default, arguments)


def test_opcheck_of_the_default_seed():
    torch.library.opcheck(torch.ops.fastvae.draw_seed.default, (), {"device": torch.device("cpu")})


def test_the_bare_operator_is_differentiable():
    """Not only the public function: a direct call must not lose a gradient silently."""
    mu, logvar = inputs()
    z = torch.ops.fastvae.reparametrize(mu, logvar, *NOISE)
    got = torch.autograd.grad(z.sin().sum(), (mu, logvar))
    expected = torch.autograd.grad(plain_reparametrize(mu, logvar).sin().sum(), (mu, logvar))
    assert_all_close(got, expected)


class Autoencoder(torch.nn.Module):
    """Parameters on both sides of the operation, so that a lost gradient shows."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(5, 6), torch.nn.Linear(3, 5)

    def forward(self, x):
        mu, logvar = self.encoder(x).chunk(2, -1)
        z, kl = F.reparametrize_kl(mu, logvar, seed=3)
        prior = F.gaussian_kl(mu, logvar, mu.sin(), logvar.cos(), reduction="sum")
        return (
            (self.decoder(z) - x).square().sum()
            + kl.sum()
            + prior
            + F.reparametrize(mu, logvar, seed=4).sum()
        )


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_model_can_be_trained(strict):
    model, x = Autoencoder(), torch.randn(4, 5)
    model(x).backward()
    exported = torch.export.export(model, (x,), strict=strict).module()
    exported(x).backward()
    for (name, expected), parameter in zip(model.named_parameters(), exported.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=name)


def counting(mu, logvar, seed):
    z = F.reparametrize(mu, logvar, seed=seed)
    seed.add_(1)
    return z


def test_a_seed_may_be_counted_on(compiler):
    """Backward draws the noise of forward, whatever became of the tensor that held the seed."""
    mu, logvar = inputs()
    for function in (counting, compiler(counting)):
        seed = torch.tensor(5)
        z = function(mu, logvar, seed)
        assert int(seed) == 6
        (grad,) = torch.autograd.grad(z.sum(), logvar)
        torch.testing.assert_close(grad, (z - mu).detach() / 2)


def test_a_seed_from_inference_mode_may_be_trained_with():
    with torch.inference_mode():
        seed = torch.tensor(5)
    mu, logvar = inputs()
    F.reparametrize(mu, logvar, seed=seed).sum().backward()
    assert logvar.grad.abs().sum() > 0


def test_compile_keeps_row_offsets_symbolic():
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(
        lambda m, l, row: F.reparametrize(m, l, seed=3, row_offset=row), fullgraph=True, backend=count
    )
    mu, logvar = inputs(torch.float32, requires_grad=False)
    for row in (64, 128, 448, 1024, 4096):
        assert torch.equal(compiled(mu, logvar, row), F.reparametrize(mu, logvar, seed=3, row_offset=row))
    assert len(graphs) <= 2
    torch.compiler.reset()


def test_noise_compiles(compiler):
    def step(x, seed):
        folded = noise.fold_in(seed, 7)
        rows = noise.normal(x.shape, folded, rows=torch.arange(x.shape[0]))
        z = F.reparametrize(x, x, seed=noise.fold_in(3, 8))
        return z + rows, noise.uniform(x.shape, folded), noise.permutation(5, folded)

    x, seed = torch.randn(SHAPE), torch.tensor(9)
    for got, expected in zip(compiler(step)(x, seed), step(x, seed), strict=True):
        assert torch.equal(got, expected)


def test_compiled_checkpointing_draws_the_same_noise_again(compiler):
    def block(m, l):
        z, kl = F.reparametrize_kl(m, l)
        return z.sin().sum() + kl.sum()

    mu, logvar = inputs(torch.float32)
    torch.manual_seed(8)
    expected = torch.autograd.grad(block(mu, logvar), (mu, logvar))
    compiled = compiler(lambda m, l: checkpoint(block, m, l, use_reentrant=False))
    torch.manual_seed(8)
    assert_all_close(torch.autograd.grad(compiled(mu, logvar), (mu, logvar)), expected, 1e-6)


def test_default_seeds_are_the_same_under_a_transform():
    mu, logvar = inputs(torch.float32, requires_grad=False)
    for seed in range(8):
        torch.manual_seed(seed)
        expected = F.reparametrize(mu, logvar).sum()
        torch.manual_seed(seed)
        _, value = torch.func.grad_and_value(lambda m: F.reparametrize(m, logvar).sum())(mu)
        torch.testing.assert_close(value, expected)


def test_the_bare_operator_keeps_tangents():
    mu, logvar = inputs(requires_grad=False)

    def bare(m):
        return torch.ops.fastvae.gaussian_kl(m, logvar, 1, "sum")

    value, tangent = torch.func.jvp(bare, (mu,), (mu,))
    torch.testing.assert_close(tangent, mu.square().sum())
    torch.testing.assert_close(value, bare(mu))


def test_sparse_gradients_are_taken():
    """``gather(sparse_grad=True)`` sends them."""
    index = torch.zeros(SHAPE[0], 1, dtype=torch.int64)

    def gradients(sparse_grad):
        mu, logvar = inputs()
        z, kl = F.reparametrize_kl(mu, logvar, seed=3, reduction="none")
        loss = sum(t.gather(1, index, sparse_grad=sparse_grad).sum() for t in (z, kl))
        return torch.autograd.grad(loss, (mu, logvar))

    assert_all_close(gradients(sparse_grad=True), gradients(sparse_grad=False))
