"""Execute notebooks in place and clean them: `python -m report.run [NOTEBOOK ...]` (all, in reading order).

Figures are drawn twice: the PNG is stored in the notebook, the same figure as vectors goes to build/vector/ (not kept
in git) for report.pdf, under a name made from the PNG's content, so that the two cannot be mixed up. A cell with a
`fig-cap` that has drawn nothing ends the run.
"""
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import click
from execnb.nbio import dict2nb, nb2str
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbdev.clean import clean_nb
import nbformat

from report import cells

MAX_SVG = 1_500_000  # characters
KERNEL_ARGUMENTS = ["--log-level=ERROR", "--InlineBackend.figure_formats={'png','svg'}"]
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


def vector_file(png, root=cells.ROOT):
    """Where the vector drawing that belongs to a stored PNG (base64) lies."""
    return Path(root, "build", "vector", hashlib.sha256("".join(png.split()).encode()).hexdigest()[:20] + ".svg")


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


def execute(path, flags=(), root=cells.ROOT):
    """Execute the notebook at `path` in place; True if its file changed. A failure leaves the file as it was."""
    path = Path(path)
    nb = cells.read(path)
    client = Client(nb, flags, timeout=None, record_timing=False, kernel_name="python3",
                    extra_arguments=KERNEL_ARGUMENTS, resources={"metadata": {"path": str(path.parent)}})
    try:
        client.execute()
    except (CellControlSignal, DeadKernelError) as err:
        cell = nb.cells[client.at]
        raise click.ClickException(f"{path}: cell {client.at} (id {cell.get('id')}) failed\n\n"
                                   f"{cell.source}\n\n{_ANSI.sub('', getattr(err, 'traceback', str(err)))}") from None
    _require_figures(nb, path, flags)
    _take_vectors(nb, root)
    _drop_volatile(nb)
    nb.metadata.kernelspec = cells.KERNEL
    text = cleaned(nb, root)
    if text == path.read_text(encoding="utf-8"):
        return False
    part = path.with_name("." + path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="\n")
    part.replace(path)
    return True


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--skip", multiple=True, metavar="FLAG", help="Pass over cells marked `#| FLAG`, e.g. --skip slow.")
@click.option("--root", default=cells.ROOT, type=click.Path(file_okay=False, path_type=Path), help="Project folder.")
def main(paths, skip, root):
    """Execute PATHS (all notebooks if none is given) in place, in order, and clean them."""
    with tempfile.TemporaryDirectory() as folder:
        env = cells.environment(folder) | {"SOURCE_DATE_EPOCH": "0"}  # SVG files without a date
        os.environ.clear()
        os.environ.update(env)
        for path in paths or cells.notebooks(root):
            start = time.perf_counter()
            changed = execute(path, skip, root)
            seconds, done = time.perf_counter() - start, "written" if changed else "as stored"
            click.echo(f"{cells.name_of(path, root):30} {seconds:6.1f} s  {done}")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
