"""The explorers: small interactive figures that work in a built page without a kernel.

A pair of files a figure: Python packs what it needs, JavaScript draws it and computes in the page whatever a
formula gives. Each function returns a widget (of anywidget) to end a cell with. Only the temperature explorer
talks back to a kernel, where there is one.

    widgets.weights_explorer([0.0, 0.125, 0.875])
"""

from .assets import Explorer, state_bytes
from .attack import attack_explorer
from .frames import mask_explorer, pruning_explorer, search_explorer
from .gamma import gamma_explorer
from .temperature import SCHEDULES, TemperatureExplorer, record, temperature_explorer
from .weights import weights_explorer

__all__ = [
    "SCHEDULES",
    "Explorer",
    "TemperatureExplorer",
    "attack_explorer",
    "gamma_explorer",
    "mask_explorer",
    "pruning_explorer",
    "record",
    "search_explorer",
    "state_bytes",
    "temperature_explorer",
    "weights_explorer",
]
