"""The notebooks as one Markdown text, and their pictures as files: the first step of report/build.py.

What is printed of a notebook:
- its text, except cells tagged `no-pdf`; on a cell that begins with a heading, `no-pdf` leaves out the whole section;
- at the end, in small letters, the exercises of all chapters and the text of their solutions;
- figures (`#| label: fig-x` and `#| fig-cap:`) and tables (`#| label: tbl-x` and `#| tbl-cap:`) of cells that are
  neither hidden (`#| hide`) nor tagged `no-pdf`;
- code that carries out an equation (a line that is no assertion and says `# eq. (`) and code tagged `pdf`, with what
  it printed. Cells that draw a figure, or are longer than MAX_LINES, show their code only with the tag. With
  `code: tagged` in report/metadata.yaml the tag alone decides.

report.html has room for everything that is not hidden, cells tagged `html` too: the rest of the code and the solutions
are folded away.
"""
import base64
import math
import re
from html import escape
from pathlib import Path

from report import cells
from report.formulas import link_mentions
from report.run import vector_file
from report.tree import BuildError, pandoc

MAX_LINES = 25    # longer cells are not printed without the tag pdf
MAX_COLUMNS = 98  # characters of code that fit on a line
MAX_WIDTH, MIN_LETTER = 496, 7  # points: a page's width of text; the smallest letter of a figure, but for indices
PLACEHOLDER = (b'<svg xmlns="http://www.w3.org/2000/svg" width="400" height="160">'
               b'<rect width="400" height="160" fill="#ddd"/></svg>')
TABLES = "markdown-simple_tables-multiline_tables-grid_tables"  # how those in HTML are read: as pipe tables
ASSERTION = re.compile(r"\s*(assert\b|test_\w+\(|(np|torch)\.testing\.|with (pytest\.raises|ExceptionExpected))")
# How a notebook speaks of a figure or table beside the text; in the report, which may turn the page, by its number.
POINTER = re.compile(r"\b[Tt]he (?:(?P<on>next|following) (?:figure|table)|last (?:figure|table)|"
                     r"(?:figure|table) (?:(?P<below>below)|above))\b|\b(?P<nearest>The figure)(?= \w+s\b)")


def smallest_letter(svg):
    """The size in points of a drawing's smallest letters, as the report prints it; indices of formulas do not count.

    matplotlib writes a text as a group with a transformation whose scale is a hundredth of the letters' size."""
    width = re.search(r'<svg[^>]*? width="([\d.]+)pt"', svg)
    sizes = [100 * float(s) for s in re.findall(r'<g [^>]*transform="translate\([^"]*\) scale\(([\d.]+) -', svg)]
    return min(sizes, default=math.inf) * min(1, MAX_WIDTH / float(width[1]) if width else 1)


def fenced(text, language):
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence} {language}\n{text.rstrip()}\n{fence}"


def folded(code, blocks, is_open):
    """Blocks of Markdown folded away in HTML: what the `code` defines is the title, or else its first line."""
    name = re.search(r"^(?:def|class) (\w+)", code, re.M) or re.search(r"^\s*(.+)", code)
    start = f'<details class="source"{" open" * is_open}><summary>Code <code>{escape(name[1])}</code></summary>'
    return [fenced(start, "{=html}"), *blocks, fenced("</details>", "{=html}")]


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


def table(out):
    """An output that is a table or another text in Markdown; empty for any other output."""
    data = out.get("data", {})
    html = re.search(r"<table.*?</table>", data.get("text/html", ""), re.S)
    if "text/markdown" in data:
        return link_mentions(data["text/markdown"])
    return pandoc(html[0], "-f", "html", "-t", TABLES, "--columns=9999") if html else ""


class Notebook:
    """A notebook on its way into the report: its cells as Markdown, its pictures as files in `folder`."""

    def __init__(self, path, folder, root, meta):
        self.path, self.folder, self.root, self.meta = Path(path), Path(folder), Path(root), meta

    def figure(self, cell, pngs, at):
        """A cell's figure: drawn as vectors where there is such a file, otherwise the stored PNG."""
        d = cells.directives(cell)
        label, caption = d.get("label", ""), d.get("fig-cap")
        if not label.startswith("fig-") or not caption or len(pngs) > 1:
            raise BuildError(at, "a figure needs `#| label: fig-name`, `#| fig-cap: ...` and a cell of its own "
                             "(or the tag no-pdf)")
        if not pngs and not self.meta["draft"]:
            raise BuildError(at, f"no figure: the cell with label {label} has no stored picture")
        name = label.removeprefix("fig-")
        drawn = [self.root / "figures" / f"{stem}.svg" for stem in (name, name.replace("-", "_"))]
        drawn = next((p for p in [*(vector_file(png, self.root) for png in pngs), *drawn] if p.exists()), None)
        file = self.folder / f"{self.path.stem}-{name}{'.svg' if drawn or not pngs else '.png'}"
        file.write_bytes(PLACEHOLDER if not pngs else drawn.read_bytes() if drawn else base64.b64decode(pngs[0]))
        if drawn and not self.meta["draft"] and (size := smallest_letter(drawn.read_text("utf-8"))) < MIN_LETTER - 0.05:
            raise BuildError(at, f"the smallest letters of {label} are {size:.1f} points in print; expected "
                             f"{MIN_LETTER} or more")
        alt = 'alt="' + d["fig-alt"].replace('"', "'") + '"' if d.get("fig-alt") else ""
        return f"![{link_mentions(caption)}]({file.name}){{#{label} {alt}}}"

    def outputs(self, cell, at):
        """A cell's tables and its figure as Markdown."""
        d = cells.directives(cell)
        tables = list(filter(None, map(table, cell.outputs)))
        pngs = [out.data["image/png"] for out in cell.outputs if "image/png" in out.get("data", {})]
        if "tbl-cap" in d:
            if not tables and not self.meta["draft"]:
                raise BuildError(at, f"no table: the cell with label {d.get('label')} has no stored table")
            tables = tables or ["|   |\n|---|\n|   |"]
            tables.insert(1, f": {link_mentions(d['tbl-cap'])} {{#{d.get('label', '')}}}")
        return [*tables, self.figure(cell, pngs, at)] if pngs or "fig-cap" in d else tables

    def code(self, cell, at):
        """A code cell as Markdown; empty if nothing of it is printed."""
        if cells.hidden(cell):
            return ""
        code, shown = cells.code(cell), shows_code(cell, self.meta.get("code", "equations"))
        source = []
        if self.meta["html"] and cells.echoed(cell) and code:
            source = folded(code, [fenced(code, "python"), *printed(cell)], shown)
        elif shown:
            source = [fenced(fit(code), "python"), *printed(cell)]
        return "\n\n".join([*source, *self.outputs(cell, at)])

    def markdown(self, keep=lambda cell: True, **attributes):
        """The cells for which `keep(cell)` holds as one Markdown text, each in a division that says where it is."""
        parts = []  # [at, "markdown" or the label of the figure or table that the cell has, Markdown]
        unwanted = {"no-pdf"} if self.meta["html"] else {"no-pdf", "html"}
        left_out = 7  # level of the heading whose section is left out; 7 is none
        for cell in cells.read(self.path).cells:
            at = f"{self.path.name} cell {cell.id}"
            heading = re.match(r"(#+) +(.*)", cell.source) if cell.cell_type == "markdown" else None
            if heading and len(heading[1]) <= left_out:
                listed = heading[2].strip() in self.meta["leave-out"] and not self.meta["html"]
                whole = len(heading[1]) > 1 and "no-pdf" in cells.tags(cell)
                left_out = len(heading[1]) if listed or whole else 7
            if left_out < 7 or cell.cell_type == "raw" or cells.tags(cell) & unwanted or not keep(cell):
                continue
            if cell.cell_type == "markdown":
                parts.append([at, "markdown", link_mentions(cell.source.strip())])
            elif text := self.code(cell, at):
                d = cells.directives(cell)
                parts.append([at, d.get("label", "") if {"fig-cap", "tbl-cap"} & d.keys() else "", text])
            elif parts and parts[-1][1] == "markdown":  # the code that this text leads up to is not printed
                parts[-1][2] = re.sub(r":$", ".", parts[-1][2])
        point_to_figures(parts)
        keys = " ".join(f'{key}="{value}"' for key, value in attributes.items())
        mark = ":" * 20  # longer than any in a cell
        return "\n\n".join(f'{mark} {{.cell at="{at}" {keys}}}\n\n{text}\n\n{mark}' for at, _, text in parts)


def point_to_figures(parts):
    """Let text that speaks of "the figure below" name the figure's number; `parts` as in Notebook.markdown."""
    def name(m):
        kind = "fig-" if "figure" in m[0] else "tbl-"
        side = 0 if m["nearest"] else 1 if m["on"] or m["below"] else -1
        near = min(((abs(j - here), j, label) for j, (_, label, _) in enumerate(parts)
                    if label.startswith(kind) and (j - here) * side >= 0), default=None)
        return f"@{near[2]}" if near else m[0]

    for here, part in enumerate(parts):
        if part[1] == "markdown":
            part[2] = POINTER.sub(name, part[2])


def at_the_end(words, number):
    """Exercises and solutions of chapter `number` without the code that tests them, for the end of the PDF."""
    words = re.sub(r"^## Exercises", f"## Chapter {number} {{.unnumbered .unlisted}}", words, flags=re.M)
    words = re.sub(r":?\n+```python\n.*?\n```", lambda m: "." * (m[0][0] == ":"), words, flags=re.S)
    titles = r"^<details><summary>(.*?)</summary>\n+|^</details>"
    return re.sub(titles, lambda m: f"*{m[1]}.* " if m[1] else "", words, flags=re.M)


def markdown(meta, root, folder, only=None):
    """The whole report as Markdown: introduction, chapters, what stands at the end."""
    def exercise(cell): return cell.source.startswith("## Exercises") or "solution" in cells.tags(cell)
    nbs, parts, end, exercises = Path(root, "nbs"), [], [], []
    index = nbs / "index.ipynb"
    if only is None and index.exists():
        intro, back = (Notebook(index, folder, root, meta).markdown(lambda cell: tag in cells.tags(cell))
                       for tag in ("intro", "back"))
        if intro:
            intro = re.sub(r"^#+ +Introduction *$", "", intro, flags=re.M)
            intro = re.sub(r"^#+ +(.+)$", r"## \1 {.unnumbered}", intro, flags=re.M)
            parts.append("# Introduction {.unnumbered}\n\n" + intro)
        end = [re.sub(r"^#+ +(.+)$", r"# \1 {.unnumbered}", back, flags=re.M),
               "# Figures {.unnumbered}\n\n::: {#list}\n:::"]
    for number, name in enumerate(meta["chapters"], 1):
        path = nbs / f"{name}.ipynb"
        if only is not None and name not in only:
            continue
        if not path.exists():
            raise BuildError("report/metadata.yaml", f"chapter {name}: {path} does not exist")
        number = cells.chapter(path.name) or number
        notebook = Notebook(path, folder, root, meta)
        parts.append(notebook.markdown(lambda cell: meta["html"] or not exercise(cell), chapter=name, number=number))
        if not meta["html"]: exercises.append(at_the_end(notebook.markdown(exercise), number))
    if any(exercises):
        parts += ["# Exercises and solutions {.unnumbered}\n\n::: {#exercises}", *exercises, ":::"]
    return "\n\n".join([*parts, *end, "# References {.unnumbered}\n\n::: {#refs}\n:::\n"])
