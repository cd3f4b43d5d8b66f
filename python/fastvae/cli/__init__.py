"""The ``fastvae`` command: train, sample, reconstruct, evaluate, info.

Nothing here imports torch before the arguments are read, so that ``--help`` and mistakes are answered at
once.
"""

from fastvae.cli.main import main

__all__ = ["main"]
