"""The package on its way to others: sources, wheel, an installation that may not be written."""
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
import yaml

pytest.importorskip("setuptools")

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("vae_gmm", "tests", "experiments", "setup.py", "settings.ini", "MANIFEST.in", "README.md", "LICENSE",
           "CHANGELOG.md", "CITATION.cff")


def python(*words, cwd, **changes):
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, env={**env, **changes}, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(kind, source, out):
    """An sdist or a wheel, without an isolated environment, which would be downloaded."""
    python("-c", f"import sys; from setuptools.build_meta import __legacy__ as b; b.build_{kind}(sys.argv[1])", out,
           cwd=source)
    return next(out.glob("*.tar.gz" if kind == "sdist" else "*.whl"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package, installed from a wheel from an sdist, in a folder of its own; what is in the sdist."""
    tmp = tmp_path_factory.mktemp("it's a path")
    (tmp / "sources").mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp / "sources" / name)
    (tmp / "sources" / "vae_gmm" / "._data.py").write_bytes(b"\0Mac OS X\xff")
    sdist = build("sdist", tmp / "sources", tmp)
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
        archive.extractall(tmp / "unpacked", **dict(filter="data") if hasattr(tarfile, "data_filter") else {})
    wheel = build("wheel", next((tmp / "unpacked").iterdir()), tmp)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp / "site")
    for path in (tmp / "site").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield tmp / "site", names
    for path in (tmp / "site").rglob("*"):
        path.chmod(0o755)


def test_the_sdist_has_what_the_wheel_needs_and_the_measurements(installed):
    site, names = installed
    programs = {f"experiments/{path.name}" for path in (ROOT / "experiments").glob("*.py")}
    assert programs | {"experiments/accuracy.json"} <= set(names)
    assert {"settings.ini", "README.md", "LICENSE", "CHANGELOG.md", "setup.py", "CITATION.cff"} <= set(names)
    assert not [name for name in names if name.startswith("tests") or "/._" in name]


DATA = {Path("vae_gmm", name) for name in ("explorer.html", "pretrained.safetensors", "PRETRAINED.md")}


def test_the_wheel_has_every_module(installed):
    site, _ = installed
    modules = {p.relative_to(ROOT) for p in (ROOT / "vae_gmm").rglob("*.py") if not p.name.startswith("._")}
    assert {p.relative_to(site) for p in (site / "vae_gmm").rglob("*") if p.is_file()} == modules | DATA
    assert {p.name for p in site.iterdir() if not p.name.endswith(".dist-info")} == {"vae_gmm"}


def test_what_is_installed_can_be_used(installed, tmp_path):
    site, _ = installed
    code = "import vae_gmm; from vae_gmm import VAE, VAEGMM, GaussianMixture; print(vae_gmm.__file__)"
    assert python("-c", code, cwd=tmp_path, PYTHONPATH=str(site)).strip() == str(site / "vae_gmm" / "__init__.py")
    code = "from vae_gmm import VAEGMM; print(VAEGMM.pretrained().classes_.tolist())"
    assert python("-c", code, cwd=tmp_path, PYTHONPATH=str(site)).strip() == "[1, 4, 8]"
    assert "train" in python("-m", "vae_gmm", "--help", cwd=tmp_path, PYTHONPATH=str(site))
    meta = next(site.glob("*.dist-info"))
    assert "vae_gmm=vae_gmm.cli:main" in (meta / "entry_points.txt").read_text().replace(" ", "")
    assert "Requires-Dist: torch>=2.6" in (meta / "METADATA").read_text(encoding="utf-8")


def metadata(site):
    """The wheel's METADATA: {name: values}."""
    from email.parser import HeaderParser
    found = HeaderParser().parsestr(next(site.glob("*.dist-info/METADATA")).read_text(encoding="utf-8"))
    return {name: found.get_all(name) for name in found}


def test_the_metadata_are_complete(installed):
    from packaging.requirements import Requirement
    meta = metadata(installed[0])
    assert {url.partition(", ")[0] for url in meta["Project-URL"]} == {"Source", "Issues", "Changelog"}
    assert all(version in " ".join(meta["Classifier"]) for version in ("3.10", "3.11", "3.12", "3.13"))
    assert not [line for line in meta["Classifier"] if line.startswith("License")]  # it has a field of its own
    assert meta["Description-Content-Type"] == ["text/markdown"] and meta["Requires-Python"] == [">=3.10"]
    assert meta["License-Expression"] == ["Apache-2.0"] if "License-Expression" in meta else meta["License"]
    required = [Requirement(line) for line in meta["Requires-Dist"]]
    assert {str(r.marker) for r in required if r.marker} == {'extra == "dev"', 'extra == "teaching"'}
    assert sorted(meta["Provides-Extra"]) == ["dev", "teaching"]


IMPORTED = {"PIL": "pillow", "sklearn": "scikit-learn", "skimage": "scikit-image",
            "array_api_compat": "array-api-compat"}
OPTIONAL = {"lightning_fabric"}  # for several processes, by those who ask for them


def test_what_the_package_imports_is_required(installed):
    """Each module that the package imports, at the top or in a function, is in Python, or a requirement."""
    import ast
    from packaging.requirements import Requirement
    lines = metadata(installed[0])["Requires-Dist"]
    needed = {Requirement(line).name for line in lines if "extra" not in line} | OPTIONAL
    for path in (ROOT / "vae_gmm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                     [node.module] if isinstance(node, ast.ImportFrom) and not node.level else [])
            for name in (name.partition(".")[0] for name in names):
                assert (name in sys.stdlib_module_names or name == "vae_gmm" or
                        IMPORTED.get(name, name) in needed), f"{path.name} imports {name}"


def test_citation():
    """CITATION.cff has the fields of its format, and says what the report and settings.ini say."""
    from report import cells
    cite = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    meta = yaml.safe_load((ROOT / "report" / "metadata.yaml").read_text(encoding="utf-8"))
    settings = cells.settings(ROOT)
    assert {"cff-version", "message", "title", "authors"} <= set(cite)
    assert set(cite) <= {"cff-version", "message", "type", "title", "authors", "version", "license", "repository-code",
                         "keywords"}
    assert cite["cff-version"] == "1.2.0" and cite["type"] == "software" and cite["license"] == "Apache-2.0"
    assert cite["title"] == f"{meta['title']}: {meta['subtitle']}" and cite["keywords"] == meta["keywords"][:5]
    assert [author["name"] for author in cite["authors"]] == [author["name"] for author in meta["authors"]]
    assert cite["version"] == settings["version"] and cite["repository-code"] == settings["git_url"]


def index_answers():
    """Whether pip can get a small package here."""
    with tempfile.TemporaryDirectory() as folder:
        return not subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "0",
                                   "--timeout", "10", "-d", folder, "click"], capture_output=True).returncode


def test_in_an_empty_environment(installed, tmp_path):
    """With the runtime requirements alone, in the versions that are installed here: a whole session works."""
    if not os.environ.get("VAE_GMM_EMPTY"):
        pytest.skip("takes 2 GB and minutes; set VAE_GMM_EMPTY=1 to have it")
    if not index_answers():
        pytest.skip("no package index answers")
    import venv
    venv.create(tmp_path / "env", with_pip=True)
    program = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")
    wheel = next(installed[0].parent.glob("*.whl"))
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def do(*words):
        done = subprocess.run([str(program / words[0]), *map(str, words[1:])], cwd=tmp_path, env=env, text=True,
                              capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    do("python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    do("python", "-m", "pip", "check")
    do("vae_gmm", "data")
    for words in ("test_classifier", "show", "test_reconstruction"):
        do("vae_gmm", words, "mnist_1_4_8_test.npz", "--model", "pretrained")
    do("vae_gmm", "train", "mnist_1_4_8_val.npz", "mnist_1_4_8_val.npz", "--epochs", "1")
    assert "vae.pth: network" in do("vae_gmm", "info", "vae.pth")
