"""`nbdev_test --path NOTEBOOK` for several notebooks: `python tests/notebooks.py OUT NOTEBOOK ...`.

To load torch and the other libraries takes longer than many a notebook. Here it is done once: each notebook runs in a
process of its own, forked from one that has loaded LIBRARIES and nothing of the project, so that none sees what another
has done. OUT gets {notebook: [exit status, seconds]}.
"""
import importlib
import json
import os
import sys
import time
from pathlib import Path

from nbdev.test import nbdev_test

LIBRARIES = ("torch._dynamo", "sklearn.mixture", "scipy.stats", "pandas", "matplotlib.pyplot", "seaborn",
             "IPython.display", "safetensors")


def in_a_process(notebook):
    """Fork, and run the command on one notebook; its exit status."""
    sys.stdout.flush(), sys.stderr.flush()
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        nbdev_test(path=notebook)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def main(out, *notebooks):
    found = {}
    for name in LIBRARIES:
        importlib.import_module(name)
    for notebook in notebooks:
        start = time.perf_counter()
        status = in_a_process(notebook)
        found[notebook] = status, time.perf_counter() - start
        Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
