"""The notebooks as one Markdown text, and their pictures as files: the first step of report/build.py.

What is printed of a notebook:
- its text, except cells tagged `no-pdf` or `solution`; on a cell that begins with a heading, `no-pdf` leaves out the
  whole section;
- figures (`#| label: fig-x` and `#| fig-cap:`) and tables (`#| label: tbl-x` and `#| tbl-cap:`) of cells that are
  neither hidden (`#| hide`) nor tagged `no-pdf`;
- code that carries out an equation (a line that is no assertion and says `# eq. (`) and code tagged `pdf`, with what
  it printed. Cells that draw a figure, or are longer than MAX_LINES, show their code only with the tag. With
  `code: tagged` in report/metadata.yaml the tag alone decides.

report.html has room for everything that is not hidden: the rest of the code and the solutions are folded away.
"""
import base64
import re
from pathlib import Path

from report import cells
from report.formulas import link_mentions
from report.run import vector_file
from report.tree import BuildError

MAX_LINES = 25    # longer cells are not printed without the tag pdf
MAX_COLUMNS = 98  # characters of code that fit on a line
PLACEHOLDER = (b'<svg xmlns="http://www.w3.org/2000/svg" width="400" height="160">'
               b'<rect width="400" height="160" fill="#ddd"/></svg>')
ASSERTION = re.compile(r"\s*(assert\b|test_\w+\(|(np|torch)\.testing\.|with (pytest\.raises|ExceptionExpected))")
# How a notebook speaks of a figure or table beside the text; in the report, where figures float, by its number.
POINTER = re.compile(r"\b[Tt]he (?:(?P<on>next|following) (?:figure|table)|last (?:figure|table)|"
                     r"(?:figure|table) (?:(?P<below>below)|above))\b|\b(?P<nearest>The figure)(?= \w+s\b)")


def division(content, kind, identifier="", **attributes):
    """`content` as a Markdown division that pandoc hands on; long colons, so that cells may hold divisions."""
    keys = " ".join(f'{key}="{value}"' for key, value in attributes.items())
    mark = ":" * (20 if kind == "cell" else 12)
    return f"{mark} {{.{kind} {'#' + identifier if identifier else ''} {keys}}}\n\n{content}\n\n{mark}"


def fenced(text, language):
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence} {language}\n{text.rstrip()}\n{fence}"


def fit(code):
    """Move comments closer to the code where a line is too long for the page."""
    return "\n".join(line if len(line) <= MAX_COLUMNS else re.sub(r"(?<=\S) {2,}#", "  #", line)
                     for line in code.splitlines())


def shows_code(cell, rule="equations"):
    """Whether the report prints this cell's source: see the rule at the top."""
    if not cells.echoed(cell) or not cells.code(cell):
        return False
    if "pdf" in cells.tags(cell) or rule == "tagged":
        return "pdf" in cells.tags(cell)
    lines = cells.code(cell).splitlines()
    if len(lines) > MAX_LINES or "fig-cap" in cells.directives(cell):
        return False
    return any(re.search(r"# eqs?\. \(", line) and not ASSERTION.match(line) for line in lines)


def printed(cell):
    """What a cell printed, as Markdown."""
    for out in cell.outputs:
        data = out.get("data", {})
        if out.get("name") == "stdout" or "text/plain" in data and len(data) == 1:
            yield fenced(out.get("text") or data["text/plain"], "output")


class Notebook:
    """A notebook on its way into the report: its cells as Markdown, its pictures as files in `folder`."""

    def __init__(self, path, folder, root, meta):
        self.path, self.folder, self.root, self.meta = Path(path), Path(folder), Path(root), meta

    def figure(self, cell, at):
        """A cell's figure: drawn as vectors where there is such a file, otherwise the stored PNG."""
        d = cells.directives(cell)
        label, caption = d.get("label", ""), d.get("fig-cap")
        if not label.startswith("fig-") or not caption:
            raise BuildError(at, "a figure needs `#| label: fig-name` and `#| fig-cap: ...` (or the tag no-pdf)")
        png = next((out.data["image/png"] for out in cell.outputs if "image/png" in out.get("data", {})), "")
        if not png and not self.meta["draft"]:
            raise BuildError(at, f"no figure: the cell with label {label} has no stored picture")
        name = label.removeprefix("fig-")
        drawn = [vector_file(png, self.root), *(self.root / "figures" / f"{n}.svg"
                                                for n in (name, name.replace("-", "_")))]
        svg = next((path.read_bytes() for path in drawn if path.exists()), b"") if png else PLACEHOLDER
        file = self.folder / f"{self.path.stem}-{name or cell.id}{'.svg' if svg else '.png'}"
        file.write_bytes(svg or base64.b64decode(png))
        return division(link_mentions(caption), "figure", label, file=file.name,
                        alt=d.get("fig-alt", "").replace('"', "'"))

    def outputs(self, cell, at):
        """A cell's figures and tables as Markdown."""
        d, done = cells.directives(cell), False
        for out in cell.outputs:
            data = out.get("data", {})
            table = re.search(r"<table.*?</table>", data.get("text/html", ""), re.S)
            if "image/png" in data or "image/svg+xml" in data:
                yield self.figure(cell, at)
                done = True
            elif "text/markdown" in data or table:
                text = link_mentions(data["text/markdown"]) if "text/markdown" in data else fenced(table[0], "{=html}")
                caption = link_mentions(d.get("tbl-cap", ""))
                yield division(f"{caption}\n\n{text}", "table", d.get("label", "")) if caption else text
        if "fig-cap" in d and not done:
            yield self.figure(cell, at)

    def code(self, cell, at):
        """A code cell as Markdown; empty if nothing of it is printed."""
        if cells.hidden(cell):
            return ""
        shown, source = shows_code(cell, self.meta.get("code", "equations")), []
        if self.meta["html"] and cells.echoed(cell) and cells.code(cell):
            source = [division("\n\n".join([fenced(cells.code(cell), "python"), *printed(cell)]),
                               "source" + " .open" * shown)]
        elif shown:
            source = [fenced(fit(cells.code(cell)), "python"), *printed(cell)]
        return "\n\n".join([*source, *self.outputs(cell, at)])

    def markdown(self, keep=lambda cell: True, **attributes):
        """The cells for which `keep(cell)` holds as one Markdown text, each in a division that says where it is."""
        parts = []  # [at, label of the figure or table that the cell draws or "markdown", Markdown]
        unwanted = {"no-pdf"} if self.meta["html"] else {"no-pdf", "solution"}
        left_out = 7  # level of the heading whose section is left out; 7 is none
        for cell in cells.read(self.path).cells:
            at = f"{self.path.name} cell {cell.id}"
            heading = re.match(r"(#+) +(.*)", cell.source) if cell.cell_type == "markdown" else None
            if heading and len(heading[1]) <= left_out:
                listed = heading[2].strip() in self.meta.get("leave-out", []) and not self.meta["html"]
                whole = len(heading[1]) > 1 and "no-pdf" in cells.tags(cell)
                left_out = len(heading[1]) if listed or whole else 7
            if left_out < 7 or cell.cell_type == "raw" or cells.tags(cell) & unwanted or not keep(cell):
                continue
            if cell.cell_type == "markdown":
                parts.append([at, "markdown", link_mentions(cell.source.strip())])
            elif text := self.code(cell, at):
                parts.append([at, cells.directives(cell).get("label", ""), text])
            elif parts and parts[-1][1] == "markdown":  # the code that this text leads up to is not printed
                parts[-1][2] = re.sub(r":$", ".", parts[-1][2])
        point_to_figures(parts)
        return "\n\n".join(division(text, "cell", at=at, **attributes) for at, _, text in parts)


def point_to_figures(parts):
    """Let text that speaks of "the figure below" name the figure's number; `parts` as in Notebook.markdown."""
    def name(m):
        kind = "{.figure #fig-" if "figure" in m[0] else "{.table #tbl-"
        side = 0 if m["nearest"] else 1 if m["on"] or m["below"] else -1
        near = min(((abs(j - here), j) for j, part in enumerate(parts)
                    if kind in part[2] and (j - here) * side >= 0), default=None)
        return f"@{parts[near[1]][1]}" if near else m[0]

    for here, part in enumerate(parts):
        if part[1] == "markdown":
            part[2] = POINTER.sub(name, part[2])


def markdown(meta, root, folder, only=None):
    """The whole report as Markdown."""
    nbs, parts = Path(root, "nbs"), []
    index = nbs / "index.ipynb"
    if only is None and index.exists():
        intro = Notebook(index, folder, root, meta).markdown(lambda cell: "intro" in cells.tags(cell))
        if intro:
            intro = re.sub(r"^#+ +Introduction *$", "", intro, flags=re.M)
            intro = re.sub(r"^#+ +(.+)$", r"## \1 {.unnumbered .unlisted}", intro, flags=re.M)
            parts.append("# Introduction {.unnumbered}\n\n" + intro)
    for number, name in enumerate(meta["chapters"], 1):
        path = nbs / f"{name}.ipynb"
        if only is not None and name not in only:
            continue
        if not path.exists():
            raise BuildError("report/metadata.yaml", f"chapter {name}: {path} does not exist")
        number = cells.chapter(path.name) or number
        parts.append(Notebook(path, folder, root, meta).markdown(chapter=name, number=number))
    return "\n\n".join(parts) + "\n\n# References {.unnumbered}\n\n::: {#refs}\n:::\n"
