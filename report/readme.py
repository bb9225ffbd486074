"""Write README.md from nbs/index.ipynb: `python -m report.readme`.

Left out are cells marked `#| hide` or tagged `no-readme`. Relative links, written for a reader of nbs/index.ipynb,
are turned into links from the project folder, so that they lead to the same file from both places.
"""
import posixpath
import re
from pathlib import Path

import click

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


@click.command()
@click.option("--root", default=cells.ROOT, type=click.Path(file_okay=False, path_type=Path), help="Project folder.")
def main(root):
    """Write README.md from nbs/index.ipynb."""
    Path(root, "README.md").write_text(render(cells.read(Path(root, "nbs", "index.ipynb"))), encoding="utf-8")


if __name__ == "__main__":
    main()
