"""A process that ends with its parent, however that ends: it watches its stdin, which the parent holds open.

Run as a program, this module is Jupyter Book under that watch.
"""

from __future__ import annotations

import os
import signal
import threading


def end_with_parent(*, grace: float = 0) -> None:
    """From now on, end when stdin does. Nothing else may read it.

    grace: seconds between a Ctrl-C, for children to be told, and the end in any case; 0: the end at once.
    """
    threading.Thread(target=_watch, args=[grace], daemon=True).start()


def _watch(grace: float) -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock would be held at an orderly end
        pass
    if grace:
        threading.Timer(grace, os._exit, [1]).start()
        os.kill(os.getpid(), signal.SIGINT)
    else:
        os._exit(1)


if __name__ == "__main__":
    from jupyter_book.cli.main import main

    end_with_parent()
    main()
