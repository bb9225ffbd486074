"""The package on its way to others: sources, wheel, an installation that may not be written."""
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools")

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("vae_gmm", "tests", "experiments", "setup.py", "settings.ini", "MANIFEST.in", "README.md", "LICENSE",
           "CHANGELOG.md")


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
        archive.extractall(tmp / "unpacked", filter="data")
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
    assert programs | {"experiments/first_edition.json"} <= set(names)
    assert {"settings.ini", "README.md", "LICENSE", "CHANGELOG.md", "setup.py"} <= set(names)
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
