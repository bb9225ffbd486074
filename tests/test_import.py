"""What `import vae_gmm` gives, and what it leaves alone."""
import re
import subprocess
import sys

import pytest
from commands import ROOT, environment

import vae_gmm

HOME = {"VAE": "vae", "GaussianMixture": "mixture.estimator", "VAEGMM": "classifier", "SubsetImagesFromNPZ": "data"}
HEAVY = "torch", "numpy", "scipy", "pandas", "sklearn", "skimage", "matplotlib", "click"


def python(code):
    """What a fresh interpreter prints for this code."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    return done.stdout


def test_import_alone_loads_nothing_heavy():
    code = f"import sys, vae_gmm; print(vae_gmm.__version__, *[m for m in {HEAVY} if m in sys.modules])"
    assert python(code) == f"{vae_gmm.__version__}\n"


@pytest.mark.parametrize("name", HOME)
def test_name_at_the_root(name):
    """In a fresh interpreter each of the four is there, and is the one in its module."""
    module = f"vae_gmm.{HOME[name]}"
    code = f"from vae_gmm import {name} as it; import {module} as home; print(it is home.{name}, it.__module__)"
    assert python(code) == f"True {module}\n"


def test_star_and_dir():
    assert sorted(vae_gmm.__all__) == sorted(HOME)
    assert {*HOME, "__version__"} <= set(dir(vae_gmm))
    assert python("from vae_gmm import *; print(VAE.__name__, VAEGMM.__name__)") == "VAE VAEGMM\n"


def test_a_name_that_is_not_there():
    for name in ("nonsense", "vae_gmm", "__path"):
        with pytest.raises(AttributeError, match=f"module 'vae_gmm' has no attribute '{name}'"):
            getattr(vae_gmm, name)
    with pytest.raises(ImportError):
        from vae_gmm import nonsense  # noqa: F401
    assert not hasattr(vae_gmm, "nonsense")


@pytest.mark.parametrize("words", [[], ["-OO"]], ids=str)
@pytest.mark.parametrize("name", ["cli", "training", "mixture", "mixture.steps"])
def test_a_module_is_no_program(name, words, tmp_path):
    """`python -m` on a module inside says in one line what to type; nothing heavy is loaded for that."""
    done = subprocess.run([sys.executable, *words, "-m", f"vae_gmm.{name}", "info", "nothing.npz"], cwd=tmp_path,
                          capture_output=True, text=True, env=environment())
    said = f"Error: vae_gmm.{name} is no program; type: python -m vae_gmm --help\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_modules_can_be_imported_by_a_program_that_m_has_started(tmp_path):
    (tmp_path / "program.py").write_text("import vae_gmm.files, vae_gmm.cli; print(vae_gmm.files.__name__)")
    for words in (["-m", "program"], ["-mprogram"], ["program.py"]):
        done = subprocess.run([sys.executable, *words, "-m", "vae_gmm.cli"], cwd=tmp_path, capture_output=True,
                              text=True, env=environment())
        assert (done.returncode, done.stdout, done.stderr) == (0, "vae_gmm.files\n", "")


def test_names_of_the_mixture():
    from vae_gmm.mixture import GaussianMixture, fit_best
    assert GaussianMixture is vae_gmm.GaussianMixture and callable(fit_best)


def test_export_keeps_what_is_written_by_hand(tmp_path, monkeypatch):
    """nbdev sets the version in `__init__.py` and leaves the rest as it is."""
    from nbdev.config import add_init, get_config
    monkeypatch.chdir(ROOT)
    text = (ROOT / "vae_gmm" / "__init__.py").read_text()
    assert f'__version__ = "{get_config().version}"\n' in text
    package = tmp_path / "vae_gmm"
    package.mkdir()
    (package / "__init__.py").write_text(re.sub("^__version__ = .*", '__version__ = "of old"', text, flags=re.M))
    add_init(package)
    assert (package / "__init__.py").read_text() == text
