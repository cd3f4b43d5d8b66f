# Kernels on the memory of CPU tensors; see rust/fastvae-python. Private: addresses are trusted.

from typing import Final

__all__ = [
    "__version__",
    "bernoulli_backward",
    "bernoulli_forward",
    "fold_in",
    "free_bits_backward",
    "free_bits_forward",
    "gather_batch",
    "gaussian_backward",
    "gaussian_forward",
    "latent_backward",
    "latent_forward",
    "levels",
    "log_weight_backward",
    "log_weight_forward",
    "normal",
    "permutation",
    "prior_backward",
    "prior_forward",
    "simd_level",
    "uniform",
    "use_torch_threads",
]

__version__: Final[str]

def use_torch_threads(torch_parallel_for: int) -> None: ...
def levels() -> list[str]: ...
def simd_level() -> str: ...
def fold_in(seed: int, tag: int) -> int: ...
def normal(
    target: int,
    rows: int,
    columns: int,
    seed: int,
    draw: int,
    row_offset: int,
    row_ids: int,
    threads: int,
) -> None: ...
def uniform(
    target: int,
    rows: int,
    columns: int,
    seed: int,
    draw: int,
    row_offset: int,
    row_ids: int,
    threads: int,
) -> None: ...
def permutation(target: int, n: int, seed: int, draw: int) -> None: ...
def gather_batch(
    dtypes: tuple[int, int],
    data: tuple[int, int, int],
    columns: int,
    index: tuple[int, int],
    divisor: float | None,
    binarize: int,
    noise: tuple[int, int, int],
    target: int,
    threads: int,
) -> None: ...
def latent_forward(
    dtype: int,
    rows: int,
    columns: int,
    mu: tuple[int, int],
    logvar: tuple[int, int],
    z: int,
    noise: tuple[int, int, int] | None,
    kl_kind: int,
    kl: int,
    threads: int,
) -> None: ...
def latent_backward(
    dtype: int,
    rows: int,
    columns: int,
    mu: tuple[int, int],
    logvar: tuple[int, int],
    grad_z: tuple[int, int],
    noise: tuple[int, int, int] | None,
    kl_kind: int,
    grad_kl: tuple[int, int],
    grad_mu: int,
    grad_logvar: int,
    threads: int,
) -> None: ...
def free_bits_forward(
    dtype: int,
    rows: int,
    columns: int,
    mu: tuple[int, int],
    logvar: tuple[int, int],
    z: int,
    noise: tuple[int, int, int] | None,
    free_bits: tuple[float, int],
    kl_kind: int,
    kl: int,
    threads: int,
) -> None: ...
def free_bits_backward(
    dtype: int,
    rows: int,
    columns: int,
    mu: tuple[int, int],
    logvar: tuple[int, int],
    grad_z: tuple[int, int],
    noise: tuple[int, int, int] | None,
    free_bits: tuple[float, int],
    kl_kind: int,
    grad_kl: tuple[int, int],
    grad_mu: int,
    grad_logvar: int,
    threads: int,
) -> None: ...
def log_weight_forward(
    dtype: int,
    samples: int,
    rows: int,
    columns: int,
    mu: tuple[int, int],
    logvar: tuple[int, int],
    noise: tuple[int, int, int],
    z: int,
    log_weight: int,
    threads: int,
) -> None: ...
def log_weight_backward(
    dtype: int,
    samples: int,
    rows: int,
    columns: int,
    mu: tuple[int, int],
    logvar: tuple[int, int],
    noise: tuple[int, int, int],
    grad_z: tuple[int, int] | None,
    grad_log_weight: tuple[int, int] | None,
    grad_mu: int,
    grad_logvar: int,
    threads: int,
) -> None: ...
def prior_forward(
    dtype: int,
    rows: int,
    columns: int,
    inputs: tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]],
    kl_kind: int,
    kl: int,
    threads: int,
) -> None: ...
def prior_backward(
    dtype: int,
    rows: int,
    columns: int,
    inputs: tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]],
    kl_kind: int,
    grad_kl: tuple[int, int],
    grads: tuple[int, int, int, int],
    threads: int,
) -> None: ...
def bernoulli_forward(
    dtype: int,
    rows: int,
    columns: int,
    logits: tuple[int, int],
    target: tuple[int, int, int, int],
    log_prob: tuple[int, tuple[int, int]],
    threads: int,
) -> None: ...
def bernoulli_backward(
    dtype: int,
    rows: int,
    columns: int,
    logits: tuple[int, int],
    target: tuple[int, int, int, int],
    grad: tuple[int, tuple[int, int]],
    grad_logits: int,
    threads: int,
) -> None: ...
def gaussian_forward(
    dtype: int,
    rows: int,
    columns: int,
    mean: tuple[int, int],
    logvar: tuple[int, int],
    shared: bool,
    target: tuple[int, int, int, int],
    log_prob: tuple[int, tuple[int, int]],
    threads: int,
) -> None: ...
def gaussian_backward(
    dtype: int,
    rows: int,
    columns: int,
    mean: tuple[int, int],
    logvar: tuple[int, int],
    shared: bool,
    target: tuple[int, int, int, int],
    grad: tuple[int, tuple[int, int]],
    grads: tuple[int, int],
    threads: int,
) -> None: ...
