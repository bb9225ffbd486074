"""Stage two: the mixture as the prior and two views that must agree; its promises are those of stage one."""
import copy
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vae_gmm.training as training
from vae_gmm.config import TrainConfig
from vae_gmm.data import as_images
from vae_gmm.files import InputError
from vae_gmm.gmm import MixturePrior, log_joint
from vae_gmm.training import fit_vae
from vae_gmm.vae import VAE

CONFIG = TrainConfig(epochs=2, prior_epochs=2, batch_size=4, vary_pose=True, noise_std=0.1)
DIM = 3


@pytest.fixture(scope="module")
def x(digits):
    return as_images(digits[0])[:8]


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VAE(DIM)


def fit(x, config=CONFIG, model=None, prior=None, val=None, **options):
    """The network, its mixture and the history of a run."""
    model, prior = network() if model is None else model, prior or MixturePrior(3)
    return model, prior, fit_vae(model, x, val, config, prior, **options)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Where the undisturbed run writes its checkpoint."""
    return tmp_path_factory.mktemp("stages") / "run.safetensors"


@pytest.fixture(scope="module")
def whole(x, stored):
    """The undisturbed run: its network, mixture and history, and the mixture's tensors in its file after each epoch."""
    in_file = []
    def look(history): in_file.append([name for name in load_file(stored) if name.startswith("prior.")])
    return *fit(x, checkpoint=stored, callback=look), in_file


def same(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def rows(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]


def finite(*things):
    return all(v.isfinite().all() for thing in things for v in thing.state_dict().values())


# what it does ---------------------------------------------------------------------------------------------------------

def test_two_stages_in_one_history(x, whole):
    _, prior, history, _ = whole
    assert [row["stage"] for row in history.rows] == [1, 1, 2, 2] and history.stopped == "all epochs done"
    assert [("train_disagreement" in row) for row in history.rows] == [False, False, True, True]
    last = history.rows[-1]
    assert not any(name.startswith("val") for name in last) and history.best_epoch == 4
    assert last["train_loss"] == pytest.approx(last["train_reconstruction"] + 0.5 * last["train_kl"]
                                               + 3 * last["train_disagreement"])
    assert [tuple(a.shape) for a in prior.mixture] == [(3,), (3, DIM), (3, DIM, DIM)]
    assert {a.dtype for a in prior.mixture} == {torch.float64} and not any(a.requires_grad for a in prior.mixture)


def test_the_step_size_has_a_cycle_in_each_stage(x):
    rates = [row["lr"] for row in fit(x, TrainConfig.fast(epochs=6, batch_size=4))[2].rows]
    for stage in (rates[:6], rates[6:]):
        assert np.argmax(stage) in (1, 2) and stage[0] < 1e-4 and stage[-1] < 0.3 * max(stage)


def test_without_a_prior_or_without_its_epochs_there_is_one_stage(x):
    model = network()
    assert [row["stage"] for row in fit_vae(model, x, None, CONFIG).rows] == [1, 1]
    other, prior, history = fit(x, replace(CONFIG, prior_epochs=0))
    assert [row["stage"] for row in history.rows] == [1, 1] and prior.mixture is None and same(model, other)


def test_stage_two_starts_from_the_best_weights_and_k_means(x, monkeypatch):
    marks, started, after = [4.0, 3.0, 5.0], [], []
    monkeypatch.setattr(training, "evaluate", lambda model, images: [marks.pop(0) if marks else 1.0, 0.0])
    class Watched(MixturePrior):
        def start(self, mu, seed):
            started.append((mu.clone(), seed))
            super().start(mu, seed)
    model = network()
    _, prior, history = fit(x, replace(CONFIG, epochs=3, seed=5), model, Watched(3), x[:4],
                            callback=lambda history: after.append(copy.deepcopy(model)))
    assert len(started) == 1 and started[0][1] == 5
    assert torch.equal(started[0][0], training.posterior(after[1], x)[0])  # the second epoch was the best
    assert history.best_epoch == len(history.rows) == 5 and same(model, after[-1])


def test_the_mixture_is_refitted_at_the_start_of_each_epoch_and_not_moved_by_a_step(x, monkeypatch):
    held, prior = [], MixturePrior(3)
    step = training.prior_step
    def watched(*args, **options):
        held.append([a.clone() for a in options["prior"].mixture])
        return step(*args, **options)
    monkeypatch.setattr(training, "prior_step", watched)
    fit(x, prior=prior)
    assert len(held) == 4  # two epochs of two batches
    assert all(map(torch.equal, held[0], held[1])) and all(map(torch.equal, held[2], held[3]))
    assert not torch.equal(held[1][1], held[2][1]) and all(map(torch.equal, held[3], prior.mixture))


def test_two_views_are_seen_and_one_is_decoded(x, monkeypatch):
    seen = {"encode": [], "decode": []}
    class Watched(VAE):
        def encode(self, x):
            if self.training: seen["encode"].append(x.detach().clone())
            return super().encode(x)
        def decode(self, z):
            if self.training: seen["decode"].append(len(z))
            return super().decode(z)
    torch.manual_seed(0)
    fit(x, model=Watched(DIM))
    assert [len(views) for views in seen["encode"]] == [4, 4, 4, 4, 8, 8, 8, 8] and seen["decode"] == 8 * [4]
    one, two = seen["encode"][-1].split(4)
    assert not any(torch.equal(a, b) for a, b in zip(one, two))
    assert (one - two).abs().mean() < 0.2  # another pose and other noise, of the same image


def test_disagreement_and_its_gradient_written_out():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    value = training.disagreement(a.log_softmax(2))
    value.backward()
    r = np.exp(a.detach().numpy())
    r /= r.sum(2, keepdims=True)
    q = r.mean(0) ** 2
    q /= q.sum(1, keepdims=True)
    assert value.item() == pytest.approx(-(q * np.log(r)).sum(2).mean())
    assert np.allclose(a.grad.numpy(), (r - q) / 10)  # of -q log softmax(a), with q held fixed; a mean over ten rows


def test_a_step_of_stage_two_written_out(x):
    "Without dropout and with z = mu: the loss in float64, from the formulas."
    class Still(VAE):
        def reparameterize(self, mu, logvar, generator=None): return mu
    torch.manual_seed(0)
    model, prior, config = Still(DIM, dropout=0), MixturePrior(3), TrainConfig(agreement=2.0)
    mu, logvar = training.posterior(model, x)
    prior.start(mu, 0)
    rec, kl, agree = training.prior_step(model.train(), x, torch.optim.SGD(model.parameters(), 0.0), config, 0.5,
                                         prior=prior).double()
    log = log_joint(mu.double(), *prior.mixture)
    q = log.softmax(1) ** 2
    q = q / q.sum(1, keepdim=True)
    entropy = 0.5 * (1 + np.log(2 * np.pi) + logvar.double()).sum(1)
    assert kl.item() == pytest.approx((-entropy - log.logsumexp(1)).mean().item(), rel=1e-4)
    assert agree.item() == pytest.approx(-(q * log.log_softmax(1)).sum(1).mean().item(), rel=1e-3)
    assert rec.item() == pytest.approx(training.evaluate(model, x)[0], rel=1e-5)


# the same bits --------------------------------------------------------------------------------------------------------

def test_the_same_seed_gives_the_same_bits_and_leaves_the_callers_random_numbers(x, whole):
    random, numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    model, prior, history = fit(x)
    assert same(model, whole[0]) and rows(history) == rows(whole[2])
    assert all(map(torch.equal, prior.mixture, whole[1].mixture))
    assert torch.equal(torch.get_rng_state(), random) and np.array_equal(np.random.get_state()[1], numpy)
    assert not same(fit(x, replace(CONFIG, seed=1))[0], model)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_interrupted_and_resumed_is_the_undisturbed_run(x, whole, tmp_path, epochs):
    "In stage one, at the border of the stages, and in stage two."
    def stop(history):
        if len(history.rows) == epochs: raise KeyboardInterrupt
    path = tmp_path / "run.safetensors"
    assert fit(x, checkpoint=path, callback=stop)[2].stopped == "interrupted"
    model, prior, history = fit(x, model=network(9), prior=MixturePrior(3), checkpoint=path, resume=True)
    assert same(model, whole[0]) and rows(history) == rows(whole[2]) and not model.training
    assert all(map(torch.equal, prior.mixture, whole[1].mixture))
    again, mixture, _ = fit(x, model=network(9), checkpoint=path, resume=True)  # there is nothing left to do
    assert same(again, whole[0]) and all(map(torch.equal, mixture.mixture, whole[1].mixture))


def test_a_compiled_network_gives_the_same_bits(x, whole):
    model = network()
    wrapped, prior, _ = fit(x, model=torch.compile(model, backend="eager"))
    assert same(model, whole[0]) and all(map(torch.equal, prior.mixture, whole[1].mixture)) and not wrapped.training


@pytest.mark.parametrize("around", [
    torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), lambda: np.errstate(all="raise"),
], ids=["inference", "autocast", "errstate"])
def test_the_session_around_a_run_changes_nothing(x, whole, around):
    with around():
        model, prior, _ = fit(x.clone())
    assert same(model, whole[0]) and all(map(torch.equal, prior.mixture, whole[1].mixture))


# checkpoints ----------------------------------------------------------------------------------------------------------

def test_the_mixture_is_in_the_file_from_stage_two_on(whole, stored):
    assert [len(names) for names in whole[3]] == [0, 0, 3, 3]
    tensors = load_file(stored)
    for name, value in whole[1].state_dict().items():
        assert torch.equal(tensors[f"prior.{name}"], value)


@pytest.mark.parametrize("change, complaint", [
    (dict(prior=MixturePrior(4)), r"other settings \(n_components=3\)"),
    (dict(prior=MixturePrior(3, shrinkage=0.1)), r"other settings \(shrinkage=0.6\)"),
    (dict(prior=MixturePrior(3, equal_weights=False)), r"other settings \(equal_weights=True\)"),
    (dict(prior=MixturePrior(3, weight_prior=1.0)), r"other settings \(weight_prior=0.1\)"),
    (dict(config=replace(CONFIG, prior_epochs=3)), r"other settings \(prior_epochs=2\)"),
    (dict(config=replace(CONFIG, agreement=0.0)), r"other settings \(agreement=3.0\)"),
    (dict(config=replace(CONFIG, vary_pose=False)), r"other settings \(vary_pose=True\)"),
], ids=str)
def test_a_checkpoint_of_another_run_is_refused_and_left_alone(x, whole, stored, change, complaint):
    before = stored.read_bytes()
    with pytest.raises(InputError, match=complaint):
        fit(x, **change, checkpoint=stored, resume=True)
    with pytest.raises(InputError, match=r"n_components=3"):  # none at all
        fit_vae(network(), x, None, CONFIG, checkpoint=stored, resume=True)
    assert stored.read_bytes() == before


@pytest.mark.parametrize("damage", [
    lambda tensors: tensors.pop("prior.means"),
    lambda tensors: tensors.update({"prior.means": torch.ones(2, DIM)}),
    lambda tensors: tensors["prior.covariances"].fill_(float("nan")),
], ids=["absent", "another shape", "nan"])
def test_a_damaged_mixture_is_refused(x, whole, stored, tmp_path, damage):
    path = tmp_path / "run.safetensors"
    with safe_open(stored, "pt") as file: header = file.metadata()
    tensors = load_file(stored)
    damage(tensors)
    save_file(tensors, path, header)
    with pytest.raises(InputError, match="damaged checkpoint"):
        fit(x, checkpoint=path, resume=True)


# when it ends ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("minutes, epochs", [(0.5, 2), (1.5, 3)], ids=["at the border", "in stage two"])
def test_a_time_budget_ends_either_stage_and_the_run_goes_on_later(x, whole, tmp_path, monkeypatch, minutes, epochs):
    clock, path = [time.monotonic()], tmp_path / "run.safetensors"
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    def a_minute(history): clock[0] += 60
    _, _, history = fit(x, replace(CONFIG, max_minutes=minutes), checkpoint=path, callback=a_minute)
    assert len(history.rows) == epochs and history.stopped == f"time budget of {minutes} minutes used up"
    model, prior, history = fit(x, checkpoint=path, resume=True)
    assert same(model, whole[0]) and all(map(torch.equal, prior.mixture, whole[1].mixture))
    assert history.stopped == "all epochs done"


def test_no_progress_in_stage_one_leads_to_stage_two(x, monkeypatch):
    monkeypatch.setattr(training, "evaluate", lambda model, images: [5.0, 0.0])
    history = fit(x, replace(CONFIG, epochs=9, stop_patience=1), val=x[:4])[2]
    assert [row["stage"] for row in history.rows] == [1, 1, 2, 2]


@pytest.mark.parametrize("config", [replace(CONFIG, prior_lr=1e6), replace(CONFIG, prior_lr=1e30)], ids=["1e6", "1e30"])
def test_a_loss_that_is_no_number_ends_stage_two(x, config):
    with pytest.warns(RuntimeWarning, match="best weights so far are kept") as seen:
        model, prior, history = fit(x, config)
    assert "not finite" in history.stopped
    assert history.best_epoch == len(history.rows) == 2
    assert same(model, fit(x, replace(CONFIG, prior_epochs=0))[0]) and finite(model, prior)
    assert seen[0].filename == __file__


def spoil(model, what):
    with torch.no_grad(): getattr(model, what).bias.fill_(float("nan") if what == "deconv5" else 1e5)


@pytest.mark.parametrize("what", ["deconv5", "fc_logvar"])
@pytest.mark.parametrize("calls", [2, 4], ids=["first epoch", "second epoch"])
def test_what_the_last_step_of_an_epoch_has_spoiled_is_not_kept(x, monkeypatch, what, calls):
    step, done = training.prior_step, []
    def spoiling(model, *args, **options):
        terms = step(model, *args, **options)
        done.append(1)
        if len(done) == calls: spoil(model, what)
        return terms
    monkeypatch.setattr(training, "prior_step", spoiling)
    with pytest.warns(RuntimeWarning, match=f"not finite after epoch {2 + calls // 2}"):
        model, prior, history = fit(x)
    assert len(history.rows) == history.best_epoch == 1 + calls // 2 and finite(model, prior)


@pytest.mark.parametrize("epoch", [2, 3], ids=["border", "stage two"])
def test_a_latent_point_that_is_no_number_ends_the_run(x, monkeypatch, epoch):
    real, calls = training.posterior, []
    def posterior(model, images):
        mu, logvar = real(model, images)
        calls.append(1)
        return (mu, logvar + 1e5) if len(calls) == (1 if epoch == 2 else 3) else (mu, logvar)
    monkeypatch.setattr(training, "posterior", posterior)
    with pytest.warns(RuntimeWarning, match=f"a latent point is not finite after epoch {epoch}"):
        model, prior, history = fit(x)
    assert len(history.rows) == epoch and finite(model)
    assert prior.mixture is None or finite(prior)


def test_a_mixture_that_is_none_any_more_ends_the_run(x, monkeypatch):
    def refit(self, mu, logvar): raise torch.linalg.LinAlgError("linalg.cholesky: the input is not positive-definite")
    monkeypatch.setattr(MixturePrior, "refit", refit)
    with pytest.warns(RuntimeWarning, match="not positive-definite; the best weights"):
        model, prior, history = fit(x)
    assert len(history.rows) == 2 and finite(model, prior)


def test_without_validation_the_last_sound_epoch_is_kept(x):
    "A step that throws the weights away is the last of its epoch: the losses before it are fine."
    model = network()
    with pytest.warns(RuntimeWarning, match="not finite after epoch 1"):
        history = fit_vae(model, x[:8], None, TrainConfig(epochs=2, batch_size=8, lr=1e30))
    assert history.rows == [] and same(model, network())


def test_as_few_images_as_components(x):
    _, prior, history = fit(x[:3])
    assert history.stopped == "all epochs done" and finite(prior)


def test_images_that_are_all_the_same_end_in_one_place_and_nothing_breaks(x):
    with pytest.warns(Warning, match="distinct clusters"):
        model, prior, history = fit(x[:1].repeat(8, 1, 1, 1), replace(CONFIG, vary_pose=False, noise_std=0.0))
    assert history.stopped == "all epochs done" and finite(model, prior)
