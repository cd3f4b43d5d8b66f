"""The door: from data to a trained model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from fastvae.data import Data, open_data
from fastvae.errors import NonFiniteError
from fastvae.models import PRESETS, Likelihood, ModelSpec, build_model
from fastvae.models.probe import check_networks
from fastvae.models.spec import named
from fastvae.training.aliases import reject_unknown
from fastvae.training.choices import check_cycles, choose_epochs, choose_likelihood, choose_validation
from fastvae.training.compilation import Compilation, check_compile, choose_compilation
from fastvae.training.config import Compile, DataInfo, RunConfig, Settings, as_count, as_hidden_dims
from fastvae.training.device import choose_device, in_float32, undisturbed
from fastvae.training.diagnosis import report_collapse, report_overfitting
from fastvae.training.held_out import evaluate_on
from fastvae.training.history import Record
from fastvae.training.loop import fit
from fastvae.training.progress import Progress
from fastvae.training.randomness import Stream, derive, repeatable
from fastvae.training.ranks import (
    Distributed,
    Ranks,
    check_distributed,
    check_modules,
    is_first,
    joined,
    look_through,
)
from fastvae.training.result import TrainedVAE
from fastvae.training.resumption import TrainingState, check_given_alike, check_samples_alike, fingerprint
from fastvae.training.run_folder import RunFolder
from fastvae.training.step import Steps, check_batches, check_shares
from fastvae.training.weights import check_storable

__all__ = ["train"]


def train(
    data: object,
    *,
    latent_dim: int = 32,
    model: str = "mlp",
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
    hidden_dims: int | Sequence[int] | None = None,
    likelihood: str | Likelihood = "auto",
    variance: str | float = "learned",
    variational: bool = True,
    beta: float = 1.0,
    warmup: float = 0.0,
    cycles: int = 1,
    capacity: float = 0.0,
    free_bits: float = 0.0,
    epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    binarize: Literal["none", "dynamic", "threshold"] = "none",
    validation: object = "auto",
    seed: int = 0,
    device: str | torch.device = "auto",
    distributed: Distributed = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    compile: Compile = "auto",  # noqa: A002  torch's word for it
    workers: int = 0,
    output_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **unknown: object,
) -> TrainedVAE:
    """Train a variational autoencoder.

    >>> import fastvae
    >>> vae = fastvae.train("digits", epochs=2, progress=False)
    >>> vae.sample(16).shape
    torch.Size([16, 1, 8, 8])

    The same seed gives the same run, bit for bit, on the same machine with the same number of threads,
    whatever ``workers`` is. The weights of ``"mlp"`` in float32 are the same on any number of threads, and on
    any x86-64 processor with AVX2, as long as nothing (a hook, a profiler) has the step go through autograd.
    On another device a seed gives the same batches, pixels and noise, and what differs is the rounding of the
    networks. torch's own generators are left as they were. All threads of a process
    share them: of several trainings at a time, each needs a process of its own to be repeatable, best with
    ``torch.set_num_threads(1)``, as torch's threads of several processes wait for each other on the same
    cores; where the parent has trained, not one made by fork, in which torch's threads do not exist.

    Parameters
    ----------
    data : array, tensor, Dataset, DataLoader, path, data frame or name
        Samples of one shape; see :func:`fastvae.data.open_data`. ``"digits"`` are scikit-learn's. Columns
        of a table should have about the same scale, ``(x - x.mean(0)) / x.std(0)``: one learned variance is
        that of them all, and what is far out in a narrow one goes unseen.
    latent_dim : int
        Number of codes.
    model : str
        Networks by name: ``"mlp"``, dense layers for any shape, or ``"conv"``, for images ``(H, W)`` or
        ``(C, H, W)``; a signal of C channels is one as ``(C, 1, L)``.
    encoder, decoder : nn.Module, optional
        Networks of your own in place of the model's; see :class:`fastvae.VAE` for their shapes. They are
        trained in place: an earlier result that has them changes too. What is frozen (no parameter requires a
        gradient) and in eval mode stays in it, with its running statistics; all else is put in train mode.
    hidden_dims : int or sequence of int, optional
        Hidden sizes of the model from data to code, mirrored in the decoder: widths for ``"mlp"``, by default
        (400,); channels for ``"conv"``.
    likelihood : {"auto", "bernoulli", "gaussian"} or Likelihood
        How the data comes from a code. ``"auto"`` is Bernoulli for pixels and other values between 0 and 1
        that look like them, else Gaussian. An object is trained in place, as an encoder of your own is.
    variance : {"learned", "predicted"} or float
        Of the Gaussian likelihood: one for all values (learned at ten times the rate of the weights), one
        predicted for each value, or a fixed number.
    variational : bool
        False trains a plain autoencoder: no noise, no KL.
    beta : float
        Weight of the KL in training; 1 is the evidence lower bound. Evaluation is always at 1.
    warmup : float
        Fraction of all steps in which the weight of the KL grows from 0 to ``beta``, or, where there is one,
        the ``capacity`` grows from 0.
    cycles : int
        How many warm-ups there are: training is cut into so many equal parts, each with its share of the
        warm-up, against codes that are lost in the first one; Fu et al., NAACL 2019, take 4 with
        ``warmup=0.5``.
    capacity : float
        Nats per sample that the KL is drawn to: training takes ``beta * |KL - C|``, with the mean KL of a
        batch, where ``C`` grows from 0 to ``capacity`` in the warm-up (without one it is ``capacity`` from
        the beginning) and the weight is ``beta`` throughout. On small pictures a ``beta`` of about 10 holds
        it there; the larger it is, the less the reconstruction has to say (Burgess et al., 2018, take 1000,
        in long trainings). 0 is the plain objective.
    free_bits : float
        Nats that each code of each sample may carry at no cost: training takes ``max(free_bits, KL)`` of
        each, against codes that stay unused. The history and evaluation report the KL itself.
    epochs : int, optional
        Passes over the data; by default as many as make 2000 steps, but at least 20 and at most 400: 154 for
        the digits, 20 for MNIST.
    batch_size : int
        Samples per step; the last batch of an epoch may be smaller. A DataLoader has its own.
    learning_rate, weight_decay : float
        Of Adam; weight decay is decoupled.
    binarize : {"none", "dynamic", "threshold"}
        Make pixels binary: drawn anew in each epoch with their value as probability, or above 0.5.
    validation : float, data or None
        Data to evaluate on after each epoch: a fraction to hold out, data of its own (its test set, where it
        has one), or None. By default the test set that comes with the data (MNIST's), else a tenth.
    seed : int
        Decides everything that is random.
    device : str or torch.device
        ``"auto"`` is the first of CUDA, MPS and the CPU that is there. Data in memory moves there whole if it
        takes no more than half of what is free, and ``progress`` says whether it did.
    distributed : {"auto"} or bool
        Whether processes train one model together. ``"auto"``: where ``torchrun`` has started several, or
        they are a group of ``torch.distributed`` already; True: it is an error if not. All make this call
        alike, with the whole data, and get the same model. Each takes its share of every batch of
        ``batch_size``, which is that of all together; the batches, the pixels and the noise are those of one
        process, and results differ by rounding. On CUDA each takes the device of its number. Only the first
        shows progress (its share's), warns, and writes ``output_dir``; to resume, all must see that folder.
        Batch normalisation looks at a share, and its running statistics are those of the first
        process; dropout depends on the number of processes, and hooks see the gradients of a share. A
        DataLoader, which picks its own rows, and ``compile="graph"`` are for one process. False: a training
        of its own in each.
    precision : {"float32", "bfloat16"}
        Of the networks in training: bfloat16 by ``torch.autocast``, with weights, KL, likelihood and the
        arithmetic of the latent in float32. Evaluation, and the trained model, are in float32.
    compile : {"auto", "graph", "inductor"} or False
        What is made of a training step; the results are the same to rounding. ``"graph"``: on CUDA, steps of
        full batches are captured as CUDA graphs, from gathering the batch to updating the weights, and
        replayed; of data that is resident on the device up to eight at once, and Ctrl-C comes between
        graphs. A graph repeats its kernels alone: what modules of your own do in Python (counting, a choice
        by a number, a hook) happens in the first steps and not again, and reading a tensor in it is an error.
        ``"inductor"``: forward and loss of full batches through ``torch.compile``, for any device. ``False``:
        steps as they are. ``"auto"`` is a graph on CUDA where networks and likelihood are fastvae's own and
        there are at least 50 steps, else False; a step that cannot be captured then runs as it is, with a
        warning.
    workers : int
        Processes that read a torch Dataset.
    output_dir : str or Path, optional
        Folder for the run: config, metrics, model, pictures, and the state that ``resume`` goes on from.
    resume : bool
        Go on with the run in ``output_dir`` after the last whole epoch that was written (at the end, at
        Ctrl-C, and every half minute or so); without a run there, begin one. So the same call, made again
        after whatever cut it, ends where it would have ended: bit for bit on the CPU, to rounding where steps
        are captured as CUDA graphs. The arguments and the data have to be those of the run, and what can be
        compared is: arguments, shapes and types of weights, and the values of data in memory; not those of a
        DataLoader or a large Dataset, nor layers of your own that have no weights. ``epochs`` may be more,
        without ``warmup``. Not restored is what your modules keep outside of ``state_dict()``, and the random
        state of workers that persist, or of a sampler; that of ``DataLoader(generator=)`` is.
    progress : bool
        Show a progress bar and what was chosen.

    Returns
    -------
    TrainedVAE
        In eval mode. Ctrl-C gives what there is by then, with ``interrupted`` set. While a run is written it
        has to wait; if it is the last time, pictures are left out.

    Raises
    ------
    TypeError, ValueError
        Before any work, for arguments or data that do not fit, modules with a state that no file in
        ``output_dir`` can hold, or a run to resume that was another one.
    FileFormatError
        Before any work, if the state of the run to resume is missing or damaged.
    PermissionError
        Before any work, if nothing can be written to ``output_dir``.
    NonFiniteError
        If a whole epoch gives no finite numbers; its ``result`` is what was trained in the epochs before.
    RuntimeError
        Where processes train together: if another one failed, or ended.

    Warns
    -----
    DrawnOnceWarning
        If a Dataset whose items are random is read once and kept.
    NonFiniteWarning
        If steps were skipped, because their loss or gradient was not finite.
    NotCapturedWarning
        If ``compile="auto"`` could not capture the step.
    OverfittingWarning
        If the bound of the held-out data ends well below its best: the text says at which epoch that was.
    PosteriorCollapseWarning
        If the KL ends near zero.
    """
    known = [name for name, p in inspect.signature(train).parameters.items() if p.kind is p.KEYWORD_ONLY]
    reject_unknown("train", unknown, known)
    settings = Settings(
        epochs=1 if epochs is None else epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        beta=beta,
        warmup=warmup,
        cycles=cycles,
        capacity=capacity,
        free_bits=free_bits,
        binarize=binarize,
        seed=seed,
        precision=precision,
        compile=compile,
    )
    latent_dim, hidden_dims = as_count("latent_dim", latent_dim), as_hidden_dims(hidden_dims)
    if not isinstance(model, str):
        raise TypeError(
            f"model must be a name, got {type(model).__name__}; pass networks of your own as encoder= and "
            "decoder="
        )
    named(PRESETS, "model", model)
    if not isinstance(variational, bool):
        raise TypeError(f"variational must be True or False, got {variational!r}")
    if not variational:
        of_kl = {
            "free_bits are": settings.free_bits,
            "capacity is": settings.capacity,
            "cycles are": settings.cycles > 1,
        }
        for name, asked in of_kl.items():
            if asked:
                raise ValueError(f"{name} of the KL, which variational=False has not: leave one of them out")
    if hidden_dims and encoder is not None and decoder is not None:
        raise ValueError(
            "hidden_dims has no meaning beside an encoder and a decoder of your own: leave it out"
        )
    if not isinstance(resume, bool):
        raise TypeError(
            f"resume must be True or False, got {resume!r}: name the folder of the run as output_dir= and "
            "write resume=True"
        )
    if resume and output_dir is None:
        raise ValueError("resume goes on with the run in output_dir: name its folder")
    check_distributed(distributed)
    chosen_device = choose_device(device)
    check_compile(compile, chosen_device)

    bar = Progress(show=progress and (distributed is False or is_first()))
    waiting = Progress(show=progress).say
    with joined(distributed, chosen_device, waiting) as ranks, ranks.warned_once(), ExitStack() as stack:
        with ranks.together():
            # Where there are several processes, those that write nothing may have no such folder.
            folder = RunFolder(output_dir) if output_dir is not None and (ranks.first or resume) else None
            start = folder.state() if folder and resume else None
            source = open_data(data, workers=workers)
            training, held_out = choose_validation(
                source, validation, seed=derive(seed, Stream.SPLIT), workers=workers
            )
            check_shares(training, settings.batch_size, ranks)
        look_through((source, held_out), ranks)
        with ranks.together():
            choice = choose_likelihood(source, held_out, likelihood, variance, binarize)
            settings = replace(settings, batch_size=training.batch_size(settings.batch_size))
            if epochs is None:
                settings = replace(settings, epochs=choose_epochs(training.batch_count(settings.batch_size)))
            total_steps = settings.epochs * training.batch_count(settings.batch_size)
            check_cycles(settings, total_steps)
            own = {"encoder": encoder, "decoder": decoder, "likelihood": choice.custom}
            spec = ModelSpec(
                input_shape=source.shape,
                latent_dim=latent_dim,
                preset=model,
                hidden_dims=hidden_dims,
                likelihood=choice.name,
                variance=choice.variance,
                variational=variational,
                custom=tuple(part for part, module in own.items() if module is not None),
            )
            config = RunConfig(
                model=spec,
                training=settings,
                data=DataInfo(
                    name=source.name,
                    samples=len(training),
                    validation_samples=0 if held_out is None else len(held_out),
                    feature_names=tuple(source.feature_names) if source.feature_names else None,
                    pixels=source.pixels,
                ),
            )
            compared = folder is not None or ranks.size > 1
            fingerprints = (fingerprint(training), fingerprint(held_out)) if compared else (None, None)
            if folder and start:
                start.check_continues(config, fingerprints, folder.path)
            compilation = choose_compilation(compile, chosen_device, spec, total_steps, ranks)
        check_given_alike(ranks, config, (training, held_out), fingerprints, start)
        if fingerprints[0] is None:
            check_samples_alike(ranks, training, "to train on")
        if held_out is not None and held_out.can_split and fingerprints[1] is None:
            check_samples_alike(ranks, held_out, "to validate on")
        bar.say(_announcement(config, choice.reason))
        bar.say(_means(training, settings, chosen_device, compilation, ranks))
        if folder and not resume and (replaced := folder.holds()):
            bar.say(replaced)
        if resume:
            bar.say(_what_is_resumed(start, settings.epochs))
        final: dict[str, float] = {}  # of the held-out data
        with (
            repeatable(derive(seed, Stream.WEIGHTS), chosen_device),
            in_float32(),
            undisturbed(),
            torch.enable_grad(),
        ):
            generators = (training.generator, None if held_out is None else held_out.generator)
            with ranks.together():
                with torch.device("cpu"):  # its weights are those of no other default device
                    vae = build_model(spec, encoder=encoder, decoder=decoder, likelihood=choice.custom)
                if choice.built_in is not None:
                    vae.likelihood = choice.built_in
                vae.to(chosen_device)
                check_networks(
                    vae, training.take(torch.arange(min(2, len(training)), device="cpu")).to(chosen_device)
                )
                check_batches(vae, training, settings.batch_size, ranks)
                check_modules(vae, ranks)
                if folder:
                    check_storable(vae)
                    if start:
                        start.check_fits(vae, generators, folder.path)
                        start.give_to(vae, generators)
                        start.model.clear()  # a large model has no room for two
            ranks.give_model(vae)
            written = folder if ranks.first else None
            with ranks.together():
                if written:
                    stack.callback(written.close)
                    written.start()

            so_far = list(start.history) if start else []

            def on_epoch(history: list[Record], steps: Steps) -> None:
                so_far[:] = history
                if written:
                    written.checkpoint(
                        TrainedVAE(vae, config, history), partial(state_after, list(history), steps)
                    )

            def state_after(history: list[Record], steps: Steps) -> TrainingState:
                return TrainingState.of(
                    vae,
                    config,
                    history,
                    steps=steps.taken,
                    averages=steps.averages(),
                    fingerprints=fingerprints,
                    generators=generators,
                )

            def validate(held_out: Data) -> dict[str, float]:
                final.update(evaluate_on(vae, held_out, settings, chosen_device, seed=seed, ranks=ranks))
                return final

            try:
                history, interrupted = fit(
                    vae,
                    training,
                    settings,
                    device=chosen_device,
                    validate=None if held_out is None else partial(validate, held_out),
                    progress=bar,
                    on_epoch=on_epoch,
                    compilation=compilation,
                    start=start,
                    ranks=ranks,
                )
            except Exception as error:
                reached = written.rescue() if written else None
                if isinstance(error, NonFiniteError):
                    if so_far:
                        error.result = TrainedVAE(vae, replace(config, interrupted=True), so_far)
                elif written and reached is not None:
                    error.add_note(
                        f"resume=True goes on with the run in {written.path} after epoch {reached}"
                    )
                raise
        result = TrainedVAE(vae, replace(config, interrupted=interrupted), history)
        if not interrupted:
            _report_end(result, final, bar)
        if written:
            written.finish(result, training if held_out is None else held_out, bar)
        # Last: a warning may be made an error, and the run is written by then.
        if not interrupted:
            report_overfitting(history)
        if history and not interrupted and result.model.variational:
            report_collapse(final.get("kl", history[-1]["kl"]), settings)
        return result


def _announcement(config: RunConfig, reason: str) -> str:
    """Say what is about to be trained, and what was chosen for it."""
    spec, data, settings = config.model, config.data, config.training
    held_out = f", {data.validation_samples} held out" if data.validation_samples else ""
    networks = " and ".join(f"own {part}" for part in spec.custom if part != "likelihood") or spec.preset
    return (
        f"{data.name}: {data.samples} samples of shape {spec.input_shape}{held_out}\n"
        f"{networks}, {spec.latent_dim} codes, {spec.likelihood} likelihood ({reason}), "
        f"{settings.epochs} epochs"
    )


def _means(
    data: Data, settings: Settings, device: torch.device, compilation: Compilation, ranks: Ranks
) -> str:
    """Say where the data is and what steps are made of."""
    several = ""
    if ranks.size > 1:
        several = f"{ranks.size} processes share each batch of {settings.batch_size}, the first "
    placement = f", {data.placement(device)}" if device.type != "cpu" else ""
    return f"{several}on {device} in {settings.precision}{placement}, {compilation}"


def _what_is_resumed(start: TrainingState | None, epochs: int) -> str:
    if start is None:
        return "no run to resume yet: a new one"
    done = len(start.history)
    return f"resumed after epoch {done}" + (", the last: nothing is left to train" if done == epochs else "")


def _report_end(result: TrainedVAE, final: dict[str, float], bar: Progress) -> None:
    """Say how good the model is on held-out data, if there is any."""
    if final:
        bar.say(
            f"held-out ELBO {final['elbo']:.2f} nats per sample (recon {final['recon']:.2f}, "
            f"KL {final['kl']:.2f}), "
            f"{final['active_units']} of {result.latent_dim} codes in use"
        )
