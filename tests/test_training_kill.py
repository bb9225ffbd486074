"""Checkpoints of a training run: killed at random moments, resumed, cut short, on a full disk.

    VAE_GMM_KILLS=20 pytest tests/test_training_kill.py     with 20 kills instead of 3
"""
import json
import os
import random
import resource
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from commands import Forked

KILLS = int(os.environ.get("VAE_GMM_KILLS", 3))
SETTINGS = dict(epochs=2, prior_epochs=3 * KILLS - 1, batch_size=8, augment=True, noise_std=0.1, lr_patience=1,
                stop_patience=1000)
ONE = dict(prior_epochs=0)  # stage


def images():
    """16 images to train on, 8 to validate with; noise serves here as well as digits."""
    import torch
    x = torch.rand(24, 784, generator=torch.Generator().manual_seed(0))
    return x[:16], x[16:]


def fit(folder, **options):
    """One run with its checkpoint in `folder`: the model, its history and its mixture."""
    import torch
    from vae_gmm.gmm import MixturePrior
    from vae_gmm.training import TrainConfig, fit_vae
    from vae_gmm.vae import VAE
    torch.manual_seed(0)
    model = VAE()
    config = TrainConfig(**{**SETTINGS, **options.pop("settings", {})})
    path, prior = Path(folder, "run.safetensors"), MixturePrior(3) if config.prior_epochs else None
    return model, fit_vae(model, *images(), config, prior, checkpoint=path, progress=False, **options), prior


def child(folder):
    """What the killed process does: go on with the run, say each epoch, and write the end of it."""
    from safetensors.torch import save_file
    model, history, prior = fit(folder, resume=True, callback=lambda history: print(len(history.rows), flush=True))
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]
    Path(folder, "history.json").write_text(json.dumps([rows, history.best_epoch, history.stopped]))
    tensors = model.state_dict() | prior.state_dict()
    save_file({k: v.contiguous() for k, v in tensors.items()}, Path(folder, "weights.safetensors"))


def start(folder):
    return Forked(folder, "from test_training_kill import child; child('.')")


def kill_somewhere(folder, rng):
    """Go on with the run for one or two epochs and kill it within the next half second; the last epoch it reported."""
    process = start(folder)
    try:
        for _ in range(rng.randint(1, 2)):
            epoch = int(process.stdout.readline())
        time.sleep(rng.random() / 2)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return epoch


def test_killed_and_resumed_is_the_undisturbed_run(tmp_path):
    for name in ("whole", "killed"): (tmp_path / name).mkdir()
    undisturbed = start(tmp_path / "whole")
    rng, seen, half_written = random.Random(), [], 0
    for _ in range(KILLS):
        seen.append(kill_somewhere(tmp_path / "killed", rng))
        half_written += len(list((tmp_path / "killed").glob(".*.part")))
    assert start(tmp_path / "killed").wait() == 0 == undisturbed.wait()
    print(f"{KILLS} kills, after epochs {seen} of {3 * KILLS + 1}, {half_written} in the middle of a checkpoint")
    assert seen == sorted(set(seen)) and seen[-1] > SETTINGS["epochs"]  # each run went on from the last; into stage two
    for name in ("history.json", "weights.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    left = {p.name for p in (tmp_path / "killed").iterdir()}
    assert left == {"run.safetensors", "history.json", "weights.safetensors"}


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory):
    """The bytes of a good checkpoint after one epoch."""
    folder = tmp_path_factory.mktemp("good")
    fit(folder, settings=dict(epochs=1) | ONE)
    return (folder / "run.safetensors").read_bytes()


def foreign(tmp_path):
    from safetensors.numpy import save
    return save({"model.fc1.weight": np.ones(3, "float32")})


@pytest.mark.parametrize("damage, complaint", [
    (lambda good: good[:-1], "not a complete checkpoint"),
    (lambda good: good[:5000], "not a complete checkpoint"),
    (lambda good: good[:7], "not a complete checkpoint"),
    (lambda good: b"", "not a complete checkpoint"),
    (lambda good: b"\x80\x02}q\x00." + good, "not a complete checkpoint"),
    (lambda good: foreign(good), "not a training checkpoint"),
    (lambda good: good.replace(b'optimizer.3.exp_avg"', b'optimizer.3.exp_bvg"'), "damaged checkpoint"),
    (lambda good: good.replace(b'rng.cpu"', b'rng.cpv"'), "damaged checkpoint"),
], ids=["last byte gone", "half the header", "seven bytes", "empty", "pickle", "another program's", "a moment renamed",
        "no random state"])
def test_a_damaged_or_foreign_checkpoint_is_refused_and_left_alone(tmp_path, one_epoch, damage, complaint):
    from vae_gmm.files import InputError
    path, bad = tmp_path / "run.safetensors", damage(one_epoch)
    path.write_bytes(bad)
    with pytest.raises(InputError, match=complaint) as err:
        fit(tmp_path, resume=True, settings=dict(epochs=1) | ONE)
    assert str(path) in str(err.value) and "move it away" in str(err.value)
    assert path.read_bytes() == bad


@contextmanager
def no_file_above(size):
    """Within the block this process cannot write files larger than `size` bytes: refused, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    from vae_gmm.files import InputError
    path, two = tmp_path / "run.safetensors", dict(epochs=2) | ONE
    whole, *_ = fit(tmp_path, settings=two)
    path.unlink()

    def interrupt(history): raise KeyboardInterrupt
    fit(tmp_path, settings=two, callback=interrupt)
    good = path.read_bytes()
    with no_file_above(1_000_000), pytest.raises(InputError, match="cannot be written"):
        fit(tmp_path, resume=True, settings=two)
    assert path.read_bytes() == good and [p.name for p in tmp_path.iterdir()] == [path.name]
    resumed, history, _ = fit(tmp_path, resume=True, settings=two)
    assert len(history.rows) == 2
    assert all((a == b).all() for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))
