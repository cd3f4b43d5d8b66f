"""Words other packages use, so that a mistaken one gets an error with the right one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = ["ALIASES", "reject_unknown"]

ALIASES = {
    "latent_dim": (
        "n_latent",
        "z_dim",
        "latent_size",
        "latent_dims",
        "latents",
        "n_codes",
        "codes",
        "embedding_dim",
    ),
    "learning_rate": ("lr", "step_size", "learning_rate_init"),
    "epochs": ("num_epochs", "max_epochs", "n_epochs", "n_epoch", "nb_epochs", "num_train_epochs"),
    "batch_size": ("bs", "batch", "batchsize", "per_device_train_batch_size", "minibatch_size"),
    "beta": ("kl_weight", "kld_weight", "kl_coef", "kl_beta", "beta_kl", "gamma"),
    "warmup": (
        "kl_warmup",
        "warm_up",
        "n_epochs_kl_warmup",
        "warmup_epochs",
        "annealing",
        "kl_annealing",
        "ratio",
    ),
    "cycles": ("n_cycle", "n_cycles", "num_cycles", "cyclical", "kl_cycles"),
    "capacity": ("C", "max_capacity", "c_max", "c_fin", "kl_capacity", "target_kl", "kl_target"),
    "hidden_dims": (
        "hidden_sizes",
        "hidden_layers",
        "hidden_dim",
        "n_hidden",
        "hidden_layer_sizes",
        "channels",
    ),
    "seed": ("random_state", "random_seed", "manual_seed", "rng", "generator"),
    "output_dir": ("save_dir", "out_dir", "outdir", "log_dir", "logdir", "run_dir", "output", "out"),
    "resume": (
        "resume_from_checkpoint",
        "resume_from",
        "resume_path",
        "ckpt_path",
        "checkpoint",
        "continue_training",
        "warm_start",
    ),
    "workers": ("num_workers", "n_jobs", "n_workers"),
    "weight_decay": ("l2", "wd", "alpha"),
    "validation": (
        "val",
        "val_data",
        "valid",
        "eval_data",
        "validation_data",
        "validation_split",
        "train_size",
    ),
    "likelihood": ("gene_likelihood", "reconstruction_loss", "loss", "decoder_dist", "distribution"),
    "variance": ("sigma", "scale", "decoder_variance", "noise_variance"),
    "model": ("architecture", "arch", "model_name", "network", "preset"),
    "device": ("accelerator", "gpu", "cuda", "use_cuda", "use_gpu"),
    "precision": ("amp", "autocast", "mixed_precision", "use_amp", "bf16", "dtype"),
    "compile": ("torch_compile", "compile_model", "use_compile", "cuda_graph", "cuda_graphs", "jit"),
    "progress": ("verbose", "progress_bar", "enable_progress_bar", "show_progress"),
    "binarize": ("binarise", "binary", "dynamic_binarization"),
}
"""The right word, and what people write in its place."""

_RIGHT_WORD = {alias: word for word, aliases in ALIASES.items() for alias in aliases}

NOT_NEEDED = {
    "input_dim": "the shape is taken from the data",
    "input_shape": "the shape is taken from the data",
    "shuffle": "every epoch is shuffled",
    "early_stopping": "a warning says at which epoch the held-out bound was best, and epochs= ends there",
    "patience": "a warning says at which epoch the held-out bound was best, and epochs= ends there",
    "callbacks": "result.history has every epoch; fastvae.functional is for a loop of your own",
    "scheduler": "Adam runs at one learning_rate; fastvae.functional is for a loop of your own",
    "optimizer": "it is Adam; fastvae.functional is for a loop of your own",
}


def reject_unknown(function: str, unknown: Iterable[str], known: Sequence[str]) -> None:
    """Raise a ``TypeError`` that names the right word for each unknown argument."""
    problems = []
    for name in unknown:
        if name in NOT_NEEDED:
            problems.append(f"{name!r} is not needed: {NOT_NEEDED[name]}")
            continue
        close = difflib.get_close_matches(name, [*known, *_RIGHT_WORD], n=1, cutoff=0.7)
        word = _RIGHT_WORD.get(name) or (close and _RIGHT_WORD.get(close[0], close[0]))
        hint = f"write {word!r}" if word else f"its arguments are {', '.join(known)}"
        problems.append(f"there is no {name!r}; {hint}")
    if problems:
        raise TypeError(f"{function}(): {'; '.join(problems)}")
