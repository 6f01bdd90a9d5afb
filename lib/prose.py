"""Numbers on their way into a chapter's text."""

import numpy as np


def glue(**values: object) -> None:
    """Make values available to the roles {glue:text}`name` of the chapter. Shows nothing in the cell.

    A NumPy scalar arrives as a plain number: the page would print its type.
    """
    from myst_nb import glue as glue_one

    for name, value in values.items():
        glue_one(name, value.item() if isinstance(value, np.generic) else value, display=False)
