"""Tools that find what is wrong with a model or its training; each ends in findings that say what to do."""

from zoo.evaluate.debugging.activations import Activations, activations
from zoo.evaluate.debugging.differences import GradientCheck, check_gradients
from zoo.evaluate.debugging.flow import Flow, flow
from zoo.evaluate.debugging.overfit import Overfit, overfit

__all__ = ["Activations", "Flow", "GradientCheck", "Overfit", "activations", "check_gradients", "flow", "overfit"]
