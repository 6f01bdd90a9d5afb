"""The explorers: small interactive figures that work in a built page without a kernel (anywidget).

Python packs what a figure needs; js/ draws it and computes in the page whatever a formula gives. Each
function returns a widget to end a cell with. Only the temperature explorer talks back to a kernel, where
there is one.
"""

from .assets import Explorer, state_bytes
from .formulas import format_p, gamma_explorer, weights_explorer
from .stacks import attack_explorer, mask_explorer, pruning_explorer, search_explorer
from .temperature import SCHEDULES, TemperatureExplorer, record, temperature_explorer

__all__ = [
    "SCHEDULES",
    "Explorer",
    "TemperatureExplorer",
    "attack_explorer",
    "format_p",
    "gamma_explorer",
    "mask_explorer",
    "pruning_explorer",
    "record",
    "search_explorer",
    "state_bytes",
    "temperature_explorer",
    "weights_explorer",
]
