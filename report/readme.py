"""Write README.md from nbs/index.ipynb: `python -m report.readme`.

Left out are cells marked `#| hide` or tagged `no-readme`. Relative links, written for a reader of nbs/index.ipynb,
are turned into links from the project folder, so that they lead to the same file from both places.

The small pictures that the index shows, figures/thumbnails/NOTEBOOK-LABEL.png, are made here too, from the stored
output of the cell with that label: its figure, or the text that it printed. Each holds the fingerprint of its source,
by which report/check.py sees that it is up to date.
"""
import base64
import hashlib
import io
import posixpath
import re
from pathlib import Path

import click
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from report import cells

HEAD = "<!-- Generated from nbs/index.ipynb by `make readme`; edit there. -->\n\n"
_FENCED = re.compile(r"(^ {0,3}(```+|~~~+).*?^ {0,3}\2[^\S\n]*$|`[^`\n]+`)", re.M | re.S)
_LINK = re.compile(r"""(\]\(|\b(?:src|href)=["'])(?!\w+:|[#/])([^)"'\s#]+)""")


def relink(text, folder="nbs"):
    """Turn links relative to `folder` in Markdown `text` into links relative to the project folder."""
    def move(m):
        return m[1] + posixpath.normpath(posixpath.join(folder, m[2]))

    parts = _FENCED.split(text)  # text, code, its fence, text, ...
    return "".join(_LINK.sub(move, part) if i % 3 == 0 else part for i, part in enumerate(parts) if i % 3 < 2)


def links(text):
    """The relative link targets in Markdown `text`, code aside."""
    return [m[2] for i, part in enumerate(_FENCED.split(text)) if i % 3 == 0 for m in _LINK.finditer(part)]


def _outputs(cell):
    """The cell's outputs as Markdown: a Markdown output as it is, any other text fenced."""
    for out in cell.outputs:
        data = out.get("data", {})
        if "text/markdown" in data:
            yield data["text/markdown"].strip()
        elif text := (out.get("text", "") if out.get("name") == "stdout" else data.get("text/plain", "")):
            if not text.startswith("<Figure"):
                yield f"```text\n{text.rstrip()}\n```"


def render(nb):
    """The text of README.md for notebook `nb`."""
    parts = []
    for cell in nb.cells:
        if "no-readme" in cells.tags(cell) or cell.cell_type == "raw":
            continue
        if cell.cell_type == "markdown":
            parts.append(relink(cell.source.strip()))
        elif not cells.hidden(cell):
            if cells.echoed(cell) and cells.code(cell):
                parts.append(f"```python\n{cells.code(cell)}\n```")
            parts += map(relink, _outputs(cell))
    return HEAD + "\n\n".join(parts) + "\n"


def thumbnails(root=cells.ROOT):
    """The small pictures that nbs/index.ipynb shows: {path: stored output that it is made from, or None}."""
    by_name, found = {path.stem: path for path in reversed(cells.notebooks(root))}, {}
    shown = "\n".join(cell.source for cell in cells.read(by_name["index"]).cells if cell.cell_type == "markdown")
    for notebook, label in re.findall(r"figures/thumbnails/(\w+)-([\w-]+)\.png", shown):
        within = cells.read(by_name[notebook]).cells if notebook in by_name else []
        cell = next((cell for cell in within if cell.cell_type == "code"
                     and cells.directives(cell).get("label") == label), None)
        outputs = cell.outputs if cell else []
        found[Path(root, "figures", "thumbnails", f"{notebook}-{label}.png")] = next(
            (source for out in outputs if (source := out.get("data", {}).get("image/png") or out.get("text"))), None)
    return found


def fingerprint(source):
    """What a thumbnail remembers of the output that it is made from."""
    return hashlib.sha256(source.encode()).hexdigest()


def remembered(path):
    """The fingerprint in the thumbnail at `path`, or None."""
    try:
        with Image.open(path) as picture:
            return picture.info.get("source")
    except OSError:
        return None


def draw_text(text, lines=12, columns=80):
    """The first lines of a text as a picture."""
    rows = [line[:columns] for line in text.splitlines()[:lines]]
    picture = Image.new("L", (columns * 8, len(rows) * 18 + 16), 255)
    ImageDraw.Draw(picture).multiline_text((8, 8), "\n".join(rows), 0, ImageFont.load_default(14), spacing=4)
    return picture


def write_thumbnail(path, source):
    """Draw a stored output small, on white, in 64 colours, 320 pixels wide."""
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(source, validate=True))).convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    except ValueError:  # not base64
        picture = draw_text(source).convert("RGB")
    picture.thumbnail((320, 240), Image.Resampling.LANCZOS)
    about = PngImagePlugin.PngInfo()
    about.add_text("source", fingerprint(source))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(64).save(path, optimize=True, pnginfo=about)


@click.command()
@click.option("--root", default=cells.ROOT, type=click.Path(file_okay=False, path_type=Path), help="Project folder.")
def main(root):
    """Write README.md and its small pictures from nbs/index.ipynb and what it shows of the other notebooks."""
    for path, source in thumbnails(root).items():
        if source is None:
            raise click.ClickException(f"{path.name}: no cell with this label has a stored output")
        if remembered(path) != fingerprint(source):
            write_thumbnail(path, source)
    Path(root, "README.md").write_text(render(cells.read(Path(root, "nbs", "index.ipynb"))), encoding="utf-8",
                                       newline="\n")


if __name__ == "__main__":
    main()
