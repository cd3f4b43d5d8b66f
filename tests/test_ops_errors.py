"""Bad input raises before any work and says how to go on; no input ends the process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastvae import _core, noise
from fastvae import functional as F

GOOD = torch.zeros(3, 4)
FUNCTIONS = [F.reparametrize, F.gaussian_kl, F.reparametrize_kl]
every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)


@every_function
@pytest.mark.parametrize(
    ("mu", "logvar", "error", "message"),
    [
        (
            GOOD.long(),
            GOOD.long(),
            TypeError,
            r"mu must be float32.*int64 tensor of shape \(3, 4\).*float\(\)",
        ),
        (GOOD, GOOD.to(torch.complex64), TypeError, "logvar must be float32.*complex64"),
        (GOOD.bool(), GOOD, TypeError, "mu must be float32.*bool"),
        (GOOD, GOOD.double(), TypeError, "one dtype, but mu is torch.float32, logvar is torch.float64"),
        (GOOD, GOOD.to("meta"), ValueError, "mu is on cpu and logvar on meta"),
        (GOOD, torch.zeros(3, 5), ValueError, r"same shape, got \(3, 4\) and \(3, 5\)"),
        (GOOD, torch.zeros(4), ValueError, r"same shape, got \(3, 4\) and \(4,\)"),
        (GOOD.to_sparse(), GOOD, TypeError, "mu must be a dense tensor.*to_dense"),
        (GOOD, GOOD.to_mkldnn(), TypeError, "logvar must be a dense tensor"),
        (np.zeros((3, 4)), GOOD, TypeError, "mu must be a torch tensor.*numpy.ndarray.*as_tensor"),
        (GOOD, [[0.0] * 4] * 3, TypeError, "logvar must be a torch tensor.*got list"),
        (None, GOOD, TypeError, "mu must be a torch tensor.*NoneType"),
        (GOOD, 0.0, TypeError, "logvar must be a torch tensor.*float"),
    ],
)
def test_bad_tensors(function, mu, logvar, error, message):
    with pytest.raises(error, match=f"^{function.__name__}: .*{message}"):
        function(mu, logvar)


@pytest.mark.filterwarnings("ignore")  # some versions of torch deprecate quantized tensors
def test_quantized_tensors():
    quantized = torch.quantize_per_tensor(GOOD, 0.1, 0, torch.qint8)
    with pytest.raises(TypeError, match="mu must be a dense tensor"):
        F.reparametrize(quantized, GOOD)


@every_function
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"event_dims": 3}, ValueError, "event_dims must lie between 0 and the number of axes, 2"),
        ({"event_dims": -1}, ValueError, "event_dims"),
        ({"event_dims": 1.0}, TypeError, "event_dims must be an integer, got float"),
        ({"event_dims": True}, TypeError, "event_dims must be an integer, got bool"),
    ],
)
def test_bad_event_dims(function, options, error, message):
    with pytest.raises(error, match=message):
        function(GOOD, GOOD, **options)


@pytest.mark.parametrize("function", [F.reparametrize, F.reparametrize_kl], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"seed": "a"},
            TypeError,
            "seed must be an int, an int64 tensor, a torch.Generator or None, got str",
        ),
        ({"seed": 0.5}, TypeError, "seed must be an int"),
        ({"seed": 2**64}, ValueError, "64 bits"),
        ({"seed": torch.tensor(3, dtype=torch.int32)}, TypeError, "int64 tensor of one element.*int32"),
        ({"seed": torch.arange(2)}, TypeError, "int64 tensor of one element"),
        ({"draw": -1}, ValueError, "draw must lie in"),
        ({"draw": 2**32}, ValueError, "draw must lie in"),
        ({"draw": 1.5}, TypeError, "draw must be an integer"),
        ({"row_offset": -1}, ValueError, "row_offset must lie in"),
        ({"row_offset": 2**63}, ValueError, "row_offset must lie in"),
    ],
)
def test_bad_noise(function, options, error, message):
    with pytest.raises(error, match=message):
        function(GOOD, GOOD, **options)


@pytest.mark.parametrize("function", [F.gaussian_kl, F.reparametrize_kl], ids=lambda f: f.__name__)
@pytest.mark.parametrize("reduction", ["avg", None, 3, ["sum"]])
def test_bad_reductions(function, reduction):
    with pytest.raises(
        ValueError, match="reduction must be one of 'sample', 'none', 'sum', 'mean', 'batchmean'"
    ):
        function(GOOD, GOOD, reduction=reduction)


@pytest.mark.parametrize(
    ("prior", "error", "message"),
    [
        ({"prior_mu": torch.zeros(5)}, ValueError, r"prior_mu of shape \(5,\) does not broadcast to mu"),
        ({"prior_logvar": torch.zeros(2, 3, 4)}, ValueError, "prior_logvar of shape"),
        ({"prior_mu": GOOD.double()}, TypeError, "one dtype"),
        ({"prior_mu": 0.0}, TypeError, "prior_mu must be a torch tensor"),
        ({"prior_logvar": GOOD.int()}, TypeError, "prior_logvar must be float32"),
        ({"prior_logvar": GOOD.to("meta")}, ValueError, "on meta"),
    ],
)
def test_bad_priors(prior, error, message):
    with pytest.raises(error, match=message):
        F.gaussian_kl(GOOD, GOOD, **prior)


SEED = torch.tensor(1)
WIDE = torch.zeros(3000, 4)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("reparametrize", (WIDE, GOOD, SEED, 0, 0, 1)),
        ("reparametrize", (WIDE.double(), WIDE.half(), SEED, 0, 0, 1)),
        ("reparametrize", (GOOD.int(), GOOD.int(), SEED, 0, 0, 1)),
        ("reparametrize", (GOOD, GOOD, SEED, 0, 0, 3)),
        ("reparametrize", (GOOD, GOOD, SEED, 0, 0, -1)),
        ("reparametrize", (GOOD, GOOD, SEED.int(), 0, 0, 1)),
        ("reparametrize", (GOOD, GOOD, torch.arange(2), 0, 0, 1)),
        ("reparametrize", (GOOD, GOOD, SEED, 0, 2**63 - 1, 1)),
        ("reparametrize_backward", (GOOD, WIDE, SEED, 0, 0, 1)),
        ("gaussian_kl", (WIDE, torch.zeros(1, 4), 1, "sample")),
        ("gaussian_kl", (WIDE, WIDE.bfloat16(), 1, "sample")),
        ("gaussian_kl_backward", (torch.zeros(2), WIDE, WIDE, 1, "sample")),
        ("gaussian_kl_backward", (torch.zeros(3000).half(), WIDE, WIDE, 1, "sample")),
        ("gaussian_kl_prior", (WIDE, WIDE, GOOD, WIDE, 1, "sum")),
        ("gaussian_kl_prior_backward", (torch.zeros(()), WIDE, WIDE, WIDE, GOOD, 1, "sum")),
        ("reparametrize_kl", (WIDE, GOOD, SEED, 0, 0, 1, "sample")),
        ("reparametrize_kl_backward", (WIDE, torch.zeros(3), WIDE, WIDE, SEED, 0, 0, 1, "sample")),
        ("normal", (3000, 4, SEED, 0, 0, torch.arange(2))),
        ("uniform", (3, 4, SEED, 0, 0, torch.arange(3, dtype=torch.int32))),
        ("normal", (3, 4, SEED, 0, 0, torch.tensor([0, -1, 2]))),
        ("normal", (3, 4, SEED, 0, 2**63 - 2, None)),
    ],
)
def test_bare_operators_check_what_the_kernels_read(name, arguments):
    """Whoever calls one directly gets past the public checks: still no input ends the process."""
    with pytest.raises((ValueError, RuntimeError)):
        getattr(torch.ops.fastvae, name)(*arguments)


@pytest.mark.parametrize("change", [torch.Tensor.double, lambda t: t.expand(3000, 4).clone()])
def test_a_hook_that_changes_saved_tensors_is_refused(change):
    mu, logvar = torch.zeros(1, 4, requires_grad=True), torch.zeros(1, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: change(t) if t.dim() else t):
        z = F.reparametrize(mu, logvar, seed=1)
    with pytest.raises(ValueError, match=r"must be a torch.float(32|64) tensor of shape"):
        torch.autograd.grad(z.sum(), logvar)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@every_function
def test_nested_tensors(function):
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    with pytest.raises(TypeError, match=r"must be a dense tensor.*nested.*to_padded_tensor"):
        function(nested, nested)


def test_numpy_integers_are_integers():
    expected = F.reparametrize_kl(GOOD, GOOD, seed=3, draw=2, row_offset=5, event_dims=1)
    got = F.reparametrize_kl(
        GOOD, GOOD, seed=np.int64(3), draw=np.uint8(2), row_offset=np.int32(5), event_dims=np.int64(1)
    )
    assert torch.equal(got[0], expected[0])


def test_fold_in_on_two_devices():
    with pytest.raises(ValueError, match="seed is on cpu and tag on meta"):
        noise.fold_in(torch.tensor(1), torch.tensor(3, device="meta"))


def test_a_seed_without_a_value():
    with pytest.raises(ValueError, match="seed is on meta, where tensors have no values"):
        F.reparametrize(GOOD, GOOD, seed=torch.tensor(3, device="meta"))


def test_importing_under_another_default_device():
    code = "import torch, fastvae\nwith torch.device('meta'): fastvae.functional, fastvae.train"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_tensor_without_its_memory():
    mu = torch.zeros(100, 4)
    mu.untyped_storage().resize_(16)
    with pytest.raises(RuntimeError, match="needs 1600 bytes of storage and has 16"):
        F.reparametrize(mu, torch.zeros(100, 4), seed=1)
    mu.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="has 0"):
        F.gaussian_kl(torch.zeros(100, 4), mu)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mu": (0, 4)}, "mu: 12 elements at a null address"),
        ({"mu": (GOOD.data_ptr() + 1, 4)}, "mu: address .* is not aligned"),
        ({"rows": 2**62}, "too many"),
        ({"rows": 2**40}, "too many"),
        ({"mu": (GOOD.data_ptr(), 2**62)}, "do not fit in memory"),
        ({"z": GOOD.data_ptr()}, "shares memory"),
        ({"dtype": 9}, "unknown dtype code 9"),
        ({"kl_kind": 7}, "unknown kind of KL 7"),
        ({"columns": 2**34 + 1, "rows": 1}, "2\\^34 columns"),
    ],
)
def test_the_binding_checks_before_it_reads(change, message):
    """The private functions take addresses; what can be checked of them is."""
    z, kl = torch.empty(3, 4), torch.empty(3)
    arguments = {
        "dtype": 0,
        "rows": 3,
        "columns": 4,
        "mu": (GOOD.data_ptr(), 4),
        "logvar": (GOOD.data_ptr(), 4),
        "z": z.data_ptr(),
        "noise": (1, 0, 0),
        "kl_kind": 2,
        "kl": kl.data_ptr(),
        "threads": 1,
    }
    _core.latent_forward(**arguments)
    with pytest.raises(ValueError, match=message):
        _core.latent_forward(**{**arguments, **change})


def test_a_tensor_that_is_expanded_beyond_reason():
    """The plan of the work grows with it, and running out of memory there would end the process."""
    mu = torch.zeros(1, 1).expand(2**40 + 1, 1)
    with pytest.raises(ValueError, match=r"1099511627777 rows of 1 columns are too many.*2\^40"):
        F.gaussian_kl(mu, mu, reduction="sum")


def test_only_noise_limits_the_columns():
    """Its counters end at 2^34; a KL alone has none."""
    no_rows = {"dtype": 0, "rows": 0, "columns": 2**35, "mu": (0, 0), "logvar": (0, 0), "threads": 1}
    _core.latent_forward(**no_rows, z=0, noise=None, kl_kind=1, kl=0)
    with pytest.raises(ValueError, match=r"at most 2\^34 columns"):
        _core.latent_forward(**no_rows, z=0, noise=(1, 0, 0), kl_kind=1, kl=0)


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.lists(st.floats(), max_size=3),
    st.sampled_from(
        [
            GOOD,
            GOOD.long(),
            GOOD.double(),
            GOOD.to("meta"),
            GOOD.to_sparse(),
            torch.zeros(0),
            torch.zeros(()),
            torch.tensor(5),
            torch.nn.Parameter(GOOD.clone()),
            np.zeros((3, 4), np.float32),
            torch.Generator(),
            torch.float32,
            torch.nn.Linear(1, 1),
            object,
        ]
    ),
)


@every_function
@given(
    anything,
    anything,
    st.dictionaries(st.sampled_from(["seed", "event_dims", "draw", "reduction", "prior_mu"]), anything),
)
def test_anything_at_all_gives_a_result_or_an_exception(function, mu, logvar, options):
    with contextlib.suppress(TypeError, ValueError):
        function(mu, logvar, **options)


def test_meta_tensors_have_shapes_and_no_values():
    z, kl = F.reparametrize_kl(GOOD.to("meta"), GOOD.to("meta"), seed=1)
    assert (z.device.type, z.shape, kl.shape) == ("meta", (3, 4), (3,))


def test_an_unknown_instruction_set_is_refused_at_import():
    environment = {**os.environ, "FASTVAE_SIMD": "mmx"}
    run = subprocess.run(
        [sys.executable, "-c", "import fastvae._core"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert 'FASTVAE_SIMD is "mmx"; this processor has: portable' in run.stderr


@pytest.mark.parametrize("level", _core.levels())
def test_every_instruction_set_gives_the_same_bits(level):
    """Another process, with a level forced, through the public functions."""
    code = """
import hashlib
import torch
from fastvae import _core, noise
from fastvae import functional as F

torch.manual_seed(0)
mu, logvar = (torch.randn(50, 33).requires_grad_() for _ in range(2))
z, kl = F.reparametrize_kl(mu, logvar, seed=4)
(z.sin().sum() + kl.sum()).backward()
results = [z.detach(), kl.detach(), mu.grad, logvar.grad]
print(_core.simd_level(), hashlib.sha256(b"".join(t.numpy().tobytes() for t in results)).hexdigest())
"""
    digests = []
    for forced in (level, _core.levels()[0]):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "FASTVAE_SIMD": forced},
            capture_output=True,
            text=True,
            check=True,
        )
        name, digest = run.stdout.split()
        assert name == forced
        digests.append(digest)
    assert digests[0] == digests[1]
