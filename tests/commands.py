"""The commands as processes: what the tests of the command line share."""
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 600  # no command here takes this long, even on a busy machine


def environment(**changes):
    """The environment for a command: one thread each, no settings of the user's."""
    personal = ("VAE_GMM_DATA", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "PYTHONIOENCODING", "WORLD_SIZE")
    env = {k: v for k, v in os.environ.items() if k not in personal}
    path = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    return {**env, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **changes}


def start(folder, *words, **options):
    """`python -m vae_gmm` in `folder`, as a running process with text pipes."""
    return subprocess.Popen([sys.executable, "-m", "vae_gmm", *map(os.fspath, words)], cwd=folder, text=True,
                            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
                               "env": environment(), **options})


def run(folder, *words, **options):
    """The same, to its end: (exit code, standard output, standard error)."""
    process = start(folder, *words, **options)
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return process.returncode, out, err


def ctrl_c_works():
    """For preexec_fn: SIGINT has its usual meaning, also where the tests run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
