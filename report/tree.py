"""Running pandoc, and working on the document tree that it reads."""
import json
import subprocess

import click
import pypandoc

READER = "markdown-implicit_header_references"


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


def read_markdown(text, *options, folder=None):
    """The tree of a Markdown text."""
    return json.loads(pandoc(text, "-f", READER, "-t", "json", *options, folder=folder))


def element(kind, *content):
    """A pandoc element."""
    return {"t": kind, "c": content[0] if len(content) == 1 else list(content)}


def raw(text, kind="RawInline", language="typst"):
    """A piece of the output as a pandoc element."""
    return element(kind, language, text)


def plain(node):
    """The text of a pandoc node without its markup; formulas as TeX."""
    if isinstance(node, list):
        return "".join(map(plain, node))
    if not isinstance(node, dict):
        return ""
    kind, content = node.get("t"), node.get("c")
    if kind == "Str":
        return content
    if kind in ("Space", "SoftBreak", "LineBreak"):
        return " "
    if kind in ("Code", "CodeBlock", "Math", "RawInline"):
        return content[1]
    if kind == "Quoted":
        return ("‘{}’" if content[0]["t"] == "SingleQuote" else "“{}”").format(plain(content[1]))
    if kind == "Cite":
        return plain(content[1])
    return plain(content)


def rewrite(node, visit, at=""):
    """A copy of `node` where each element that `visit(element, at)` answers with a list is replaced by that list.

    `at` is the cell in which the element stands, as "notebook cell id".
    """
    if isinstance(node, dict):
        return {key: rewrite(value, visit, at) for key, value in node.items()}
    if not isinstance(node, list):
        return node
    out = []
    for child in node:
        if isinstance(child, dict) and "t" in child:
            here = dict(child["c"][0][2]).get("at", at) if child["t"] == "Div" else at
            new = visit(child, here)
            out += [rewrite(child, visit, here)] if new is None else new
        else:
            out.append(rewrite(child, visit, at))
    return out


def rewrite_lists(node, change, at=""):
    """A copy of `node` where each list of inlines has gone through `change(list, at)`."""
    if isinstance(node, dict):
        if node.get("t") == "Div":
            at = dict(node["c"][0][2]).get("at", at)
        return {key: rewrite_lists(value, change, at) for key, value in node.items()}
    if not isinstance(node, list):
        return node
    if any(isinstance(n, dict) and n.get("t") == "Str" for n in node) and all(isinstance(n, dict) for n in node):
        node = change(node, at)
    return [rewrite_lists(n, change, at) for n in node]
