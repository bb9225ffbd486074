"""Check that what is derived agrees with its source: `python -m report.check`.

- notebooks are clean (nbdev_clean would change nothing), small, and for the kernel python3, which everybody has; GitHub
  can show their outputs and formulas;
- vae_gmm/ holds what nbdev_export writes from them, and nothing else;
- README.md and its small pictures are what report/readme.py makes of nbs/index.ipynb and the others;
- equations have the number of their chapter, or a letter in rooms, and what is cited is there;
- nbval compares at least 70 % of each chapter's output cells, those with text; the shares are printed;
- percentages and decimals in prose are in the chapter's code too, or stand beside a citation: no result is typed;
- lines of code have at most 120 columns; floors, sizes and public names are as tests/test_house.py wants them;
- relative links lead to files; prose is spelled correctly, in British English;
- no file in nbs/, vae_gmm/ or figures/ is unknown to git, if the project is a git checkout.

Windows line ends make no difference. nbdev works on a copy in a temporary folder: nothing here alters the working tree.
"""
import ast
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import yaml

from report import cells, readme
from report.formulas import NUMBERED

BY_HAND = {"__init__.py", "__main__.py"}  # modules that may stand without a notebook, in sub-packages too
COLUMNS = 120
SHARE = 0.7  # of a chapter's output cells, at least so many are compared
MAX_BYTES = 1_000_000  # above this, GitHub is slow to show a notebook or does not show it
AMERICAN_TOO = {"program", "programs", "license", "practice", "meter", "meters", "draft", "disk", "disks"}


def unix(path):
    """The bytes of a text file, with the line ends of Unix."""
    return path.read_bytes().replace(b"\r\n", b"\n")


def _nbdev(command, folder):
    """Run an nbdev command in `folder`."""
    done = subprocess.run([sys.executable, Path(sys.executable).with_name(command)], cwd=folder,
                          env=cells.environment(folder), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stdout}")


def _copy(root, folder):
    """Copy to `folder` what nbdev reads: settings.ini, the notebooks and the hand-written modules."""
    lib = cells.settings(root)["lib_path"]
    Path(folder, lib).mkdir()
    by_hand = [path for path in Path(root, lib).rglob("*.py") if path.name in BY_HAND]
    for path in [Path(root, "settings.ini"), *cells.notebooks(root), *by_hand]:
        copy = Path(folder, path.relative_to(root))
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(unix(path))


def fresh_clean(root=cells.ROOT):
    """The notebooks as nbdev_clean leaves them: {name: bytes}."""
    with tempfile.TemporaryDirectory() as tmp:
        _copy(root, tmp)
        _nbdev("nbdev_clean", tmp)
        return {cells.name_of(path, tmp): unix(path) for path in cells.notebooks(tmp)}


def fresh_export(root=cells.ROOT):
    """The package as nbdev_export writes it from the notebooks alone: {path in the package: bytes}."""
    with tempfile.TemporaryDirectory() as tmp:
        _copy(root, tmp)
        _nbdev("nbdev_export", tmp)
        lib = Path(tmp, cells.settings(root)["lib_path"])
        modules = list(lib.rglob("*.py"))
        folders = {lib, *(folder for p in modules if p.name not in BY_HAND for folder in p.parents)}
        return {p.relative_to(lib).as_posix(): unix(p) for p in modules
                if p.parent in folders}  # a sub-package of hand-written files alone comes from no notebook


def exported_from(name, fresh):
    """The modules of `fresh` (see fresh_export) that the notebook called `name` (see cells.name_of) writes."""
    mark = re.compile(rf"File to edit: (\.\./)+nbs/{re.escape(name)}\.".encode())
    return [module for module, text in fresh.items() if mark.search(text[:1000])]


def module_problem(root, module, fresh):
    """A sentence on how the package's `module` differs from its notebook, or None."""
    path = Path(root, cells.settings(root)["lib_path"], module)
    if not path.exists():
        return f"{module} has not been exported: run nbdev_export"
    if module not in fresh:
        return f"{module} comes from no notebook: remove it, or write its notebook"
    if unix(path) != fresh[module]:
        return f"{module} is not what its notebook exports: edit the notebook and run nbdev_export"
    return None


def check_clean(root):
    fresh = fresh_clean(root)
    for path in cells.notebooks(root):
        name = cells.name_of(path, root)
        yield f"clean {name}", "nbdev_clean would change it" if unix(path) != fresh[name] else None
        kernel = cells.read(path).metadata.get("kernelspec", {}).get("name")
        yield f"kernel {name}", None if kernel == cells.KERNEL["name"] else (
            f"it is for the kernel {kernel}, which others do not have: run it by report.run")
        size = path.stat().st_size
        yield f"size {name}", f"{size:,} bytes, more than {MAX_BYTES:,}" if size > MAX_BYTES else None


def check_export(root):
    fresh = fresh_export(root)
    lib = Path(root, cells.settings(root)["lib_path"])
    found = {p.relative_to(lib).as_posix() for p in cells.files(lib, "*.py")}
    for module in sorted(found | fresh.keys()):
        yield f"export {module}", module_problem(root, module, fresh)


def check_readme(root):
    index, path = Path(root, "nbs", "index.ipynb"), Path(root, "README.md")
    if not index.exists():
        yield "README.md", "nbs/index.ipynb is missing"
        return
    same = path.exists() and path.read_text(encoding="utf-8") == readme.render(cells.read(index))
    yield "README.md", None if same else "not what nbs/index.ipynb gives: run make readme"
    for path, source in readme.thumbnails(root).items():
        current = source and readme.remembered(path) == readme.fingerprint(source)
        yield f"picture {path.name}", None if current else "not what its notebook has stored: run make readme"


def _prose(root):
    """Every Markdown text of the project: (name to report, folder its links start from, text)."""
    for path in sorted(Path(root).glob("[!.]*.md")):
        yield path.name, path.parent, path.read_text(encoding="utf-8")
    for path in cells.notebooks(root):
        for cell in cells.read(path).cells:
            if cell.cell_type == "markdown":
                yield f"{cells.name_of(path, root)}/{cell.id}", path.parent, cell.source


CITED = re.compile(r"\b(?:eqs?\.|equations?)((?:[\s,;–-]|and|or|to|through|\([1-9A-Z]\d*\.\d+[a-z]?\))+)", re.I)


def check_equations(root):
    """Numbers of equations: N.m in the notebook of chapter N, a letter instead of N in a room, each of them once."""
    defined, cited, found = {}, [], []
    for path in cells.notebooks(root):
        name = cells.name_of(path, root)
        first = str(cells.chapter(name)) if cells.chapter(name) else "[A-Z]"
        for cell in cells.read(path).cells:
            at = f"{name}/{cell.id}"
            for number in NUMBERED.findall(cell.source) if cell.cell_type == "markdown" else ():
                if not re.fullmatch(rf"{first}\.\d+[a-z]?", number):
                    found.append(f"{at}: ({number}) is no number for {name}")
                if number in defined:
                    found.append(f"{at}: ({number}) is already the number of an equation in {defined[number]}")
                defined[number] = at
            cited += [(number, at) for words in CITED.findall(cell.source)
                      for number in re.findall(r"\(([^)]+)\)", words)]
    found += [f"{at}: no equation has the number ({number})" for number, at in cited if number not in defined]
    yield "equations", "their numbers are wrong\n  " + "\n  ".join(dict.fromkeys(found)) if found else None


def check_links(root):
    dead = [f"{name}: {target}" for name, folder, text in _prose(root) for target in readme.links(text)
            if not (folder / target).exists()]
    yield "links", "no such file\n  " + "\n  ".join(dead) if dead else None


GITHUB = {  # what GitHub's Markdown or its MathJax does not show as Jupyter does, and what to write
    r"\\\|": r"\lVert and \rVert for \|",
    r"\\operatorname(?![a-z])": r"\mathrm for \operatorname, which GitHub does not allow",
    r"\$\$?\s*\\begin\{(?:align|equation|gather)\*?\}": "aligned inside $$, or the environment without $$",
}


def unshown_formulas(text):
    """What in the formulas of Markdown `text` GitHub would not show, each with what to write."""
    text = re.sub(r"^ *(```+|~~~+).*?^ *\1 *$|`[^`\n]+`", "", text, flags=re.M | re.S)
    yield from (f"write {better}" for pattern, better in GITHUB.items() if re.search(pattern, text))
    for inline in re.findall(r"(?<!\\)\$([^$\n]+)(?<!\\)\$", re.sub(r"\$\$.*?\$\$", "", text, flags=re.S)):
        if inline != inline.strip():
            yield f"no blank beside the $ of ${inline}$"


def check_github(root):
    found = [f"{name}: {problem}" for name, _, text in _prose(root) for problem in unshown_formulas(text)]
    yield "formulas", "GitHub does not show them\n  " + "\n  ".join(found) if found else None
    widgets = [f"{cells.name_of(path, root)}/{cell.id}" for path in cells.notebooks(root)
               for cell in cells.read(path).cells for out in cell.get("outputs", [])
               if "application/vnd.jupyter.widget-view+json" in out.get("data", {})]
    yield "widgets", "outputs that only a running Jupyter shows: " + ", ".join(widgets) if widgets else None


def _misspelled(root, texts, *options):
    """What codespell finds in `texts` {name: text}, one finding a line."""
    with tempfile.TemporaryDirectory() as tmp:
        for name, text in texts.items():
            Path(tmp, name).parent.mkdir(parents=True, exist_ok=True)
            Path(tmp, name).write_text(text, encoding="utf-8")
        config = Path(root, ".codespellrc").resolve()
        options = [*options, "--config", config] if config.exists() else options
        done = subprocess.run([sys.executable, "-m", "codespell_lib", "--disable-colors", *options, "."], cwd=tmp,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return re.sub(r"^\./", "  ", done.stdout.rstrip(), flags=re.M) if done.returncode else ""


def _plain(text):
    """Markdown `text` without code, mathematics, links' targets and HTML tags; lines stay where they are."""
    for noise in r"^ *(```+|~~~+).*?^ *\1 *$", r"`[^`\n]+`", r"\$\$.*?\$\$", r"\$[^$\n]+\$", r"\]\([^)]*\)", r"<[^>]+>":
        text = re.sub(noise, lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)
    return text


def _american(folder):
    """Write codespell's British-to-American list the other way round; the path of the new list."""
    import codespell_lib
    pairs = Path(codespell_lib.__file__).with_name("data").joinpath("dictionary_en-GB_to_en-US.txt").read_text("utf-8")
    british = {}
    for line in pairs.splitlines():
        word, _, fixes = line.partition("->")
        for fix in fixes.strip(", ").split(","):
            if fix.strip() not in AMERICAN_TOO:
                british.setdefault(fix.strip(), []).append(word)
    path = Path(folder, "american.txt")
    path.write_text("".join(f"{a}->{', '.join(b)}{',' * (len(b) > 1)}\n" for a, b in british.items()), "utf-8")
    return path


def check_spelling(root):
    prose = {name: text for name, _, text in _prose(root)}
    code = {f"{cells.name_of(path, root)}/{cell.id}": cell.source for path in cells.notebooks(root)
            for cell in cells.read(path).cells if cell.cell_type == "code"}
    found = _misspelled(root, {**prose, **code})
    yield "spelling", "codespell finds\n" + found if found else None
    with tempfile.TemporaryDirectory() as tmp:
        found = _misspelled(root, {name: _plain(text) for name, text in prose.items()}, "-D", _american(tmp))
    yield "British English", "American spelling in prose\n" + found if found else None


CLAIM = re.compile(  # no "95% interval", which is the name of a thing
    r"(?<![\w.,(-])\d+(?:\.\d+)?\s?(?=%(?! (?:Wilson )?(?:interval|quantile)))|(?<![\w.,(-])\d*\.\d+(?![\w.]*\d)")
LONG = 60  # characters; a longer string in code is prose


def _claims(text):
    """The percentages and decimal numbers in Markdown `text`, but for lines that cite a source and formulas."""
    lines = [line for line in _plain(text).splitlines() if "[@" not in line]
    lines = [re.sub(r"\b(?:Python|BY-SA|License)(?: [\d.]+(?: to)?)+", "", line) for line in lines]  # versions
    return [match[0].strip() for line in lines for match in CLAIM.finditer(line)]


def _tree(cell):
    """The syntax tree of a code cell, without IPython's own lines."""
    return ast.parse(re.sub(r"^ *[%!].*$", "", cell.source, flags=re.M))


def _stated(cell):
    """What a cell states to the reader: Markdown, a caption, or a text in its code."""
    if cell.cell_type == "markdown":
        return cell.source
    texts = [node.value for node in ast.walk(_tree(cell))
             if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) > LONG]
    return "\n".join([*(v for k, v in cells.directives(cell).items() if k.endswith("-cap")),
                      *(re.sub(r"\{[^{}]*\}", "", text) for text in texts)])


def check_claims(root):
    """Percentages and decimals that a chapter types: settings and sums that its code has too, or cited; no results."""
    front = Path(root, "report", "metadata.yaml")
    abstract = yaml.safe_load(front.read_text(encoding="utf-8")).get("abstract") if front.exists() else None
    found = _claims(re.sub(r"\{\{.*?\}\}", "", abstract or ""))  # what stands in braces is computed
    yield "claims abstract", "from no source: " + ", ".join(found) if found else None
    for path in cells.notebooks(root):
        name, notebook = cells.name_of(path, root), cells.read(path).cells
        if not (cells.chapter(name) or name == "index.ipynb"):
            continue
        trees = [_tree(cell) for cell in notebook if cell.cell_type == "code"]
        known = {node.value for tree in trees for node in ast.walk(tree)
                 if isinstance(node, ast.Constant) and type(node.value) in (int, float)}
        found = [f"{name}/{cell.id}: {claim}" for cell in notebook for claim in _claims(_stated(cell))
                 if not {float(claim), round(float(claim) / 100, 6)} & known]
        yield f"claims {name}", "from no code and no source\n  " + "\n  ".join(found) if found else None


def _has_text(cell):
    """Whether a code cell has stored something that nbval would compare: no picture, no warning."""
    for out in cell.get("outputs", []):
        data = dict(out.get("data", {}))
        if str(data.get("text/plain", "")).startswith("<Figure"):  # stands for a picture
            del data["text/plain"]
        if out.get("name") == "stdout" or any(kind.startswith("text/") for kind in data):
            return True
    return False


def _is_compared(cell, flags):
    """Whether nbval compares a code cell: neither skipped, as conftest.py does, nor marked for nbval to ignore."""
    marks = re.findall(r"^ *# ?(NBVAL_(?:IGNORE_OUTPUT|SKIP))", cell.source, re.M)
    return not (marks or cells.skipped(cell, flags) or {"nbval-ignore-output", "nbval-skip"} & cells.tags(cell))


def compared(root=cells.ROOT):
    """{chapter: (output cells that nbval compares, all output cells)}; a cell with pictures alone is none of them."""
    flags, found = cells.nbval_flags(root), {}
    for path in cells.notebooks(root):
        if cells.chapter(name := cells.name_of(path, root)):
            shown = [cell for cell in cells.read(path).cells if cell.cell_type == "code" and _has_text(cell)]
            found[name] = sum(_is_compared(cell, flags) for cell in shown), len(shown)
    return found


def check_compared(root):
    for name, (some, every) in compared(root).items():
        yield f"compared {name}", None if some >= SHARE * every else (
            f"nbval compares {some} of {every} output cells, less than {SHARE:.0%}: print what does not hang on the "
            "machine, or a bound for what does, in cells that are not skipped")


def check_lines(root):
    """Lines of code that are too long, in the tools and tests; tests/test_house.py adds the notebooks."""
    paths = [path for folder in ("report", "tests", "benchmarks", "experiments") if Path(root, folder).is_dir()
             for path in cells.files(Path(root, folder), "*") if path.suffix in (".py", ".typ", ".html", ".lua")]
    found = [f"{path.relative_to(root).as_posix()}, line {number}: {len(line)} columns"
             for path in [*paths, *Path(root).glob("[!.]*.py")]
             for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if len(line) > COLUMNS]
    yield "lines", f"more than {COLUMNS} columns\n  " + "\n  ".join(found) if found else None


def check_house(root):
    """What tests/test_house.py finds, if the project has it: imports, public names, sizes."""
    path = Path(root, "tests", "test_house.py")
    if path.exists():
        house = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("house", path))
        spec.loader.exec_module(house)
        found = list(house.faults(Path(root)))
        yield "house", "\n  ".join(["not as CONTRIBUTING.md says", *found]) if found else None


def check_known(root):
    """Files of notebooks, package and figures that git does not know; nothing to say outside a git checkout."""
    if not Path(root, ".git").exists():  # a repository around the project has its own rules
        return
    try:
        git = subprocess.run(["git", "ls-files", "--others", "--exclude-standard", "--", "nbs", "figures",
                              cells.settings(root)["lib_path"]], cwd=root, env=cells.environment(root),
                             capture_output=True, text=True)
    except FileNotFoundError:  # no git on this machine
        return
    if git.returncode == 0:
        yield "known to git", "not added to git: " + ", ".join(git.stdout.split("\n")[:-1]) if git.stdout else None


CHECKS = (check_clean, check_export, check_readme, check_equations, check_links, check_github, check_spelling,
          check_claims, check_compared, check_lines, check_house, check_known)


def run(root=cells.ROOT):
    """All checks on the project in `root`: yields (name, problem or None)."""
    for check in CHECKS:
        try:
            yield from check(root)
        except RuntimeError as err:  # nbdev could not read what it should check
            yield check.__name__.replace("_", " "), str(err)


@click.command()
@click.option("--root", default=cells.ROOT, type=click.Path(file_okay=False, path_type=Path), help="Project folder.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the counts here.")
def main(root, json_file):
    """Check notebooks, package, README.md, links and spelling against each other."""
    results = list(run(root))
    problems = [(name, problem) for name, problem in results if problem]
    for name, problem in problems:
        click.echo(f"FAILED {name}: {problem}")
    for name, (some, every) in compared(root).items():
        click.echo(f"{name:30} {some:3} of {every:3} output cells compared, {some / max(every, 1):.0%}")
    click.echo(f"{len(results) - len(problems)} of {len(results)} checks passed")
    if json_file:
        json_file.write_text(json.dumps({"passed": len(results) - len(problems), "failed": len(problems)}))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
