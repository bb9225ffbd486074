"""Build report.pdf from the notebooks as they are stored: `python -m report.build`. Nothing is executed.

The notebooks become one Markdown text (report/text.py, which says what is printed), pandoc reads it, and what the
report adds is done on pandoc's document tree: figures, tables, links, citations (report/tree.py), numbered formulas
(report/formulas.py). Typst sets the pages (report/layout.typ). With --html the same tree becomes one HTML file that
needs nothing beside it (report/layout.html), and explorer.html is written beside it, a page to draw digits into
(nbs/rooms/explorer.ipynb). report/metadata.yaml holds the title page and the list of chapters.

An unknown equation, a missing figure, an unresolved citation or a formula that cannot be set ends the build with a
message that names the notebook and the cell.
"""
import json
import re
import shutil
import tempfile
from html import escape
from pathlib import Path

import click
import typst
import yaml

from report import cells, text
from report.formulas import Formulas, mend_html, mend_typst
from report.tree import BuildError, Filter, pandoc, plain, read

HERE = Path(__file__).parent
METADATA = "report/metadata.yaml"
TEXTS = "title", "subtitle", "course", "date", "abstract"  # in it: Markdown
LISTS = "authors", "keywords", "chapters", "leave-out"
OPTIONS = "paper", "font-size", "margin", "language"  # of the layout


def project_folder(root):
    """Where metadata.yaml and references.bib lie: a folder with notebooks alone takes those of this project."""
    return Path(root, "report") if Path(root, "report").is_dir() else HERE


def bibliography(folder):
    """The entries of references.bib: {key: family names of the authors}."""
    entries = json.loads(pandoc("", "-f", "bibtex", "-t", "csljson", "references.bib", folder=folder))
    return {entry["id"]: {author.get("family") for author in entry.get("author", [])} for entry in entries}


def fill(words, root):
    """Replace {{a.b}} and {{a.b:format}} by values of figures/results.json."""
    path = Path(root, "figures", "results.json")

    def value(m):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            for key in m[1].split("."):
                found = found[int(key) if isinstance(found, list) else key]
            return format(found, m[2] or "")
        except (OSError, LookupError, TypeError, ValueError):
            raise BuildError(METADATA, f"{m[0]} is not a value of figures/results.json") from None

    return re.sub(r"\{\{\s*([\w.-]+)\s*(?::([^}]*))?\}\}", value, words)


def read_metadata(root, html=False, draft=False):
    """report/metadata.yaml, with the values of results.json in its texts; `authors` become a list of dicts."""
    try:
        meta = yaml.safe_load((project_folder(root) / "metadata.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeError) as err:
        raise BuildError(METADATA, f"cannot be read: {err}") from None
    except yaml.YAMLError as err:
        line = err.problem_mark.line + 1 if getattr(err, "problem_mark", None) else "?"
        raise BuildError(f"{METADATA}, line {line}", f"{getattr(err, 'problem', err)}. A text with a colon, or one "
                         "that begins with a sign, needs quotes: title: 'Digits: a report'") from None
    if not isinstance(meta, dict) or not meta.get("title"):
        raise BuildError(METADATA, "there is no title: write title: 'My report'")
    for key in TEXTS:
        if isinstance(meta.get(key), (dict, list)):
            raise BuildError(METADATA, f"{key} must be a text, not {meta[key]}: put it in quotes")
    meta |= {key: fill(str(meta[key]), root) for key in TEXTS if meta.get(key)}
    for key in LISTS:
        value = meta.get(key)
        meta[key] = value if isinstance(value, list) else [] if value is None else [value]
    meta["authors"] = [author if isinstance(author, dict) else {"name": author} for author in meta["authors"]]
    if not all(author.get("name") for author in meta["authors"]):
        raise BuildError(METADATA, "an author has no name: write `- name: Ann Lee` for each, or leave out authors")
    return meta | {"html": html, "draft": draft}


def chosen(meta, only):
    """The chapters that `only` names, with or without their numbers, which may have changed; None is all."""
    def bare(name):
        return re.sub(r"^\d+_|\.ipynb$", "", str(name))

    if only is None:
        return None
    for name in only:
        if bare(name) not in map(bare, meta["chapters"]):
            raise BuildError("--only", f"there is no chapter {name}; there are {', '.join(map(str, meta['chapters']))}")
    return [chapter for chapter in meta["chapters"] if bare(chapter) in map(bare, only)]


def write_settings(meta, folder):
    """What layout.typ needs to know and what is not to be read as Markdown, as a file of its own."""
    authors = [{key: str(value) for key, value in author.items() if value} for author in meta["authors"]]
    options = {key: str(meta[key]) for key in OPTIONS if meta.get(key)}
    content = {"authors": authors, "keywords": list(map(str, meta["keywords"])), **options}
    Path(folder, "settings.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def source(meta, root, folder, only=None):
    """The whole report in the language of its writer; its pictures, and layout.typ's settings, lie in `folder`."""
    for file in HERE / "layout.typ", HERE / "layout.html", project_folder(root) / "references.bib":
        shutil.copyfile(file, Path(folder, file.name))
    texts = {key: meta[key] for key in TEXTS if meta.get(key)}
    Path(folder, "texts.yaml").write_text(yaml.safe_dump(texts, allow_unicode=True), encoding="utf-8")
    write_settings(meta, folder)
    only = chosen(meta, only)
    document = read(text.markdown(meta, root, folder, only), "--metadata-file=texts.yaml", folder=folder)
    formulas = Formulas(meta["html"], meta["draft"])
    document = Filter(meta, root, folder, only or meta["chapters"], bibliography(folder), formulas).apply(document)
    if meta["html"]:
        options = ["html5", "--template=layout.html", "--mathml", "--embed-resources", "--toc", "--toc-depth=2",
                   "--number-sections", f"--variable=pagetitle:{escape(plain(document.metadata['title']))}",
                   *(["--variable=explorer:explorer.html"] if only is None else []),
                   *(f"--variable=author:{escape(str(author['name']))}" for author in meta["authors"])]
    else:
        options = ["typst-citations", "--template=layout.typ", "--syntax-highlighting=idiomatic"]
    try:
        return pandoc(json.dumps(document, default=lambda element: element.to_json()), "-f", "json", "--standalone",
                      "--wrap=none", "--citeproc", "--bibliography=references.bib", "--metadata=link-citations:true",
                      f"--metadata=lang:{meta.get('language', 'en-GB')}", "-t", *options, folder=folder)
    except BuildError as err:
        raise formulas.blame(err) from None


def write(out, content):
    """Write the finished report."""
    try:
        Path(out).write_bytes(content)
    except OSError as err:
        raise BuildError(out, f"cannot be written: {err.strerror}") from None


def build_pdf(out, root=cells.ROOT, only=None, keep=None, draft=False):
    """Build the PDF `out`; `keep` is a folder in which to leave the Typst source too."""
    meta = read_metadata(root, draft=draft or only is not None)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "report.typ")
        file.write_text(mend_typst(source(meta, root, folder, only)), encoding="utf-8")
        if keep:
            shutil.copytree(folder, keep, dirs_exist_ok=True)
        try:
            pdf = typst.compile(str(file), root=folder, ignore_system_fonts=True, pdf_standards=["ua-1"])
        except typst.TypstError as err:
            raise BuildError("", f"Typst cannot set the report:\n{err.diagnostic}") from None
    write(out, pdf)


def build_html(out, root=cells.ROOT, only=None, draft=False):
    """Build the HTML file `out`, with pictures and styles inside it."""
    meta = read_metadata(root, html=True, draft=draft or only is not None)
    with tempfile.TemporaryDirectory() as folder:
        page = mend_html(source(meta, root, folder, only))
    write(out, page.encode())


def build_explorer(out):
    """Write the page to draw into, of the network that comes with the package, with the font for its formulas."""
    from vae_gmm.classifier import VAEGMM  # takes seconds to load, and nothing else here needs it
    from vae_gmm.explorer import write_explorer
    with tempfile.TemporaryDirectory() as folder:
        write_explorer(VAEGMM.pretrained(), page := Path(folder, "explorer.html"))
        content = mend_html(page.read_text(encoding="utf-8"))
    write(out, content.encode())


@click.command()
@click.option("--html", is_flag=True, help="Build report.html instead, and explorer.html.")
@click.option("--out", default=None, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@click.option("--only", multiple=True, metavar="CHAPTER", help="A draft of these chapters alone, e.g. gmm.")
@click.option("--draft", is_flag=True, help="Put up with figures and equations that are missing.")
@click.option("--source", type=click.Path(file_okay=False, path_type=Path), help="Keep the Typst source here.")
@click.option("--root", default=cells.ROOT, type=click.Path(file_okay=False, path_type=Path), help="Project folder.")
def main(html, out, only, draft, source, root):
    """Build report.pdf from the notebooks as they are stored."""
    out = out or Path(root, "report.html" if html else "report.pdf")
    if html:
        build_html(out, root, only or None, draft)
        if not only:
            build_explorer(out.with_name("explorer.html"))
    else:
        build_pdf(out, root, only or None, source, draft)
    click.echo(f"{out} written")


if __name__ == "__main__":
    main()
