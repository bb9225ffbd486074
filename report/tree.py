"""Running pandoc, and the filter on its document tree (panflute): figures, tables, code, links and citations."""
import hashlib
import io
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import click
import panflute as pf
import pypandoc

READER = "markdown-implicit_header_references"
pf.elements.RAW_FORMATS |= {"typst"}  # which panflute 2.3 does not know
NUMBER = re.compile(r"[-+−±~<>≈]?[\d.,]+ ?(%|[±–-] ?[\d.,]+ ?%?)?|[-–—]?|nan")  # in a table

SENTENCE = re.compile(r".*?(\.(?= [A-Z])|$)")
MAX_ROWS = 24  # longer tables may be torn between pages


class BuildError(click.ClickException):
    """Something in the notebooks cannot be printed; `at` says where it is."""

    def __init__(self, at, message):
        super().__init__(f"{at}: {message}" if at else message)


def pandoc(text, *options, folder=None):
    """Run pandoc on `text` in `folder`; a warning of pandoc is an error here."""
    done = subprocess.run([pypandoc.get_pandoc_path(), "--fail-if-warnings", *map(str, options)],
                          input=text, capture_output=True, encoding="utf-8", cwd=folder)
    if done.returncode:
        raise BuildError("", done.stderr.strip())
    return done.stdout


def read(text, *options, folder=None):
    """The tree of a text, Markdown unless `options` say otherwise."""
    return pf.load(io.StringIO(pandoc(text, "-f", READER, "-t", "json", *options, folder=folder)))


def place(element):
    """Where `element` stands, as "notebook cell id": text.py puts each cell in a division that says so."""
    while element is not None and "at" not in getattr(element, "attributes", {}):
        element = element.parent
    return element.attributes["at"] if element else ""


def plain(element):
    """The text of an element without its markup, in one line; formulas as TeX."""
    return " ".join(pf.stringify(element).split())


def typst(text, kind=pf.RawInline):
    return kind(text, format="typst")


def align_numbers(table):
    """Columns of numbers to the right, the others to the left, as wide as the contents need."""
    rows = [[plain(cell) for cell in row.content] for body in table.content for row in body.content]
    columns = [[row[i] for row in rows if i < len(row)] for i in range(table.cols)]
    numbers = [any(column) and all(map(NUMBER.fullmatch, column)) for column in columns]
    table.colspec = [("AlignRight" if number else "AlignLeft", "ColWidthDefault") for number in numbers]
    for row in (row for part in (table.head, *table.content) for row in part.content):
        for cell in row.content:
            cell.alignment = "AlignDefault"


class Filter:
    """What makes pandoc's tree of the whole report one that a writer of pandoc can set.

    `shape` goes through it first and numbers what has a number, `link` follows; `formulas` (formulas.py) sets the
    formulas, `authors` are the entries of references.bib with their authors' names.
    """

    def __init__(self, meta, root, folder, chapters, authors, formulas):
        self.html, self.root, self.folder, self.chapters = meta["html"], Path(root), Path(folder), chapters
        self.authors, self.formulas = authors, formulas
        self.counts, self.labels = Counter(), {}  # {label: (where it stands, Figure 3)}
        self.figures = []  # of each, its label and the first sentence of its caption

    def apply(self, document):
        document = document.walk(self.shape).walk(self.link)
        return document if self.html else document.walk(self.keep)

    def shape(self, element, document):
        if isinstance(element, pf.Math):
            self.formulas.find(element, place(element))
        elif isinstance(element, pf.Image):
            return self.picture(element)
        elif isinstance(element, pf.Figure):
            self.number(element)
        elif isinstance(element, pf.Table):
            align_numbers(element)
            self.number(element)
            if not self.html and sum(len(body.content) for body in element.content) > MAX_ROWS:
                return [typst("#[#show figure: set block(breakable: true)", pf.RawBlock), element,
                        typst("]", pf.RawBlock)]
        elif isinstance(element, (pf.RawBlock, pf.RawInline)) and element.format == "html":
            return self.raw_html(element)
        elif isinstance(element, pf.Header) and element.level == 1:
            return self.chapter(element)
        elif isinstance(element, pf.BlockQuote) and isinstance(element.prev, pf.Header) and element.prev.level == 1:
            if self.html:
                return pf.Div(*element.content, classes=["lead"])
            return [typst("#lead[", pf.RawBlock), *element.content, typst("]", pf.RawBlock)]
        return None

    def number(self, element):
        """Give a figure or table that has a caption its number; Typst counts by itself, HTML is told."""
        label, caption = element.identifier, element.caption.content
        if label in self.labels:
            raise BuildError(place(element), f"label {label} is already used in {self.labels[label][0]}")
        if caption:
            self.counts[element.tag] += 1
            name = f"{element.tag}\u00a0{self.counts[element.tag]}"
            if label:
                self.labels[label] = place(element), name
            if label and isinstance(element, pf.Figure):
                self.figures.append((label, SENTENCE.match(plain(caption[0]))[0]))
            if self.html:
                caption[0].content = [pf.Strong(pf.Str(name + ".")), pf.Space, *caption[0].content]

    def picture(self, image):
        """A picture, copied to the folder if it is not there yet: as vectors where there is such a file."""
        path = self.root / "nbs" / image.url
        path = next((p for p in (self.folder / image.url, path.with_suffix(".svg"), path) if p.is_file()), None)
        if path is None:
            raise BuildError(place(image), f"picture {image.url} does not exist")
        name = path.name
        if path.parent != self.folder:
            name = hashlib.sha256(image.url.encode()).hexdigest()[:8] + "-" + name
            shutil.copyfile(path, self.folder / name)
        if self.html:
            return pf.Image(pf.Str(plain(image)), url=name)
        return typst(f"#picture({json.dumps(name)}, {json.dumps(plain(image), ensure_ascii=False)})")

    def raw_html(self, element):
        """HTML of the notebooks is for report.html alone."""
        if not self.html and re.search(r"<(img|table|svg)\b", element.text):
            raise BuildError(place(element), "this HTML cannot be printed, write Markdown instead: "
                             + element.text[:80])
        return None if self.html else []

    def chapter(self, header):
        """Give a chapter's title the label that links between notebooks lead to, and the chapter its number."""
        cell = header.parent
        if "chapter" not in getattr(cell, "attributes", {}):
            return None
        header.identifier = f"sec-{cell.attributes['chapter']}"
        if self.html:
            return None
        return [typst(f"#start-chapter({cell.attributes['number']})", pf.RawBlock), header]

    def link(self, element, document):
        if isinstance(element, pf.Math):
            return self.formulas.set(element)
        if isinstance(element, pf.Link):
            return self.target(element)
        if isinstance(element, pf.Cite):
            return self.cite(element)
        if isinstance(element, pf.Div) and element.identifier == "list":
            element.content = self.list_of_figures()
        if isinstance(element, pf.Div) and "cell" in element.classes:
            return list(element.content)
        return None

    def keep(self, element, document):
        """A paragraph stays with the formula or the code that it leads up to."""
        after = element.next if isinstance(element, pf.Para) else None
        formula = isinstance(after, pf.Para) and getattr(after.content[0], "text", "").startswith("#display-math")
        if formula or isinstance(after, pf.CodeBlock):
            return [typst("#lead-up[", pf.RawBlock), element, typst("]", pf.RawBlock)]
        return None

    def list_of_figures(self):
        """Number, first sentence and page of each figure; in HTML, links to them."""
        def words(label, sentence):
            if self.html:
                link = pf.Link(pf.Str(self.labels[label][1] + "."), url=f"#{label}")
                return pf.Para(link, pf.Space, pf.Str(sentence))
            return pf.Para(typst(f"#listed(<{label}>)["), pf.Str(sentence), typst("]"))
        return [words(label, sentence) for label, sentence in self.figures]

    def target(self, link):
        """Links between notebooks become links between chapters; to other files of the project, plain text."""
        if link.url.startswith("#eq-"):
            return self.formulas.target(link, place(link))
        if re.match(r"\w+:", link.url):
            return None
        stem, _, suffix = link.url.partition("#")[0].rpartition("/")[2].partition(".")
        if suffix == "ipynb" and stem in self.chapters:
            return pf.Link(*link.content, url=f"#sec-{stem}")
        return list(link.content)

    def cite(self, cite):
        """`@fig-x` names a figure; after the author's name in the text, a citation gives the year alone."""
        first = cite.citations[0]
        if first.id in self.labels:
            name = pf.Str(self.labels[first.id][1])
            return pf.Link(name, url=f"#{first.id}") if self.html else typst(f"#ref(<{first.id}>)")
        for key in (citation.id for citation in cite.citations):
            if key not in self.authors:
                raise BuildError(place(cite), f"@{key} is neither in report/references.bib nor a figure's or table's "
                                 "label")
        before = cite.offset(-2)
        if isinstance(cite.prev, (pf.Space, pf.SoftBreak)) and isinstance(before, pf.Str):
            if before.text in self.authors[first.id] | {"others"}:
                first.mode = "SuppressAuthor"
        return None
