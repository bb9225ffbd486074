"""Labels that take part: held in EM, and with a cross-entropy in stage two; without a weight nothing changes."""
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import multivariate_normal
from safetensors import safe_open

import vae_gmm.training as training
from tests.commands import call
from vae_gmm.classifier import VAEGMM, name_components
from vae_gmm.config import TrainConfig
from vae_gmm.data import as_images
from vae_gmm.files import InputError
from vae_gmm.gmm import Mixture, MixturePrior, log_joint
from vae_gmm.training import fit_vae
from vae_gmm.uses import Labelled
from vae_gmm.vae import VAE

CONFIG = TrainConfig(epochs=1, prior_epochs=2, batch_size=4, vary_pose=True, noise_std=0.1)
NO_VARIANCE = -200.0  # the log-variance of what is no Gaussian but a point


@pytest.fixture(scope="module")
def x(digits):
    return as_images(digits[0])[:8]


@pytest.fixture(scope="module")
def few(digits):
    """Six labelled images, two of each digit, and their labels."""
    images, labels = digits
    chosen = np.concatenate([np.flatnonzero(labels[60:] == d)[:2] for d in (1, 4, 8)]) + 60
    return images[chosen], labels[chosen]


def fit(x, few, config=CONFIG, seed=0, **options):
    """The network, its mixture and the history of a run."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, prior = VAE(3), MixturePrior(3)
    labelled = Labelled(*few, name_components) if config.label_weight else None
    return model, prior, fit_vae(model, x, None, config, prior, labelled, **options)


def same(a, b):
    return all(map(torch.equal, a[0].state_dict().values(), b[0].state_dict().values())) and all(
        map(torch.equal, a[1].mixture, b[1].mixture))


WITH = replace(CONFIG, label_weight=1.0)


@pytest.fixture(scope="module")
def plain(x, few):
    return fit(x, few)


@pytest.fixture(scope="module")
def told(x, few, tmp_path_factory):
    """An undisturbed run with labels; its checkpoint beside."""
    path = tmp_path_factory.mktemp("labels") / "run.safetensors"
    return *fit(x, few, WITH, checkpoint=path), path


# held in EM -----------------------------------------------------------------------------------------------------------

@pytest.fixture
def points():
    """60 points of three clouds in two dimensions, their clouds, and a mixture to start from."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 20)
    z = torch.from_numpy(rng.normal(size=(60, 2)) + 2.0 * np.array([[0, 0], [1, 1], [2, -1]])[y])
    start = Mixture(torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([[0.0, 0], [1, 2], [3, -1]]).double(),
                    torch.eye(2).double().expand(3, 2, 2).contiguous())
    return z, y, start


def prior_of(start, K=3):
    prior = MixturePrior(K, equal_weights=False, shrinkage=0, reg_covar=0, weight_prior=0)
    prior.load_state_dict(start._asdict())
    return prior


def no_variance(z): return torch.full_like(z, NO_VARIANCE)


def test_all_labelled_gives_the_mean_and_the_covariance_of_each_class(points):
    z, y, start = points
    prior = prior_of(start)
    prior.refit(z, no_variance(z), 1, torch.from_numpy(y[:, None] == np.arange(3)))
    for c, (weight, mean, covariance) in enumerate(zip(*prior.mixture)):
        own = z[y == c].numpy()
        np.testing.assert_allclose(weight, len(own) / len(z), rtol=1e-9)
        np.testing.assert_allclose(mean, own.mean(0), rtol=1e-9)
        np.testing.assert_allclose(covariance, np.cov(own.T, bias=True), rtol=1e-9)


def test_labels_that_allow_all_are_none(points):
    z, _, start = points
    a, b = prior_of(start), prior_of(start)
    a.refit(z, no_variance(z), 3)
    b.refit(z, no_variance(z), 3, torch.ones(17, 3, dtype=torch.bool))
    assert all(map(torch.equal, a.mixture, b.mixture))


def test_two_components_of_a_label_share_its_points_and_the_last_points_are_the_labelled_ones(points):
    z, y, start = points
    allowed = np.array([[True, True, False], [False, False, True]])[(y[-25:] == 2).astype(int)]
    prior = prior_of(start)
    prior.refit(z, no_variance(z), 1, torch.from_numpy(allowed))
    density = np.stack([w * multivariate_normal(m, s).pdf(z) for w, m, s in zip(*map(np.asarray, start))], 1)
    density[-25:] *= allowed
    resp = density / density.sum(1, keepdims=True)
    np.testing.assert_allclose(prior.mixture.weights, resp.mean(0), rtol=1e-9)
    np.testing.assert_allclose(prior.mixture.means, resp.T @ z.numpy() / resp.sum(0)[:, None], rtol=1e-9)


def test_the_likelihood_of_points_and_labelled_pairs_never_falls(points):
    z, y, start = points
    allowed = torch.from_numpy(y[-9:, None] == np.arange(3))
    prior, likelihoods = prior_of(start), []
    for _ in range(30):
        terms = log_joint(z, *prior.mixture)
        terms[-9:].masked_fill_(~allowed, -math.inf)
        likelihoods.append(terms.logsumexp(1).sum().item())
        prior.refit(z, no_variance(z), 1, allowed)
    assert (np.diff(likelihoods) > -1e-9).all() and likelihoods[-1] > likelihoods[0] + 1


def test_a_label_draws_its_component(points):
    z, y, start = points
    def refitted(label):
        prior, known = prior_of(start), (z[:1], no_variance(z[:1]))
        few = Labelled(torch.zeros(1, 1, 28, 28), [label], lambda resp, y: np.arange(3))
        few.refit(prior, lambda images: known, z, no_variance(z))
        return prior.mixture.means
    for label in (0, 1, 2):
        distance = (refitted(label) - z[0]).norm(dim=1)
        others = torch.stack([refitted(other)[label] for other in {0, 1, 2} - {label}])
        assert (distance[label] < (others - z[0]).norm(dim=1)).all()


# cross-entropy --------------------------------------------------------------------------------------------------------

def test_cross_entropy_is_that_of_the_labels_probability(few):
    a = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labelled, log_resp = Labelled(*few, name_components), a.log_softmax(1)
    one = torch.eye(4, dtype=torch.bool)[[0, 3, 1, 1, 2]]
    torch.testing.assert_close(labelled.cross_entropy(log_resp, one), F.cross_entropy(a, torch.tensor([0, 3, 1, 1, 2])))
    pairs = torch.tensor([[True, True, False, False], [False, False, True, True]])[[0, 1, 1, 0, 1]]
    value = labelled.cross_entropy(log_resp, pairs)
    torch.testing.assert_close(value, -(log_resp.exp() * pairs).sum(1).log().mean())
    value.backward()
    r = log_resp.exp().detach()  # by hand: r minus r renormalised over what is allowed, in the mean
    torch.testing.assert_close(a.grad, (r - r * pairs / (r * pairs).sum(1, keepdim=True)) / 5)


def test_as_many_labelled_images_are_drawn_as_a_batch_has(few, x):
    labelled = Labelled(*few, name_components)
    labelled.allowed = torch.from_numpy(labelled.labels[:, None] == np.array([1, 4, 8]))
    for n in (1, 4, 8):
        images, allowed = labelled.draw(x[:n])
        assert images.shape == (n, 1, 28, 28) and allowed.shape == (n, 3)
        for image, row in zip(images, allowed):
            found = (labelled.images == image).flatten(1).all(1).nonzero()[0, 0]
            assert torch.equal(labelled.allowed[found], row)


# training -------------------------------------------------------------------------------------------------------------

def step_without_labels(model, target, optimizer, config, beta, weight=1.0, prior=None, labelled=None):
    """Stage two as it was before labels could take part."""
    with training.bf16(target, config):
        mu, logvar = model.encode(torch.cat([training.varied(target, config), training.varied(target, config)]))
        z = model.reparameterize(mu.float(), logvar.float())
        logits = model.decode(z[:len(target)])
    rec = training.reconstruction_loss(logits.float(), target).mean()
    kl = prior.kl(mu.float(), logvar.float(), z).mean()
    agree = training.disagreement(prior.log_resp(z).unflatten(0, (2, len(target))))
    training.move(weight * (rec + beta * kl + config.agreement * agree), optimizer)
    return torch.stack([rec.detach(), kl.detach(), agree.detach()])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_without_a_weight_the_bits_are_those_of_a_run_without_labels(x, few, monkeypatch, precision):
    config = replace(CONFIG, precision=precision)
    now = fit(x, few, config)
    monkeypatch.setattr(training, "prior_step", step_without_labels)
    assert same(now, fit(x, few, config))
    assert "train_cross_entropy" not in now[2].rows[-1]


def test_a_weight_is_felt_in_stage_two_and_stands_in_the_table(x, plain, told):
    assert not same(plain, told)
    rows = told[2].rows
    assert [("train_cross_entropy" in row) for row in rows] == [False, True, True]
    assert rows[0]["train_loss"] == plain[2].rows[0]["train_loss"]
    last = rows[-1]
    assert last["train_loss"] == pytest.approx(
        last["train_reconstruction"] + 0.5 * last["train_kl"] + 3 * last["train_disagreement"]
        + last["train_cross_entropy"])


def test_another_label_is_another_run(x, few, told):
    images, labels = few
    swapped = labels.copy()
    swapped[[0, 2]] = swapped[[2, 0]]
    assert not same(fit(x, (images, swapped), WITH), told)


def test_steps_with_weight_lead_labelled_images_to_their_components(x, few):
    """Labels that no image suggests, half of each digit named as the next: only they can tell the network."""
    images, wrong = few[0], np.array([1, 4, 4, 8, 8, 1])
    labelled = Labelled(images, wrong, lambda resp, y: np.array([1, 4, 8]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, prior = VAE(3, dropout=0), MixturePrior(3)
        prior.load_state_dict(Mixture(torch.ones(3) / 3, torch.eye(3), 0.1 * torch.eye(3).expand(3, 3, 3))._asdict())
        labelled.allowed = torch.from_numpy(wrong[:, None] == np.array([1, 4, 8]))
        config = replace(WITH, vary_pose=False, noise_std=0.0, label_weight=1000.0)
        adam = torch.optim.Adam(model.parameters(), 1e-3)
        terms = [training.prior_step(model, x, adam, config, 0.5, prior=prior, labelled=labelled) for _ in range(25)]
    losses = torch.stack(terms)[:, 3]
    assert losses[-5:].mean() < 0.5 * losses[:5].mean()


def test_a_run_goes_on_from_its_checkpoint_with_the_same_bits(x, few, told, tmp_path):
    def stop(history):
        if len(history.rows) == 2: raise KeyboardInterrupt
    path = tmp_path / "run.safetensors"
    assert fit(x, few, WITH, checkpoint=path, callback=stop)[2].stopped == "interrupted"
    resumed = fit(x, few, WITH, seed=9, checkpoint=path, resume=True)
    assert same(resumed, told) and len(resumed[2].rows) == 3


@pytest.mark.parametrize("what, complaint", [
    ("weight", r"other settings \(label_weight=1.0\)"), ("no weight", r"other settings \(label_weight=1.0\)"),
    ("labels", "other images"), ("images", "other images")])
def test_a_checkpoint_of_other_labels_is_refused(x, few, told, what, complaint):
    images, labels = few
    config = replace(WITH, label_weight={"weight": 2.0, "no weight": 0.0}.get(what, 1.0))
    other = images if what != "images" else images[:, ::-1], labels if what != "labels" else np.roll(labels, 1)
    with pytest.raises(InputError, match=complaint):
        fit(x, other, config, checkpoint=told[3], resume=True)


# the classifier and the command ---------------------------------------------------------------------------------------

QUICK = TrainConfig.fast(epochs=1, batch_size=8)


def test_the_classifier_uses_labels_where_there_is_a_weight(digits, few):
    X = digits[0][:20]
    plain = VAEGMM(config=QUICK).fit_labelled(X, *few)
    told = VAEGMM(config=replace(QUICK, label_weight=1.0)).fit_labelled(X, *few)
    assert "train_cross_entropy" in told.history_.rows[-1] and "train_cross_entropy" not in plain.history_.rows[-1]
    assert (plain.encode(X) != told.encode(X)).any() and told.classes_.tolist() == [1, 4, 8]
    y = np.full(len(X) + 6, -1)
    y[20:] = few[1]
    also = VAEGMM(config=replace(QUICK, label_weight=1.0)).fit(np.concatenate([X, few[0]]), y)
    assert "train_cross_entropy" in also.history_.rows[-1]
    two_halves = VAEGMM(config=replace(QUICK, label_weight=1.0)).fit_vae(X, *few).fit_gmm(X, *few)
    np.testing.assert_array_equal(two_halves.predict_proba(X), told.predict_proba(X))
    pulled = plain.set_params(config=None)
    before = pulled.mixture_.means.clone()
    pulled.config_ = replace(QUICK, label_weight=1.0)
    assert not torch.equal(pulled.fit_gmm(X, *few).mixture_.means, before)  # held in EM, the same network


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, True, "1", None, [1.0]], ids=str)
def test_a_weight_out_of_range_is_refused(value):
    with pytest.raises(InputError, match="^label_weight is .*; expected a number from 0, below"):
        TrainConfig.fast(label_weight=value)


def test_a_weight_without_its_labels_or_its_stage_is_refused(x, few):
    with pytest.raises(InputError, match="^label_weight is 1.0; expected 0 where prior_epochs is 0"):
        TrainConfig(label_weight=1.0)
    with pytest.raises(InputError, match="^labelled is of type NoneType; expected labelled images if"):
        VAEGMM(config=WITH, n_components=3).fit_vae(x)
    for config, prior in ((CONFIG, MixturePrior(3)), (WITH, None)):
        with pytest.raises(InputError, match="^labelled is of type Labelled; expected"):
            fit_vae(VAE(), x, config=config, prior=prior, labelled=Labelled(*few, name_components))


@pytest.mark.parametrize("labels, complaint", [
    ([1, 4, 8], "y_lab"), ([1, 1, 4, 4, 8, 8.5], "y_lab"), ([1, 1, 4, 4, 8, -1], "y_lab"), ("148148", "y_lab"),
    ([1] * 6, "y_lab: holds one label only")], ids=str)
def test_labels_that_are_none_are_refused_before_the_training(x, few, labels, complaint, monkeypatch):
    monkeypatch.setattr("vae_gmm.classifier.fit_vae", None)
    with pytest.raises(InputError, match=complaint):
        VAEGMM(config=WITH).fit_labelled(x, few[0], labels)


def test_what_is_no_function_and_no_switch_is_refused(few):
    with pytest.raises(InputError, match="^name is of type int; expected a function"):
        Labelled(*few, 3)
    with pytest.raises(InputError, match="^straight is 'yes'; expected True or False"):
        Labelled(*few, name_components, "yes")


def test_the_command_takes_a_weight(good, tmp_path):
    words = ["train", good / "train.npz", good / "val.npz", "--epochs", "1", "--label-weight"]
    code, out, err = call(tmp_path, *words, "2", "--checkpoint", "run.safetensors")
    assert code == 0 and "named 1, 4, 8 by 9 labelled images" in out, err
    with safe_open(tmp_path / "run.safetensors", "pt") as file:
        meta = file.metadata()["vae_gmm"]
    assert '"label_weight": 2.0' in meta and "train_cross_entropy" in meta
    for wrong, said in (("-1", "'--label-weight': -1"), ("nan", "not a finite number"), ("x", "'x' is not a valid")):
        code, _, err = call(tmp_path, *words, wrong)
        assert code == 2 and said in err
    code, _, err = call(tmp_path, *words, "1", "--recipe", "course")
    assert code == 1 and "label_weight is 1.0; expected 0 where prior_epochs is 0" in err
