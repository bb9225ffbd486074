"""Execute notebooks and clean them: `python -m report.run [NOTEBOOK ...]` (all, if none is given).

They run in place, or with --build in build/, where rooms, and those that have not changed since their last run there,
are passed over (report/plan.py). Notebooks that do not wait for one another run side by side, as many as there are
cores; those that train what others wait for go before.

Figures are drawn twice: the PNG is stored in the notebook, the same figure as vectors goes to build/vector/ (not kept
in git) for report.pdf, under a name made from the PNG's content, so that the two cannot be mixed up. A cell with a
`fig-cap` that has drawn nothing ends the run.
"""
import asyncio
import hashlib
import json
import os
import re
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import click
from execnb.nbio import dict2nb, nb2str
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbclient.util import run_sync
from nbdev.clean import clean_nb
import nbformat

from report import cells, plan

MAX_SVG = 1_500_000  # characters
MAX_CORES = 8  # more would take more memory than many a machine has
KERNEL_ARGUMENTS = ["--log-level=CRITICAL", "--InlineBackend.figure_formats={'png','svg'}"]
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Client(NotebookClient):
    """Execute a notebook, leaving out the cells that `cells.skipped` names; those keep their stored outputs."""

    def __init__(self, nb, flags=(), **kwargs):
        super().__init__(nb, **kwargs)
        self.flags = flags
        self.at = 0  # index of the cell in hand, for the error message

    async def async_execute_cell(self, cell, cell_index, **kwargs):
        self.at = cell_index
        if cell.cell_type == "code" and cells.skipped(cell, self.flags):
            return cell
        return await super().async_execute_cell(cell, cell_index, **kwargs)

    async def _async_cleanup_kernel(self):
        if self.km is not None:  # a cancelled run asks for it a second time on leaving
            await super()._async_cleanup_kernel()

    _cleanup_kernel = run_sync(_async_cleanup_kernel)


def vector_file(png, root=cells.ROOT):
    """Where the vector drawing that belongs to a stored PNG (base64) lies; `root` may be build/ itself."""
    folder = Path(root, "vector") if Path(root).name == "build" else Path(root, "build", "vector")
    return folder / (hashlib.sha256("".join(png.split()).encode()).hexdigest()[:20] + ".svg")


def _take_vectors(nb, root):
    """Move SVG pictures out of the notebook; those above MAX_SVG are dropped, the report then uses the PNG."""
    for out in (out for cell in nb.cells for out in cell.get("outputs", [])):
        data = out.get("data", {})
        if "image/png" in data and "image/svg+xml" in data:
            svg = data.pop("image/svg+xml")
            path = vector_file(data["image/png"], root)
            path.parent.mkdir(parents=True, exist_ok=True)
            if len(svg) <= MAX_SVG:
                path.write_text(svg, encoding="utf-8", newline="\n")


def _require_figures(nb, path, flags):
    """A figure that is announced by its caption must be there after the run."""
    for cell in nb.cells:
        if cell.cell_type == "code" and "fig-cap" in cells.directives(cell) and not cells.skipped(cell, flags):
            if not any("image/png" in out.get("data", {}) for out in cell.outputs):
                raise click.ClickException(f"{path}: cell {cell.id} has a fig-cap, but has drawn no figure")


def _drop_volatile(nb):
    """Drop what differs from run to run: warnings, progress bars, widgets, and how a stream was cut in pieces."""
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        kept = []
        for out in cell.outputs:
            if out.get("name") == "stderr" or "application/vnd.jupyter.widget-view+json" in out.get("data", {}):
                continue
            if kept and out.output_type == "stream" and kept[-1].output_type == "stream":
                kept[-1].text += out.text
            else:
                kept.append(out)
        cell.outputs = kept


def cleaned(nb, root=cells.ROOT):
    """The text of notebook `nb` as nbdev_clean would write it."""
    cfg = cells.settings(root)
    out = dict2nb(json.loads(nbformat.writes(nb)))
    clean_nb(out, allowed_metadata_keys=cfg["allowed_metadata_keys"].split(),
             allowed_cell_metadata_keys=cfg["allowed_cell_metadata_keys"].split())
    return nb2str(out)


def store(nb, path, root):
    """Write a notebook, cleaned, to `path`, complete or not at all; True if the file changed."""
    text = cleaned(nb, root)
    if path.exists() and text == path.read_text(encoding="utf-8"):
        return False
    part = path.with_name("." + path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="\n")
    part.replace(path)
    return True


def stand_back():
    """In a kernel before it starts: others first. Linux may weigh a session as a whole, and each kernel has its own."""
    os.nice(15)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("15")


async def execute(path, flags=(), root=cells.ROOT, threads=1, ahead=True):
    """Execute the notebook at `path` in place; True if its file changed. A failure leaves the file as it was.

    If it is not to go `ahead` of others, its kernel leaves the processor to theirs where these can use it."""
    nb = cells.read(path)
    client = Client(nb, flags, timeout=None, record_timing=False, kernel_name="python3",
                    extra_arguments=KERNEL_ARGUMENTS, resources={"metadata": {"path": str(path.parent)}})
    try:
        await client.async_execute(env={"OMP_NUM_THREADS": str(threads), **os.environ},
                                   preexec_fn=None if ahead or os.name == "nt" else stand_back)
    except (CellControlSignal, DeadKernelError) as err:
        cell = nb.cells[client.at]
        raise click.ClickException(f"{path}: cell {client.at} (id {cell.get('id')}) failed\n\n"
                                   f"{cell.source}\n\n{_ANSI.sub('', getattr(err, 'traceback', str(err)))}") from None
    _require_figures(nb, path, flags)
    _take_vectors(nb, root)
    _drop_volatile(nb)
    nb.metadata.kernelspec = cells.KERNEL
    return store(nb, path, root)


async def execute_in_build(path, flags, root, threads, ahead):
    """Execute in build/ the notebook at `path`, unless this has been done; how that went, in words."""
    build = Path(root, "build")
    copy, key = build / path.relative_to(root), plan.key(path, root)
    if plan.is_done(path, key, root):
        store(plan.with_outputs(cells.read(path), cells.read(copy)), copy, build)
        return "unchanged"
    plan.remember(path, None, root)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(path.read_bytes())
    await execute(copy, flags, build, threads, ahead)
    plan.remember(path, None if flags else key, root)  # with cells left out it is not done
    return "run"


async def side_by_side(waits, job, cores, trains=()):
    """Call `job(path, threads)` for each notebook of `waits`, {path: those it waits for}, as many at once as may be.

    Those in `trains` begin and have half the cores each, any other has one; there is room for one more of them, which
    may be waiting until another has trained its network. The first failure ends the run."""
    threads, trains = max(1, cores // 2), set(trains) & set(waits)
    done = {path: asyncio.Event() for path in waits}
    slots = asyncio.Semaphore(cores - threads + 1 + (len(trains) > 1))

    async def one(path):
        for other in waits[path]:
            await done[other].wait()
        async with slots:
            await job(path, threads if path in trains else 1)
        done[path].set()

    def no_handler(*signal):
        raise RuntimeError("Ctrl-C cancels all tasks")  # where nbclient's own would stop one kernel

    loop = asyncio.get_running_loop()
    loop.add_signal_handler = loop.remove_signal_handler = no_handler
    tasks = [asyncio.ensure_future(one(path)) for path in sorted(waits, key=lambda path: path not in trains)]
    try:
        await asyncio.gather(*tasks)
    except BaseException as err:
        loop.set_exception_handler(lambda *_: None)  # nbclient's own tasks wonder where their kernels are
        for task in tasks if isinstance(err, Exception) else ():  # after Ctrl-C they are cancelled already
            task.cancel()
        raise
    finally:
        await asyncio.gather(*tasks, return_exceptions=True)  # until their kernels have ended


def available_cores():
    """How many processors this process may use, at most MAX_CORES."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(there, MAX_CORES)


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--build", is_flag=True, help="Run in build/, and only what has changed since its last run there.")
@click.option("--skip", multiple=True, metavar="FLAG", help="Pass over cells marked `#| FLAG`, e.g. --skip slow.")
@click.option("--root", default=cells.ROOT, type=click.Path(file_okay=False, path_type=Path), help="Project folder.")
def main(paths, build, skip, root):
    """Execute PATHS and clean them; if none is given, all notebooks, or with --build those of the report."""
    root = root.resolve()
    chosen = [path.resolve() for path in paths] or (plan.printed if build else cells.notebooks)(root)
    chosen = plan.with_waited_for(chosen, root) if build else chosen
    waits = {path: [other for other in plan.waits(root).get(path, ()) if other in chosen] for path in chosen}

    async def job(path, threads):
        start = time.perf_counter()
        if build:
            how = await execute_in_build(path, skip, root, threads, path in trains)
        else:
            how = "written" if await execute(path, skip, root, threads, path in trains) else "as stored"
        click.echo(f"{cells.name_of(path, root):30} {time.perf_counter() - start:6.1f} s  {how}")

    with tempfile.TemporaryDirectory() as folder:
        env = cells.environment(folder) | {"SOURCE_DATE_EPOCH": "0"}  # SVG files without a date
        env["VAE_GMM_KEPT"] = env.get("VAE_GMM_KEPT") or str(root / "build" / "kept")
        os.environ.clear()
        os.environ.update(env)
        if build:
            plan.prepare(root)
        trains = plan.makers(root)[0]["kept("]
        asyncio.run(side_by_side(waits, job, available_cores(), trains))


if __name__ == "__main__":
    main()
