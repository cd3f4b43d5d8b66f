"""From data to a trained model, and from disk back to one."""

from fastvae.training.persistence import load
from fastvae.training.result import TrainedVAE
from fastvae.training.train import train

__all__ = ["TrainedVAE", "load", "train"]
