"""A network is trained once: the name under which it is kept changes with all that decides about the training."""
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from commands import Forked
from test_house import LIB, Imports, modules

from vae_gmm import checkpoint
from vae_gmm.checkpoint import kept
from vae_gmm.files import InputError
from vae_gmm.training import TrainConfig, fit_vae
from vae_gmm.vae import VAE

TRAIN = """
import hashlib, json, sys, time
import torch
from vae_gmm.checkpoint import kept
from vae_gmm.training import TrainConfig, fit_vae
from vae_gmm.vae import VAE
torch.manual_seed(0)
model, x, config, epochs = VAE(), torch.rand(12, 1, 28, 28), TrainConfig.fast(epochs=2, batch_size=4), []
with kept(model, x, config) as path:
    time.sleep(float(sys.argv[1]))
    fit_vae(model, x[:8], x[8:], config, checkpoint=path, resume=True, callback=lambda history: epochs.append(1))
weights = b"".join(v.numpy().tobytes() for v in model.state_dict().values())
print(json.dumps([path.name, len(epochs), hashlib.sha256(weights).hexdigest()]))
"""


def start(lib, folder, pause=0):
    """A process that trains for two epochs, with the package that lies in `lib`; prints name, epochs trained, bits."""
    env = os.environ | {"PYTHONPATH": str(lib), "VAE_GMM_KEPT": str(folder)}
    return Forked(folder.parent, TRAIN, str(pause), env=env)


def result(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return json.loads(out)


@pytest.fixture
def copy(tmp_path):
    """A copy of the package."""
    shutil.copytree(LIB, tmp_path / "lib" / "vae_gmm", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "lib"


def test_a_changed_line_of_the_code_is_trained_anew(copy, tmp_path):
    name, trained, bits = result(start(copy, tmp_path / "kept"))
    assert trained == 2
    assert result(start(copy, tmp_path / "kept")) == [name, 0, bits]  # as it is kept, bit for bit
    module = copy / "vae_gmm" / "vae.py"
    text = module.read_text(encoding="utf-8")
    changed = re.sub(r"(kl = )", r"\1 2 *", text, count=1)
    assert changed != text
    module.write_text(changed, encoding="utf-8")
    other, trained, other_bits = result(start(copy, tmp_path / "kept"))
    assert trained == 2 and other != name and other_bits != bits
    assert [path.name for path in (tmp_path / "kept").glob("*.safetensors")] == [other]  # the outdated one is gone


def test_two_processes_train_once(tmp_path):
    both = [result(process) for process in [start(LIB.parent, tmp_path / "kept", 2) for _ in range(2)]]
    assert sorted(trained for _, trained, _ in both) == [0, 2]
    assert both[0][0] == both[1][0] and both[0][2] == both[1][2]


def test_after_a_kill_the_next_process_goes_on(tmp_path):
    folder = tmp_path / "kept"
    first = start(LIB.parent, folder, 600)
    while not list(folder.glob("*.lock")):
        assert first.poll() is None
    first.kill()
    first.communicate()
    assert result(start(LIB.parent, folder))[1] == 2


def test_every_module_that_a_training_imports_is_in_the_name():
    known, found, ahead = modules(LIB), set(), ["training"]
    while ahead:
        name = ahead.pop()
        found.add(name)
        ahead += [target for _, target, _ in Imports(name, known[name], known).found if target not in found]
    assert set(checkpoint.code_of("")) == found - {"__init__"}  # what lies there is a version
    assert {"files", "data", "vae", "gmm", "devices", "checkpoint", "training"} <= found


def test_the_module_of_each_object_is_in_the_name_wherever_it_is_written():
    class VAEGMM:  # as in the notebook that exports it
        pass

    from vae_gmm.classifier import VAEGMM as exported
    needed = set(checkpoint.code_of(""))
    for clf in VAEGMM(), exported():
        assert set(checkpoint.code_of(checkpoint.described([clf]))) - needed == {"classifier"}
    assert set(checkpoint.code_of(checkpoint.described(("VAEGMM", TrainConfig())))) == needed


def test_each_module_counts_and_line_ends_do_not(copy, monkeypatch):
    def name():
        return checkpoint.code_fingerprint("", checkpoint.sources(copy / "vae_gmm"))

    found = {name()}
    needed = checkpoint.code_of("")
    for module in sorted(path.stem for path in (copy / "vae_gmm").glob("*.py")):
        path = copy / "vae_gmm" / f"{module}.py"
        text = path.read_bytes()
        path.write_bytes(text.replace(b"\n", b"\r\n"))
        assert name() in found and (len(found) == 1 or name() == before)
        before = name()
        path.write_bytes(text + b"x = 1\n")
        assert (name() != before) == (module in needed)
        found.add(name())
        path.write_bytes(text)
    monkeypatch.setattr(checkpoint, "version", lambda library: "9.9")
    found.add(name())
    assert len(found) == len(needed) + 2


def test_an_unfinished_training_goes_on_and_a_finished_one_returns(tmp_path):
    x, config = torch.rand(12, 1, 28, 28, generator=torch.Generator().manual_seed(0)), TrainConfig(epochs=2)

    def fit(epochs):
        torch.manual_seed(0)
        model, trained = VAE(), []

        def count(history):
            trained.append(len(history.rows))
            if len(trained) == epochs:
                raise RuntimeError("killed")
        with kept(model, x, config, folder=tmp_path) as path:
            history = fit_vae(model, x[:8], x[8:], config, checkpoint=path, resume=True, callback=count)
        return trained, history.rows, model.state_dict()

    with pytest.raises(RuntimeError, match="killed"):
        fit(1)
    (trained, rows, weights), (again, same_rows, same) = fit(None), fit(None)
    assert trained == [2] and again == [] and same_rows == rows
    assert all(torch.equal(same[name], weights[name]) for name in weights)


@dataclass
class Settings:
    lr: float = 0.1
    layers: tuple = (1, 2)


class Prior:
    def __init__(self, shrinkage):
        self.shrinkage, self.mixture = shrinkage, None


def name(*what, folder):
    with kept(*what, folder=folder) as path:
        return path.name


def test_what_is_different_has_different_names(tmp_path):
    torch.manual_seed(0)
    images = torch.rand(3, 1, 28, 28)
    changed = images.clone()
    changed[2, 0, 27, 27] += 1e-6
    things = [images, changed, images[:2], images.double(), images.flatten(1), images.numpy(), [images], (images,),
              Settings(), Settings(0.2), Settings(layers=(1, 3)), Prior(0.6), Prior(0.3), VAE(), VAE(dropout=0.1),
              VAE(2), TrainConfig(), TrainConfig(seed=1), TrainConfig.fast(), 1, 1.0, "1", True, None, {"a": 1},
              {"a": "1"}, [1, 2], (1, 2), [[1], 2], np.arange(2), np.arange(2.0), np.array(["a", None], object),
              pd.Series(range(2000)), pd.Series([*range(1000), 0, *range(1001, 2000)]), pd.Series(["a", "b"]), Settings]
    names = [name(thing, folder=tmp_path) for thing in things]
    assert len(set(names)) == len(names)
    assert name(1, 2, folder=tmp_path) not in names and name(folder=tmp_path) not in names


def test_what_is_the_same_has_the_same_name_in_each_process(tmp_path):
    code = ("import sys, torch, numpy\nfrom vae_gmm.checkpoint import kept\nfrom vae_gmm.vae import VAE\n"
            "from vae_gmm.training import TrainConfig\ntorch.manual_seed(0)\n"
            "with kept(VAE(), torch.ones(2, 784), numpy.arange(3), TrainConfig(), 'a', folder=sys.argv[1]) as path: "
            "print(path.name)")
    there = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True).stdout
    torch.manual_seed(0)
    here = name(VAE(), torch.ones(2, 784), np.arange(3), TrainConfig(), "a", folder=tmp_path)
    assert there.split("-")[0] == here.split("-")[0]  # what follows is the code's


@pytest.mark.parametrize("thing", [lambda: 1, object(), torch.Generator(), np.random.default_rng(), fit_vae],
                         ids=["function", "object", "torch generator", "numpy generator", "function of ours"])
def test_what_has_no_text_of_its_own_is_refused(tmp_path, thing):
    with pytest.raises(InputError, match="what: .* is named by its address; expected"):
        name([thing], folder=tmp_path)


def test_where_networks_are_kept(tmp_path, monkeypatch):
    monkeypatch.delenv("VAE_GMM_KEPT", raising=False)
    project = tmp_path / "project"
    (project / "build" / "nbs").mkdir(parents=True)
    (project / "settings.ini").write_text("[DEFAULT]\nlib_name = vae_gmm\n")
    for place in project, project / "build" / "nbs":
        monkeypatch.chdir(place)
        assert checkpoint.kept_folder() == project / "build" / "kept"
    (project / "settings.ini").write_text("[DEFAULT]\nlib_name = another\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert checkpoint.kept_folder() == tmp_path / "cache" / "vae_gmm" / "kept"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checkpoint.kept_folder() == tmp_path / ".cache" / "vae_gmm" / "kept"
    monkeypatch.setenv("VAE_GMM_KEPT", str(tmp_path / "chosen"))
    assert checkpoint.kept_folder() == tmp_path / "chosen"
    (tmp_path / "chosen").write_text("a file")
    with pytest.raises(InputError, match="cannot be made .* expected the name of a folder"):
        name(1, folder=None)


def test_git_does_not_see_them_and_make_clean_removes_them():
    root = Path(LIB).parent
    assert "build/" in (root / ".gitignore").read_text().split()
    assert re.search(r"rm -rf .*\bbuild\b", (root / "Makefile").read_text())
