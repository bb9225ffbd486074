"""The checkpoint's file format, spelled out: files of earlier versions load and are resumed; others are refused."""
import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vae_gmm.checkpoint import CHECKPOINT_FORMAT, fingerprint, load_checkpoint, save_checkpoint
from vae_gmm.data import as_images
from vae_gmm.files import InputError
from vae_gmm.training import TrainConfig, fit_vae
from vae_gmm.vae import VAE

CONFIG = TrainConfig(epochs=2, batch_size=16, augment=True, noise_std=0.1)
SETTINGS = {"epochs", "batch_size", "lr", "schedule", "lr_factor", "lr_patience", "stop_patience", "beta",
            "beta_warmup", "train_share", "augment", "flip", "noise_std", "precision", "max_minutes", "seed", "dropout"}
ROW = ["epoch", "stage", "train_loss", "train_reconstruction", "train_kl", "val_loss", "val_reconstruction", "val_kl",
       "lr", "seconds"]
# since the first edition
NEW = {"vary_pose", "prior_epochs", "prior_lr", "agreement", "label_weight", "shrinkage", "equal_weights",
       "weight_prior", "n_components", "network"}


@pytest.fixture(scope="module")
def x(digits):
    return as_images(digits[0])[:60]


def fit(x, config=CONFIG, dropout=0.2, **options):
    torch.manual_seed(0)
    model = VAE(dropout=dropout)
    return model, fit_vae(model, x[:40], x[40:], config, **options)


@pytest.fixture(scope="module")
def whole(x, tmp_path_factory):
    """An undisturbed run: its model, its history and its checkpoint."""
    path = tmp_path_factory.mktemp("whole") / "run.safetensors"
    return *fit(x, checkpoint=path), path


def tensors_and_header(path):
    with safe_open(path, "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, json.loads(file.metadata()["vae_gmm"])


def test_what_is_in_the_file(x, whole):
    tensors, meta = tensors_and_header(whole[2])
    names = list(VAE().state_dict())
    assert set(tensors) == {"rng.cpu", *(f"{part}.{name}" for part in ("model", "best") for name in names),
                            *(f"optimizer.{i}.{k}" for i in range(28) for k in ("step", "exp_avg", "exp_avg_sq"))}
    assert set(meta) == {"format", "config", "train", "history", "scheduler", "groups"}
    assert meta["format"] == "vae_gmm checkpoint 1" == CHECKPOINT_FORMAT
    assert set(meta["config"]) >= SETTINGS and meta["config"]["dropout"] == 0.2
    assert set(meta["history"]) == {"rows", "best_epoch", "stopped"} and list(meta["history"]["rows"][0]) == ROW
    train, val = meta["train"].split("; ")
    assert train.startswith("40 images, ") and val == fingerprint(x[40:].flatten(1))  # as for vectors of 784
    assert meta["groups"][0]["lr"] == 1e-3 and meta["groups"][0]["params"] == list(range(28))


HEADER = {  # as the first edition wrote it, for a linear model of two weights
    "format": "vae_gmm checkpoint 1", "config": {"epochs": 7}, "train": "3 images, 0123456789abcdef",
    "history": {"rows": [{"epoch": 1, "val_loss": 2.5}], "best_epoch": 1, "stopped": "not started"},
    "scheduler": {"factor": 0.5, "patience": 5, "cooldown": 0, "cooldown_counter": 0, "mode": "min", "threshold": 1e-4,
                  "threshold_mode": "rel", "best": 2.5, "num_bad_epochs": 4, "mode_worse": float("inf"), "eps": 1e-8,
                  "last_epoch": 1, "_last_lr": [0.01], "default_min_lr": 0, "min_lrs": [0]},
    "groups": [{"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0, "amsgrad": False, "maximize": False,
                "foreach": None, "capturable": False, "differentiable": False, "fused": True,
                "decoupled_weight_decay": False, "params": [0]}]}


def first_edition(path, **changes):
    """A checkpoint of the first edition, from its spelled-out format."""
    tensors = {"model.weight": torch.tensor([[1.0, 2.0]]), "best.weight": torch.tensor([[3.0, 4.0]]),
               "optimizer.0.step": torch.tensor(9.0), "optimizer.0.exp_avg": torch.tensor([[0.5, 0.25]]),
               "optimizer.0.exp_avg_sq": torch.tensor([[0.125, 1.0]]),
               "rng.cpu": torch.Generator().manual_seed(5).get_state()}
    save_file(tensors, path, {"vae_gmm": json.dumps({**HEADER, **changes})})


def new_state():
    model = torch.nn.Linear(2, 1, bias=False)
    adam = torch.optim.Adam(model.parameters(), lr=0.1)
    return dict(model=model, optimizer=adam, scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(adam), best={},
                history=dict(rows=[], best_epoch=0, stopped="not started"))


def test_a_checkpoint_of_the_first_edition_loads(tmp_path):
    path, state = tmp_path / "run.ckpt", new_state()
    first_edition(path)
    with torch.random.fork_rng():
        best, history = load_checkpoint(path, state, {"epochs": 7}, HEADER["train"])
        drawn = torch.rand(3)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert history == HEADER["history"] and best["weight"].tolist() == [[3, 4]]
    assert state["model"].weight.tolist() == [[1, 2]]
    means = state["optimizer"].state_dict()["state"][0]
    assert means["step"] == 9 and means["exp_avg"].tolist() == [[0.5, 0.25]]
    assert state["optimizer"].param_groups[0]["lr"] == 0.01 and state["scheduler"].num_bad_epochs == 4
    state |= dict(best=best, history=history)
    save_checkpoint(path, state, {"epochs": 7}, HEADER["train"])
    tensors, meta = tensors_and_header(path)
    assert set(meta) == set(HEADER) and tensors["best.weight"].tolist() == [[3, 4]]


def test_a_run_of_the_first_edition_goes_on(x, whole, tmp_path):
    "Its file knows no stages and none of the settings that came with them: it belongs to a run of one stage."
    path = tmp_path / "run.safetensors"
    fit(x, replace(CONFIG, epochs=1), checkpoint=path)
    tensors, meta = tensors_and_header(path)
    assert NEW | SETTINGS == set(meta["config"])
    meta["config"] = {k: v for k, v in meta["config"].items() if k not in NEW} | dict(epochs=2)
    meta["history"]["rows"] = [{k: v for k, v in row.items() if k != "stage"} for row in meta["history"]["rows"]]
    save_file(tensors, path, {"vae_gmm": json.dumps(meta)})
    for change in (dict(vary_pose=True), dict(prior_epochs=2)):
        with pytest.raises(InputError, match="other settings"):
            fit(x, replace(CONFIG, **change), checkpoint=path, resume=True)
    model, history = fit(x, checkpoint=path, resume=True)
    assert len(history.rows) == 2 and all(map(torch.equal, model.state_dict().values(), whole[0].state_dict().values()))


def test_a_step_size_that_is_a_tensor_is_written_as_a_number(tmp_path):
    "A recorded step on a GPU keeps it in one, and the schedule repeats it."
    path, state = tmp_path / "run.ckpt", new_state()
    first_edition(path)
    with torch.random.fork_rng():
        state["best"], _ = load_checkpoint(path, state, {"epochs": 7}, HEADER["train"])
    state["optimizer"].param_groups[0]["lr"] = torch.tensor(0.25)
    state["scheduler"].step(3.0)
    assert torch.is_tensor(state["scheduler"]._last_lr[0])
    save_checkpoint(path, state, {"epochs": 7}, HEADER["train"])
    meta = tensors_and_header(path)[1]
    assert meta["groups"][0]["lr"] == 0.25 and meta["scheduler"]["_last_lr"] == [0.25]


@pytest.mark.parametrize("changes, complaint", [
    (dict(config={"epochs": 8}), r"other settings \(epochs=8\)"),
    (dict(train="4 images, 0123456789abcdef"), "other images"),
    (dict(format="another"), "not a training checkpoint"),
    (dict(history={"rows": []}), "damaged checkpoint"),
    (dict(history=3), "damaged checkpoint"),
    (dict(config=3), "damaged checkpoint"),
    (dict(groups=[]), "damaged checkpoint"),
], ids=str)
def test_another_header_is_refused(tmp_path, changes, complaint):
    first_edition(tmp_path / "run.ckpt", **changes)
    with pytest.raises(InputError, match=f"{complaint}.*move it away"):
        load_checkpoint(tmp_path / "run.ckpt", new_state(), {"epochs": 7}, HEADER["train"])


def test_a_setting_that_the_file_does_not_know_counts_as_its_default(x, whole, tmp_path):
    "A checkpoint from before `precision` existed belongs to a float32 run, and to no other."
    tensors, meta = tensors_and_header(whole[2])
    del meta["config"]["precision"], meta["config"]["dropout"]
    path = tmp_path / "run.safetensors"
    save_file(tensors, path, {"vae_gmm": json.dumps(meta)})
    assert len(fit(x, checkpoint=path, resume=True)[1].rows) == 2
    with pytest.raises(InputError, match=r"other settings \(precision=float32\)"):
        fit(x, replace(CONFIG, precision="bfloat16"), checkpoint=path, resume=True)


def test_a_run_goes_on_after_its_time_is_up(x, whole, tmp_path):
    "The time budget decides nothing but the end, so it may change; the rest of the run is the undisturbed one's."
    path = tmp_path / "run.safetensors"
    _, first = fit(x, replace(CONFIG, max_minutes=1e-9), checkpoint=path)
    assert len(first.rows) == 1 and first.stopped == "time budget of 1e-09 minutes used up"
    model, history = fit(x, checkpoint=path, resume=True)
    assert len(history.rows) == 2 and history.stopped == "all epochs done"
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), whole[0].state_dict().values()))


@pytest.mark.parametrize("change, complaint", [
    (dict(config=replace(CONFIG, lr=1e-2)), r"other settings \(lr=0.001\)"),
    (dict(dropout=0), r"other settings \(dropout=0.2\)"),
    (dict(first=slice(1, None)), "other images"),
    (dict(first=[*range(40), *range(41, 60)]), "other images"),  # one validation image less
], ids=["step size", "dropout", "training images", "validation images"])
def test_a_checkpoint_of_another_run_is_refused_and_left_alone(x, whole, change, complaint):
    before = whole[2].read_bytes()
    images = x[change.pop("first", slice(None))]
    with pytest.raises(InputError, match=complaint):
        fit(images, **change, checkpoint=whole[2], resume=True)
    assert whole[2].read_bytes() == before
