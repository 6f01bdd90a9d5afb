"""What can be asked of a network, whatever network it is, and the architectures that we train."""

from .ask import Cost, check_images, frozen, log_posterior, logits, predict
from .blackbox import Probabilities, Queries, QueryBudgetError, black_box, of_module
from .foreign import fill, load_weights, of_onnx
from .layers import LAST_CONV, LAST_HIDDEN, Site, activations, find, head, hidden, silence
from .networks import NETWORKS, Normalise, network

__all__ = [
    "LAST_CONV",
    "LAST_HIDDEN",
    "NETWORKS",
    "Cost",
    "Normalise",
    "Probabilities",
    "Queries",
    "QueryBudgetError",
    "Site",
    "activations",
    "black_box",
    "check_images",
    "fill",
    "find",
    "frozen",
    "head",
    "hidden",
    "load_weights",
    "log_posterior",
    "logits",
    "network",
    "of_module",
    "of_onnx",
    "predict",
    "silence",
]
