"""How good a trained model is, always at ``beta = 1``."""

from fastvae.evaluation.active_units import ACTIVE_VARIANCE, CodeStatistics, active_units
from fastvae.evaluation.evaluate import evaluate
from fastvae.evaluation.log_likelihood import log_likelihood

__all__ = ["ACTIVE_VARIANCE", "CodeStatistics", "active_units", "evaluate", "log_likelihood"]
