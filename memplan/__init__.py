"""memplan: how much GPU memory a training run needs, where it goes, and whether it fits.

    import memplan
    recipe = memplan.Recipe(model="mistralai/Mistral-7B-v0.1", method="qlora", micro_batch_size=4, sequence_length=2048)
    est = memplan.estimate(recipe)
    est.peak.allocated_bytes, est.verdict("rtx-4090").fits
"""

from memplan.engine import estimate, model_states
from memplan.errors import InputError, MemplanError, UnavailableError, UnsupportedError
from memplan.estimate import Component, Estimate, Fits, Phase
from memplan.recipe import Recipe

__version__ = "0.1.0"

__all__ = [
    "Component",
    "Estimate",
    "Fits",
    "InputError",
    "MemplanError",
    "Phase",
    "Recipe",
    "UnavailableError",
    "UnsupportedError",
    "estimate",
    "model_states",
]
