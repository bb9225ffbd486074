"""What the loop promises beside its results: images in any form and place, precision, progress, several processes."""
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import environment

from vae_gmm.data import SubsetImagesFromNPZ, as_images
from vae_gmm.files import InputError
from vae_gmm.gmm import MixturePrior
from vae_gmm.training import TrainConfig, fit_vae, make_optimizer
from vae_gmm.vae import VAE

CONFIG = TrainConfig(epochs=2, batch_size=16, augment=True, noise_std=0.1)


@pytest.fixture(scope="module")
def x(digits):
    return as_images(digits[0])[:60]


def fit(x, config=CONFIG, **options):
    torch.manual_seed(0)
    model = VAE()
    return model, fit_vae(model, x[:40], x[40:], config, **options)


def rows(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]


@pytest.fixture(scope="module")
def plain(x):
    return fit(x)


def same(a, b):
    return all(torch.equal(s, t) for s, t in zip(a.state_dict().values(), b.state_dict().values()))


def test_images_that_stay_behind_give_the_same_bits(x, plain):
    "The loader's workers hand out the same batches in the same order and draw no random numbers of the run's."
    model, history = fit(x, on_device=False)
    assert same(model, plain[0]) and rows(history) == rows(plain[1])


@pytest.mark.parametrize("form", ["bytes", "vectors", "a file", "a file, flattened"])
def test_every_form_of_the_images_gives_the_same_bits(digits, plain, form, tmp_path):
    images = digits[0][:60]
    def given(name, part):
        if form == "bytes": return part
        if form == "vectors": return as_images(part).flatten(1)
        np.savez(tmp_path / f"{name}.npz", data=part)
        return SubsetImagesFromNPZ(tmp_path / f"{name}.npz", flatten="flat" in form)
    torch.manual_seed(0)
    model = VAE()
    fit_vae(model, given("train", images[:40]), given("val", images[40:]), CONFIG)
    assert same(model, plain[0])


def test_no_global_state_is_left_changed(x, plain):
    def switches():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.get_num_threads()
    torch.set_float32_matmul_precision("medium")
    try:
        model = VAE()
        random, before = torch.get_rng_state(), switches()
        fit_vae(model, x[:40], x[40:], CONFIG)
        assert torch.equal(torch.get_rng_state(), random) and switches() == before
        assert same(fit(x)[0], plain[0])  # the caller's setting does not change the run
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_other_precisions_train_float32_weights(x, plain, precision, tmp_path):
    from dataclasses import replace
    config, path = replace(CONFIG, precision=precision), tmp_path / "run.safetensors"
    model, history = fit(x, config, checkpoint=path)
    again, more = fit(x, config, checkpoint=path, resume=True)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert same(model, again) and rows(history) == rows(more)
    if precision == "bfloat16":  # close to float32, and not float32
        assert not same(model, plain[0])
        exact = [row["val_loss"] for row in plain[1].rows]
        assert [row["val_loss"] for row in history.rows] == pytest.approx(exact, rel=0.02)
    with pytest.raises(InputError, match=f"other settings .precision={precision}."):
        fit(x, checkpoint=path, resume=True)


def test_one_line_of_progress(x, capsys):
    fit(x, progress=True)
    line = [line for line in capsys.readouterr().err.split("\r") if "1/2" in line or "2/2" in line][-1]
    assert re.search(r"[12]/2 \[\d+:\d+<\d+:\d+,.*train=[\d.]+, val=[\d.]+, lr=1\.0e-03\]", line), line
    fit(x)
    assert capsys.readouterr().err == ""  # no terminal, no bar


def test_the_history_as_csv(plain, tmp_path):
    import pandas as pd
    plain[1].to_csv(tmp_path / "history.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), plain[1].table)
    with pytest.raises(InputError, match="does not exist"):
        plain[1].to_csv(tmp_path / "missing" / "history.csv")


def test_an_epoch_reads_no_number_from_the_device(x, monkeypatch):
    "A tensor is turned into numbers once an epoch, whatever the number of batches: nothing waits for a GPU in between."
    import vae_gmm.training as training
    model, reads = VAE(), []
    optimizer, _ = make_optimizer(model, len(x), CONFIG)
    for name in ("item", "cpu", "tolist", "__float__", "__bool__", "numpy"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name,
                            lambda self, *args, real=real, name=name: (reads.append(name), real(self, *args))[1])
    training.train_epoch(model, x, optimizer, CONFIG)
    assert reads == ["cpu"], reads


# torchrun -------------------------------------------------------------------------------------------------------------

def train_alike(out):
    """What each process runs: both stages without dropout and with z = mu, the only draws that are not shared."""
    class Still(VAE):
        def reparameterize(self, mu, logvar, generator=None): return mu
    from vae_gmm.data import embedded_digits
    images = as_images(embedded_digits()[0][::100])
    torch.manual_seed(0)
    model, prior = Still(dropout=0), MixturePrior(3)
    history = fit_vae(model, images[:35], images[35:], TrainConfig(epochs=2, prior_epochs=2, batch_size=16), prior,
                      checkpoint=Path(out, "run.safetensors"), resume=True,
                      callback=lambda history: print("epoch", os.environ.get("RANK", "0"), flush=True))
    rank = os.environ.get("RANK", "0")
    torch.save([[row.get("val_loss", row["train_loss"]) for row in history.rows], history.stopped, history.best_epoch,
                [*(p.detach() for p in model.parameters()), *prior.mixture]], Path(out, f"{rank}.pt"))


def torchrun(out, processes):
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run([*command, __file__, out], env=environment(), stdout=subprocess.PIPE, text=True, timeout=600,
                          check=True).stdout


def test_two_processes_train_as_one(tmp_path):
    pytest.importorskip("lightning_fabric")
    one, two = tmp_path / "one", tmp_path / "two"
    torchrun(one, 1)
    assert torchrun(two, 2).split() == ["epoch", "0"] * 4  # the first one speaks, and writes
    alone, first, second = (torch.load(path, weights_only=True) for path in (one / "0.pt", two / "0.pt", two / "1.pt"))
    assert first[:3] == second[:3] and all(torch.equal(a, b) for a, b in zip(first[3], second[3]))
    assert {p.name for p in two.iterdir()} == {"run.safetensors", "0.pt", "1.pt"}
    print("losses of one process", alone[0], "and of two", first[0])
    assert first[0] == pytest.approx(alone[0], rel=1e-6)


if __name__ == "__main__":
    train_alike(sys.argv[1])
