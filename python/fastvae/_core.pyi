# Kernels on the memory of CPU tensors; see rust/fastvae-python. Private: addresses are trusted.

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Final, Self, final

from torch import Tensor, dtype

__all__ = [
    "Adam",
    "Dense",
    "__version__",
    "all_described",
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
    "plain_bernoulli_log_prob",
    "plain_bernoulli_log_prob_backward",
    "plain_gather_batch",
    "plain_gaussian_kl",
    "plain_gaussian_kl_backward",
    "plain_gaussian_log_prob",
    "plain_gaussian_log_prob_backward",
    "plain_latent",
    "plain_normal",
    "plain_reparametrize",
    "plain_reparametrize_backward",
    "plain_reparametrize_kl",
    "plain_reparametrize_kl_backward",
    "plain_reparametrize_log_weight",
    "plain_reparametrize_log_weight_backward",
    "plain_uniform",
    "prior_backward",
    "prior_forward",
    "simd_level",
    "uniform",
    "use_torch_tensors",
    "use_torch_threads",
]

__version__: Final[str]

@final
class Adam:
    def __new__(
        cls, betas: tuple[float, float], eps: float, tensors: Sequence[tuple[int, float, float]]
    ) -> Self: ...
    @staticmethod
    def takes(parameters: Sequence[Tensor]) -> bool: ...
    def step(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        outputs: Sequence[Tensor],
        finite: bool = False,
        kept: bool = False,
    ) -> bool | None: ...
    def averages(self, tensors: Sequence[Tensor]) -> list[list[float]]: ...
    def restore(self, tensors: Sequence[Tensor], powers: Sequence[Sequence[float]]) -> None: ...

@final
class Dense:
    def __new__(cls, parameters: Sequence[Tensor]) -> Self: ...
    def forward(self, x: Tensor) -> Tensor | None: ...
    def backward(
        self, grad: Tensor, x: Tensor, of_x: bool
    ) -> tuple[Tensor | None, list[Tensor], bool] | None: ...

def use_torch_threads(torch_parallel_for: int) -> None: ...
def use_torch_tensors(torch: ModuleType) -> bool: ...
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
def all_described(arguments: tuple[object, ...]) -> bool: ...

# These, and Adam.step, give None, with nothing done, for tensors that are not plain: see
# fastvae.ops.library.raw.
def plain_latent(
    mu: object, logvar: object, event_dims: object, draw: object, row_offset: object
) -> bool: ...
def plain_reparametrize(
    mu: object, logvar: object, seed: object, draw: int, row_offset: int, event_dims: int
) -> Tensor | None: ...
def plain_reparametrize_backward(
    grad_z: object, logvar: object, seed: object, draw: int, row_offset: int, event_dims: int
) -> Tensor | None: ...
def plain_gaussian_kl(
    mu: object,
    logvar: object,
    event_dims: int,
    reduction: str,
    free_bits: float = 0.0,
    group_size: int = 1,
) -> Tensor | None: ...
def plain_gaussian_kl_backward(
    grad_kl: object,
    mu: object,
    logvar: object,
    event_dims: int,
    reduction: str,
    free_bits: float = 0.0,
    group_size: int = 1,
) -> tuple[Tensor, Tensor] | None: ...
def plain_reparametrize_kl(
    mu: object,
    logvar: object,
    seed: object,
    draw: int,
    row_offset: int,
    event_dims: int,
    reduction: str,
    free_bits: float = 0.0,
    group_size: int = 1,
) -> tuple[Tensor, Tensor] | None: ...
def plain_reparametrize_kl_backward(
    grad_z: object,
    grad_kl: object,
    mu: object,
    logvar: object,
    seed: object,
    draw: int,
    row_offset: int,
    event_dims: int,
    reduction: str,
    free_bits: float = 0.0,
    group_size: int = 1,
) -> tuple[Tensor, Tensor] | None: ...
def plain_reparametrize_log_weight(
    mu: object,
    logvar: object,
    seed: object,
    draw: int,
    row_offset: int,
    event_dims: int,
    num_samples: int,
) -> tuple[Tensor, Tensor] | None: ...
def plain_reparametrize_log_weight_backward(
    grad_z: object | None,
    grad_log_weight: object | None,
    mu: object,
    logvar: object,
    seed: object,
    draw: int,
    row_offset: int,
    event_dims: int,
    num_samples: int,
) -> tuple[Tensor, Tensor] | None: ...
def plain_bernoulli_log_prob(
    logits: object, target: object, target_max: int, event_dims: int
) -> Tensor | None: ...
def plain_bernoulli_log_prob_backward(
    grad: object, logits: object, target: object, target_max: int, event_dims: int
) -> Tensor | None: ...
def plain_gaussian_log_prob(
    mean: object, logvar: object, target: object, target_max: int, event_dims: int
) -> Tensor | None: ...
def plain_gaussian_log_prob_backward(
    grad: object, mean: object, logvar: object, target: object, target_max: int, event_dims: int
) -> tuple[Tensor, Tensor] | None: ...
def plain_gather_batch(
    data: object,
    index: object,
    rows: object | None,
    seed: object | None,
    draw: int,
    data_max: float | None,
    binarize: str,
    dtype: dtype,
) -> Tensor | None: ...
def plain_normal(
    shape: object,
    seed: object,
    draw: object,
    row_offset: object,
    event_dims: object,
    out: object | None,
    default_seed: Callable[[], Tensor],
) -> Tensor | None: ...
def plain_uniform(
    shape: object,
    seed: object,
    draw: object,
    row_offset: object,
    event_dims: object,
    out: object | None,
    default_seed: Callable[[], Tensor],
) -> Tensor | None: ...
