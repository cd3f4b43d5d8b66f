"""A whole training step beside the forward and backward of its dense layers alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

import harness
import passes
from comparison import Comparison, Target, UnavailableError
from fastvae import _core, noise
from fastvae.data import open_data
from fastvae.models import VAE, ModelSpec, build_model
from fastvae.training.config import Settings
from fastvae.training.dense import DensePass
from fastvae.training.history import EpochTotals
from fastvae.training.loop import _batches
from fastvae.training.memory import keep_freed_memory
from fastvae.training.progress import Progress
from fastvae.training.step import Step, Steps
from kernels.batches import images
from plain import PIXELS, PlainVAE

T = TypeVar("T")

HIDDEN, CODES, BATCH = 400, 20, 128
ROWS = BATCH * (60_000 // BATCH)
"""As many as make whole batches: every call is then the same work."""

RATE = 1e-3
SEED = 1
"""With it no ReLU of the dense layers alone is given something so near 0 that rounding decides about it."""

CPU = torch.device("cpu")
DENSE, OWN, TUNED = "dense layers alone", "dense layers alone, by fastvae", "tuned torch"


def dense_layers(name: str) -> harness.Candidate:
    """Both networks, forward and backward, from a fixed input and a fixed gradient of what they give."""
    torch.manual_seed(SEED)
    model = PlainVAE([HIDDEN], CODES)
    parameters = list(model.parameters())
    x, z, incoming = dense_inputs()
    # In a step the code needs its gradient too: it is what the encoder is trained by.
    z.requires_grad_()

    def work(_: object) -> None:
        forget([*parameters, z])
        torch.autograd.backward([model.encoder(x), model.decoder(z)], incoming)

    work(None)
    check_dense(name, model, [parameter.grad for parameter in parameters])
    return harness.Candidate(name, work)


def own_dense_layers(name: str) -> harness.Candidate:
    """The same by the kernels that a training takes."""
    if not DensePass.has_kernels():
        raise UnavailableError("a training on this processor leaves them to torch")
    torch.manual_seed(SEED)
    model = PlainVAE([HIDDEN], CODES)
    x, z, incoming = dense_inputs()
    encoder, decoder = (_core.Dense(list(network.parameters())) for network in (model.encoder, model.decoder))
    networks = [(encoder, x, incoming[0]), (decoder, z, incoming[1])]

    def work(_: object) -> list[Tensor]:
        gradients = list[Tensor]()
        for network, given, grad in networks:
            network.forward(given)
            backward = network.backward(grad, given, given is z)
            assert backward is not None
            gradients += backward[1]
        return gradients

    check_dense(name, model, work(None))
    return harness.Candidate(name, work)


def dense_inputs() -> tuple[Tensor, Tensor, list[Tensor]]:
    """A batch, codes, and the gradients of what the encoder and the decoder give for them."""
    x = images(BATCH).float() / 255
    return x, torch.randn(BATCH, CODES), [torch.randn(BATCH, 2 * CODES), torch.randn(BATCH, PIXELS)]


def tuned(
    name: str, compiler: Callable[[passes.Function], passes.Function] | None = None
) -> harness.Candidate:
    """What a person who knows torch writes: pixels kept as bytes, one loss, the fused Adam."""
    torch.manual_seed(0)
    model = PlainVAE([HIDDEN], CODES)
    check_model(name, model, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    data = images(ROWS)
    total = torch.zeros((), dtype=torch.float64)
    loss_of = model.loss if compiler is None else compiler(model.loss)
    rows = endless(lambda _: iter(torch.randperm(ROWS).split(BATCH)))

    def work(_: object) -> None:
        x = torch.bernoulli(data[next(rows)].float().div_(255))
        loss = loss_of(x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total.add_(loss.detach())

    work(None)  # a compiler that fails does so here, where it is caught
    return harness.Candidate(name, work)


def fastvae_step(name: str) -> harness.Candidate:
    """What ``fastvae.train`` does for one batch: see ``fastvae.training.loop.fit``."""
    torch.manual_seed(0)
    settings = Settings(
        epochs=1,
        batch_size=BATCH,
        learning_rate=RATE,
        weight_decay=0.0,
        beta=1.0,
        warmup=0.0,
        binarize="dynamic",
        seed=0,
    )
    model = build_model(ModelSpec((PIXELS,), CODES, hidden_dims=(HIDDEN,)))
    check_fastvae(name, model)
    data, totals, progress = open_data(images(ROWS)), EpochTotals(CPU), Progress(show=False)
    keep_freed_memory()  # for all candidates: they share a process
    step = Step(model, settings, device=CPU)
    steps = Steps(step, totals, settings, total_steps=ROWS // BATCH, own_networks=True)
    steps.__enter__()  # as long as the candidate lives
    sizes = endless(lambda epoch: steps.epoch(epoch, _batches(data, settings, epoch, CPU)))

    def work(_: object) -> None:
        progress.advance(next(sizes), "1/1", totals.read)

    return harness.Candidate(name, work)


def endless(epoch: Callable[[int], Iterator[T]]) -> Iterator[T]:
    """What one epoch after the other gives."""
    return itertools.chain.from_iterable(epoch(number) for number in itertools.count(1))


def forget(tensors: list[Tensor] | list[nn.Parameter]) -> None:
    for tensor in tensors:
        tensor.grad = None


# ------------------------------------------------------------------------------------------------ correctness


def check_dense(name: str, model: PlainVAE, gradients: Sequence[Tensor | None]) -> None:
    """Refuse layers whose gradients are not those of the same layers in float64."""
    torch.manual_seed(SEED)
    exact = PlainVAE([HIDDEN], CODES)
    x, z, incoming = dense_inputs()
    exact.load_state_dict(model.state_dict())
    exact = exact.double()
    torch.autograd.backward(
        [exact.encoder(x.double()), exact.decoder(z.double())], [part.double() for part in incoming]
    )
    compare_gradients(name, gradients, list(exact.parameters()))


def check_fastvae(name: str, model: VAE) -> None:
    """Check fastvae's terms with the noise that its seed stands for."""
    seed = 5

    def terms(x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        recon, kl = model(x, seed)
        return recon, kl

    check_model(name, model, terms, eps=noise.normal((BATCH, CODES), seed))


def check_model(
    name: str,
    model: nn.Module,
    terms: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    eps: Tensor | None = None,
) -> None:
    """Refuse a model whose terms or gradients are not those of the formulas in float64."""
    x = (images(BATCH) > 127).float()
    eps = torch.randn(BATCH, CODES) if eps is None else eps
    exact = PlainVAE([HIDDEN], CODES)
    with torch.no_grad():
        for own, given in zip(exact.parameters(), model.parameters(), strict=True):
            own.copy_(given)
    exact = exact.double()
    results = []
    for function, inputs in ((terms, (x, eps)), (exact, (x.double(), eps.double()))):
        recon, kl = function(*inputs)
        (kl - recon).mean().backward()
        results.append((recon, kl))
    for actual, wanted in zip(*results, strict=True):
        torch.testing.assert_close(
            actual.double(), wanted, rtol=1e-5, atol=1e-4, msg=lambda text: f"{name}: {text}"
        )
    compare_gradients(name, [own.grad for own in model.parameters()], list(exact.parameters()))
    forget(list(model.parameters()))


def compare_gradients(name: str, own: Sequence[Tensor | None], exact: list[nn.Parameter]) -> None:
    for actual, wanted in zip(own, exact, strict=True):
        assert actual is not None
        assert wanted.grad is not None
        torch.testing.assert_close(
            actual.double(),
            wanted.grad,
            rtol=1e-4,
            atol=1e-5 * float(wanted.grad.abs().max()),
            msg=lambda text: f"{name}: {text}",
        )


COMPARISONS = [
    Comparison(
        name="step",
        title=f"a training step of {PIXELS}-{HIDDEN}-{CODES}, batch {BATCH}, dynamic binarisation",
        kind="step",
        candidates={
            DENSE: dense_layers,
            OWN: own_dense_layers,
            TUNED: tuned,
            f"{TUNED}, torch.compile": lambda name: tuned(name, passes.compiled),
            "fastvae": fastvae_step,
        },
        targets=lambda _: (Target(1.15, DENSE, cost=True), Target(1.15, OWN, cost=True)),
    )
]
