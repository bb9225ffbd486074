"""What has gone wrong before: settings out of range, layers frozen, networks wrapped, and the session around a run."""
import copy
import threading
import warnings
from contextlib import nullcontext
from dataclasses import asdict, replace
from json import dumps

import numpy as np
import pytest
import torch

import vae_gmm.training as training
from vae_gmm.checkpoint import load_checkpoint, save_checkpoint
from vae_gmm.data import SubsetImagesFromNPZ, as_images
from vae_gmm.files import InputError
from vae_gmm.gmm import MixturePrior
from vae_gmm.training import TrainConfig, fit_vae
from vae_gmm.vae import VAE

CONFIG = TrainConfig(epochs=2, batch_size=4, augment=True, noise_std=0.1)


@pytest.fixture(scope="module")
def x(digits):
    return as_images(digits[0])[:12]


def network(frozen=(), seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VAE()
    for name in frozen:
        getattr(model, name).requires_grad_(False)
    return model


def fit(x, model=None, config=CONFIG, **options):
    model = network() if model is None else model
    return model, fit_vae(model, x[:8], x[8:], config, **options)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def plain(x):
    return fit(x)[0]


# settings -------------------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
WHOLE = "epochs", "batch_size", "lr_patience", "stop_patience", "beta_warmup", "seed", "prior_epochs"
REAL = ("lr", "lr_factor", "beta", "noise_std", "train_share", "prior_lr", "agreement", "shrinkage", "label_weight",
        "weight_prior")


@pytest.mark.parametrize("name, value", [
    *((name, value) for name in WHOLE for value in (-1, 8.0, 2.5, NAN, INF, None, True, "8", 2**63, [8], 1j)),
    *((name, 0) for name in (*WHOLE[:4], "lr", "lr_factor", "train_share", "prior_lr", "max_minutes")),
    *((name, value) for name in (*REAL, "max_minutes") for value in (-1, NAN, INF, -INF, True, "1", 10**400, [1.0])),
    *((name, None) for name in REAL), ("train_share", 7), ("lr_factor", 1), ("shrinkage", 1.5),
    *((name, value) for name in ("augment", "flip", "vary_pose", "equal_weights") for value in (1, 0.0, "yes", None)),
    *((name, value) for name in ("schedule", "precision") for value in ("other", None, 1, True, ["plateau"])),
    ("seed", np.int64(-1)), ("batch_size", np.float64(8)), ("lr", np.float32(NAN)), ("epochs", np.array([1, 2])),
], ids=str)
def test_a_setting_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=f"^{name} is .*; expected "):
        TrainConfig(**{name: value})
    with pytest.raises(InputError, match=f"^{name} is .*; expected "):
        replace(TrainConfig.fast(), **{name: value})


@pytest.mark.parametrize("of", [np.int64, np.int32, np.uint8, np.array, torch.tensor], ids=["64", "32", "8", "0d", "t"])
def test_numbers_of_other_libraries_become_numbers_of_python(of):
    settings = dict(epochs=3, batch_size=16, lr_patience=2, stop_patience=4, beta_warmup=1, seed=7)
    real = dict(lr=0.5, lr_factor=0.25, beta=0.5, noise_std=0.5, train_share=0.75, max_minutes=2.0)
    other = dict(augment=np.bool_(True), flip=np.array(False), schedule=np.str_("onecycle"))
    config = TrainConfig(**{k: of(v) for k, v in settings.items()},
                         **{k: f(v) for (k, v), f in zip(real.items(), 2 * [np.float64, np.float32, np.half])}, **other)
    assert config == TrainConfig(**settings, **real, augment=True, schedule="onecycle")
    assert {type(v) for v in asdict(config).values()} == {int, float, bool, str} and dumps(asdict(config))


def test_what_was_right_stays_as_it_was_given():
    config = TrainConfig(beta=0, noise_std=0, lr=1, seed=2**63 - 1, max_minutes=None)
    assert repr(config).count("beta=0,") == 1 and (config.lr, type(config.lr)) == (1, int)


# before the first epoch -----------------------------------------------------------------------------------------------

def frozen_network(): return network([name for name, _ in network().named_children()])


def inference_network():
    with torch.inference_mode():
        return copy.deepcopy(VAE())


@pytest.mark.parametrize("change, complaint", [
    (dict(resume=True), "resume: there is no checkpoint"),
    (dict(model=lambda: network().half()), "weights of type torch.float16; expected float32"),
    (dict(model=lambda: network().bfloat16()), "weights of type torch.bfloat16; expected float32"),
    (dict(model=lambda: network().double()), "weights of type torch.float64; expected float32"),
    (dict(model=lambda: (m := network(), m.fc1.half())[0]), "weights of type torch.float16; expected float32"),
    (dict(model=frozen_network), "all weights are frozen"),
    (dict(model=inference_network), "made in torch.inference_mode"),
    (dict(model=lambda: VAE), "model is of type type"),
    (dict(model=torch.nn.ReLU), "model is of type ReLU"),
    (dict(config=dict(epochs=1)), "config is of type dict; expected a TrainConfig"),
    (dict(callback=3), "callback is of type int; expected a function"),
    (dict(prior=3), "prior is of type int; expected a MixturePrior"),
    (dict(prior=MixturePrior(9)), "train: holds 8 images; expected one or more a component"),
], ids=str)
def test_what_cannot_be_trained_is_refused(x, change, complaint, tmp_path):
    seen, model = [], change.get("model", network)()
    with pytest.raises(InputError, match=complaint):
        fit(x, model, **dict(callback=seen.append) | {k: v for k, v in change.items() if k != "model"})
    assert not seen


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("place", ["missing/run.ckpt", "file/run.ckpt", "", "closed/run.ckpt"])
def test_a_place_that_cannot_be_written_is_refused_before_the_first_epoch(x, tmp_path, place, resume, monkeypatch):
    (tmp_path / "file").write_text("text")
    (tmp_path / "closed").mkdir()
    touch = type(tmp_path).touch
    def refuse(self, *args, **options):  # permissions mean nothing to root
        if self.parent.name == "closed": raise PermissionError(13, "Permission denied")
        touch(self, *args, **options)
    monkeypatch.setattr(type(tmp_path), "touch", refuse)
    seen, model = [], network()
    with pytest.raises(InputError, match="does not exist|cannot be written"):
        fit(x, model, checkpoint=tmp_path / place, resume=resume, callback=seen.append)
    assert not seen and same(model, network()) and sorted(p.name for p in tmp_path.rglob("*")) == ["closed", "file"]


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("asks", [dict(noise_std=0.5), dict(augment=True), dict(augment=True, flip=True)], ids=str)
def test_what_a_data_set_asks_for_is_not_dropped(digits, tmp_path, part, asks):
    np.savez(tmp_path / "some.npz", data=digits[0][:8])
    sets = {name: SubsetImagesFromNPZ(tmp_path / "some.npz", **(asks if name == part else {}))
            for name in ("train", "val")}
    with pytest.raises(InputError, match=f"{part}: a data set with {', '.join(f'{k}={v}' for k, v in asks.items())};"):
        fit_vae(network(), *sets.values(), TrainConfig(epochs=1))
    if part == "train":  # what the configuration asks for, too
        fit_vae(network(), *sets.values(), TrainConfig(epochs=1, **asks))


# frozen, compiled, and longer runs ------------------------------------------------------------------------------------

class Stop(Exception):
    pass


def stop_after_one(history):
    if len(history.rows) == 1:
        raise Stop


@pytest.mark.parametrize("frozen", [["conv1"], ["fc_mu", "deconv5"]], ids=str)
def test_frozen_layers_through_a_checkpoint(x, tmp_path, frozen):
    whole = fit(x, network(frozen))[0]
    with pytest.raises(Stop):
        fit(x, network(frozen), checkpoint=tmp_path / "run", callback=stop_after_one)
    for others in ([], ["conv2"]) if len(frozen) == 1 else ([],):
        with pytest.raises(InputError, match="other frozen layers"):
            fit(x, network(others), checkpoint=tmp_path / "run", resume=True)
    resumed = fit(x, network(frozen, seed=9), checkpoint=tmp_path / "run", resume=True)[0]
    assert same(resumed, whole)
    assert torch.equal(getattr(whole, frozen[0]).weight, getattr(network(), frozen[0]).weight)


def compiled(model): return torch.compile(model, backend="eager")


@pytest.mark.parametrize("before, after", [(compiled, lambda m: m), (lambda m: m, compiled)])
def test_a_compiled_network_through_a_checkpoint(x, plain, tmp_path, before, after):
    with pytest.raises(Stop):
        fit(x, before(network()), checkpoint=tmp_path / "run", callback=stop_after_one)
    model = network(seed=9)
    wrapped, _ = fit(x, after(model), checkpoint=tmp_path / "run", resume=True)
    assert same(model, plain) and not wrapped.training and not model.training


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_a_checkpoint_keeps_the_type_of_its_numbers(tmp_path, kind):
    def state(kind=kind):
        model = torch.nn.Linear(2, 1).to(kind)
        adam = torch.optim.Adam(model.parameters())
        model(torch.ones(3, 2, dtype=kind)).sum().backward()
        adam.step()
        return dict(model=model, optimizer=adam, scheduler=torch.optim.lr_scheduler.StepLR(adam, 1), history={},
                    best={k: v.clone() for k, v in model.state_dict().items()})
    old, new = state(), state()
    save_checkpoint(tmp_path / "run", old, {})
    with torch.random.fork_rng():
        best, _ = load_checkpoint(tmp_path / "run", new, {})
        assert same(old["model"], new["model"]) and best["weight"].dtype == kind
        with pytest.raises(InputError, match="number types"):
            load_checkpoint(tmp_path / "run", state(torch.float32), {})


def test_a_finished_run_goes_on_with_more_epochs(x, plain, tmp_path):
    path = tmp_path / "run"
    fit(x, config=replace(CONFIG, epochs=1), checkpoint=path)
    model, history = fit(x, network(seed=9), checkpoint=path, resume=True)
    assert same(model, plain) and len(history.rows) == 2 and history.stopped == "all epochs done"
    with pytest.raises(InputError, match="a run of 2 epochs; expected as many"):
        fit(x, config=replace(CONFIG, epochs=1), checkpoint=path, resume=True)


def test_one_cycle_cannot_be_made_longer(x, tmp_path):
    cycle = replace(CONFIG, epochs=1, schedule="onecycle")
    fit(x, config=cycle, checkpoint=tmp_path / "run")
    with pytest.raises(InputError, match=r"other settings \(epochs=1\)"):
        fit(x, config=replace(cycle, epochs=2), checkpoint=tmp_path / "run", resume=True)


# a validation loss that is not a number -------------------------------------------------------------------------------

@pytest.mark.parametrize("losses, best", [
    ([NAN, 5.0, 4.0], 3), ([5.0, NAN, 6.0], 1), ([-INF, 5.0, NAN], 2)], ids=str)
def test_no_loss_but_a_finite_one_is_best(x, monkeypatch, losses, best):
    left, after = list(losses), []
    monkeypatch.setattr(training, "evaluate", lambda model, images: [left.pop(0), 0.0])
    model, history = fit(x, config=replace(CONFIG, epochs=3),
                         callback=lambda history: after.append(copy.deepcopy(watched)), model=(watched := network()))
    assert history.best_epoch == best and history.best["val_loss"] == losses[best - 1]
    assert same(model, after[best - 1])


def test_no_best_epoch_at_all_is_said(x, monkeypatch):
    monkeypatch.setattr(training, "evaluate", lambda model, images: [NAN, 0.0])
    with pytest.warns(RuntimeWarning, match="no epoch had a finite validation loss") as seen:
        model, history = fit(x)
    assert seen[0].filename == __file__ and same(model, network()) and history.best_epoch == 0
    with pytest.raises(ValueError, match="no epoch is the best"):
        history.best


# the session around a run ---------------------------------------------------------------------------------------------

class DefaultType:
    def __enter__(self): torch.set_default_dtype(torch.float64)
    def __exit__(self, *_): torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("around", [
    torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), DefaultType,
    lambda: np.errstate(all="raise"), lambda: warnings.catch_warnings(action="error")
    if "action" in warnings.catch_warnings.__init__.__code__.co_varnames else nullcontext(),
], ids=["no_grad", "inference_mode", "autocast", "default dtype", "errstate", "warnings"])
def test_the_session_around_a_run_changes_nothing(x, plain, around, tmp_path):
    model = network()
    with around():
        mode = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()
        fit(x.clone(), model, checkpoint=tmp_path / "run")
        fit(x, model, checkpoint=tmp_path / "run", resume=True)
        assert mode == (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype())
    assert same(model, plain)
    assert all(p.requires_grad and not p.is_inference() for p in model.parameters())


def test_two_fits_in_two_threads_give_what_each_gives_alone(x, plain):
    meet, models = threading.Barrier(2), [network(), network()]
    def wait(history):
        try: meet.wait(0.2)
        except threading.BrokenBarrierError: pass
    threads = [threading.Thread(target=fit, args=(x, model), kwargs=dict(callback=wait)) for model in models]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert all(same(model, plain) for model in models)


def test_a_fit_within_a_fit_does_not_wait_for_itself(x, plain):
    inner = network()
    outer, _ = fit(x, callback=lambda history: len(history.rows) == 1 and fit(x, inner))
    assert same(inner, plain) and same(outer, plain)
