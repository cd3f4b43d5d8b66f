"""fastvae: variational autoencoders with fused, reproducible kernels.

>>> import fastvae
>>> vae = fastvae.train("digits", epochs=1, progress=False)
>>> vae.sample(4).shape
torch.Size([4, 1, 8, 8])

:func:`train` and :func:`load` are the door for a person with data; :mod:`fastvae.functional` and
:mod:`fastvae.noise` the one for a model of your own.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastvae import data, evaluation, functional, models, noise, objectives, plots
    from fastvae._core import __version__
    from fastvae.models import VAE, Bernoulli, Gaussian
    from fastvae.training import TrainedVAE, load
    from fastvae.training.train import train

_HOME = {
    "Bernoulli": "fastvae.models",
    "Gaussian": "fastvae.models",
    "TrainedVAE": "fastvae.training",
    "VAE": "fastvae.models",
    "__version__": "fastvae._core",
    "load": "fastvae.training",
    "train": "fastvae.training",
}
_MODULES = {"data", "evaluation", "functional", "models", "noise", "objectives", "plots"}

__all__ = [
    "VAE",
    "Bernoulli",
    "Gaussian",
    "TrainedVAE",
    "__version__",
    "data",
    "evaluation",
    "functional",
    "load",
    "models",
    "noise",
    "objectives",
    "plots",
    "train",
]


# Names are looked up when they are first used: torch takes seconds to import, and `fastvae --help` none.
def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = import_module(f"fastvae.{name}")
    else:
        raise AttributeError(f"module 'fastvae' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
