"""The commands as a user calls them, in this process or in one of their own: what the tests of them share."""
import contextlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from unittest import mock

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


@cache
def forks():
    """Processes forked from one that has loaded, once, what takes seconds to load, and nothing of the project."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "sklearn.base"])
    return context


def execute(code, words, folder, env, *pipes):
    """In a forked process: what `python -c code words` does in `folder`."""
    import torch
    for number, pipe in enumerate(pipes, 1):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False, buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # its usual meaning, also where tests run behind others
    os.environ.clear()
    os.environ.update(env)
    sys.argv, sys.path = ["-c", *words], env["PYTHONPATH"].split(os.pathsep) + sys.path
    os.chdir(folder)
    torch.set_num_threads(1)
    exec(code, {"__name__": "__main__"})


class Forked:
    """What tests use of subprocess.Popen, for `python -c code words`; it starts at once, without loading torch."""

    def __init__(self, folder, code, *words, env=None):
        pipes = [forks().Pipe(duplex=False) for _ in range(2)]
        args = code, list(map(os.fspath, words)), folder, env or environment(), *(end for _, end in pipes)
        self.process = forks().Process(target=execute, args=args, daemon=True)  # ends with the tests at the latest
        self.process.start()
        self.stdout, self.stderr = (open(os.dup(end.fileno())) for end, _ in pipes)
        for pipe in pipes:
            for end in pipe: end.close()

    def wait(self, timeout=SECONDS):
        self.process.join(timeout)
        return self.returncode

    def communicate(self, timeout=SECONDS):  # what it writes to one of them fits into a pipe
        said = self.stdout.read(), self.stderr.read()
        self.wait(timeout)
        return said

    def result(self):
        out, err = self.communicate()
        return self.returncode, out, err

    def send_signal(self, number): os.kill(self.process.pid, number)
    def kill(self): self.process.kill()
    def poll(self): return self.process.exitcode

    returncode = property(poll)


@contextlib.contextmanager
def one_thread():
    """torch on one thread, as in a process of its own: another number of threads would be other bits."""
    import torch
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def call(folder, *words):
    """What `run` does, in this process, which has loaded already what takes seconds to load."""
    from vae_gmm.cli import vae_gmm
    here, code, handler = os.getcwd(), 0, signal.getsignal(signal.SIGTERM)
    words = [os.fsdecode(word) for word in words]
    with (one_thread(), warnings.catch_warnings(), mock.patch.dict(os.environ, environment(), clear=True),
          contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err):
        warnings.simplefilter("default")
        os.chdir(folder)
        try:
            vae_gmm.as_program(args=words, prog_name="python -m vae_gmm")
        except SystemExit as end:
            code = end.code
        finally:
            os.chdir(here)
            signal.signal(signal.SIGTERM, handler)
    return code, out.getvalue(), err.getvalue()
