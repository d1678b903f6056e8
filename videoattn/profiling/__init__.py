"""Cost of a model: multiply-accumulates, parameters, activations, memory and time."""

from videoattn.profiling.measure import Measurement, measure
from videoattn.profiling.profile import Profile, profile

__all__ = ["Measurement", "Profile", "measure", "profile"]
