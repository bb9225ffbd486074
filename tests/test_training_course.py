"""The course project's recipe and what was set right in it: as `TrainConfig`'s defaults, and as what the loop does."""
import numpy as np
import pytest
import torch

import vae_gmm.training as training
from vae_gmm.data import as_images
from vae_gmm.training import History, TrainConfig, fit_vae, make_optimizer
from vae_gmm.vae import VAE, evaluate, vae_loss


@pytest.fixture(scope="module")
def x(digits):
    return as_images(digits[0])[:24]


def new_model(kind=VAE):
    torch.manual_seed(0)
    return kind()


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def marks(monkeypatch, losses):
    """Let the run's validation loss follow a list: its last value once the list is used up."""
    left = list(losses)
    monkeypatch.setattr(training, "evaluate", lambda model, images: [left.pop(0) if len(left) > 1 else left[0], 0.0])


def test_the_defaults_are_the_course_recipe():
    config = TrainConfig()
    adam, schedule = make_optimizer(VAE(), 64, config)
    assert type(adam) is torch.optim.Adam and len(adam.param_groups) == 1
    assert {k: adam.defaults[k] for k in ("lr", "betas", "eps", "weight_decay", "amsgrad")} == dict(
        lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False)
    assert type(schedule) is torch.optim.lr_scheduler.ReduceLROnPlateau
    assert (schedule.factor, schedule.patience, schedule.mode) == (0.5, 5, "min")
    assert (config.stop_patience, config.train_share, config.beta) == (15, 0.8, 0.5)


def test_four_fifths_are_for_training_and_no_image_is_on_both_sides(digits, monkeypatch):
    import vae_gmm.classifier as classifier
    seen = []
    monkeypatch.setattr(classifier, "fit_vae", lambda model, train, val, *args: seen.extend([train, val]) or History())
    classifier.VAEGMM(config=TrainConfig(epochs=1)).fit_vae(digits[0])
    train, val = (as_images(part).flatten(1) for part in seen)
    assert (len(train), len(val)) == (120, 30)
    assert len(torch.cat([train, val]).unique(dim=0)) == len(as_images(digits[0]).flatten(1).unique(dim=0))


def test_an_epoch_of_adam_written_out(x):
    "The weights after one epoch are those of Adam's formulas in float64, one parameter at a time."
    model, plain = new_model(), new_model()
    fit_vae(model, x[:16], x[16:], TrainConfig(epochs=1, batch_size=8))
    m, v = ([torch.zeros_like(p, dtype=torch.float64) for p in plain.parameters()] for _ in range(2))
    with torch.random.fork_rng():
        torch.manual_seed(0)  # config.seed
        for t, index in enumerate(torch.randperm(16).split(8), 1):
            logits, mu, logvar = plain.train()(x[index])
            plain.zero_grad()
            vae_loss(logits, x[index], mu, logvar, beta=0.5).loss.backward()
            for i, p in enumerate(plain.parameters()):
                g = p.grad.double()
                m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g**2
                p.data -= (1e-3 * m[i] / (1 - 0.9**t) / ((v[i] / (1 - 0.999**t)).sqrt() + 1e-8)).float()
    difference = torch.cat([(a - b).abs().flatten() for a, b in zip(model.parameters(), plain.parameters())])
    moved = torch.cat([(a - b).abs().flatten() for a, b in zip(model.parameters(), new_model().parameters())])
    assert moved.max() > 1e-3 and difference.mean() < 1e-6


def test_it_ends_after_fifteen_epochs_without_progress_and_puts_the_best_weights_back(x, monkeypatch):
    marks(monkeypatch, [5, 4, 3, 3.5])
    model, after = new_model(), []
    history = fit_vae(model, x[:8], x[8:], TrainConfig(), callback=lambda history: after.append(weights(model)))
    assert (len(history.rows), history.best_epoch, history.stopped) == (18, 3, "no progress for 15 epochs")
    assert same(weights(model), after[2]) and not same(after[2], after[-1])
    assert not model.training


def test_the_last_epoch_before_the_end_may_still_be_the_best(x, monkeypatch):
    marks(monkeypatch, [5] * 15 + [4] + [6])
    history = fit_vae(new_model(), x[:8], x[8:], TrainConfig(epochs=20))
    assert (len(history.rows), history.best_epoch, history.stopped) == (20, 16, "all epochs done")


def test_the_step_size_is_halved_at_the_sixth_epoch_without_progress(x, monkeypatch):
    marks(monkeypatch, [5, 4, 3, 3])
    history = fit_vae(new_model(), x[:8], x[8:], TrainConfig())
    assert [row["lr"] for row in history.rows] == [1e-3] * 9 + [5e-4] * 6 + [2.5e-4] * 3  # 3 + 6 + 6 epochs


class Watched(VAE):
    "Notes whether each pass is in training mode, and whether it draws z."
    def forward(self, x, *args, **options):
        self.passes = getattr(self, "passes", [])
        self.passes.append([self.training, False])
        return super().forward(x, *args, **options)

    def reparameterize(self, *args):
        self.passes[-1][1] = True
        return super().reparameterize(*args)


def test_back_to_training_mode_after_each_validation_which_draws_no_z(x):
    model = new_model(Watched)
    fit_vae(model, x[:16], x[16:], TrainConfig(epochs=3, batch_size=8))
    assert model.passes == 3 * [[True, True], [True, True], [False, False]]  # two batches, then validation
    model.train()
    evaluate(model, x)
    assert model.training and not evaluate(model.eval(), x) is None and not model.training


def test_validation_is_the_loss_at_the_mean_without_dropout(x):
    model = new_model()
    row = fit_vae(model, x[:16], x[16:], TrainConfig(epochs=1, batch_size=8)).best
    with torch.no_grad():
        mu, logvar = model.eval().encode(x[16:])
        loss = vae_loss(model.decode(mu), x[16:], mu, logvar, beta=0.5)
    stated = [row["val_loss"], row["val_reconstruction"], row["val_kl"]]
    assert stated == pytest.approx([v.item() for v in loss], rel=1e-6)
    state = torch.get_rng_state()
    assert evaluate(model.train(), x) == evaluate(model, x)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn


@pytest.mark.parametrize("augment", [False, True])
def test_noise_is_on_the_input_and_not_on_the_target(x, monkeypatch, augment):
    pairs, varied = [], []
    class Inputs(VAE):
        def forward(self, x, *args, **options):
            pairs.append([x.detach().clone()])
            return super().forward(x, *args, **options)
    def loss(logits, target, *args):
        pairs[-1].append(target.clone())
        return vae_loss(logits, target, *args)
    def augmented(images, **options):
        varied.append(augment_batch(images, **options))
        return varied[-1]
    augment_batch = training.augment_batch
    monkeypatch.setattr(training, "vae_loss", loss)
    monkeypatch.setattr(training, "augment_batch", augmented)
    fit_vae(new_model(Inputs), x[:16], x[16:], TrainConfig(epochs=1, batch_size=16, noise_std=0.1, augment=augment))
    given, target = pairs[0]  # the training batch; the validation pass has a loss of its own module
    clean = varied[0] if augment else x[:16]
    def rows(images): return np.unique(images.flatten(1).numpy(), axis=0)
    assert np.array_equal(rows(target), rows(clean)) and len(varied) == augment
    noise = (given - target)[(target > 0.35) & (target < 0.65)]  # where the clamp to [0, 1] does not act
    assert 0.08 < noise.std() < 0.12 and abs(noise.mean()) < 0.02
    assert given.min() >= 0 and given.max() <= 1
