"""The network and its loss against the course project's, written down here from its report; and what uses it."""
import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vae_gmm.data import as_images
from vae_gmm.vae import VAE, decode, elbo, encode, evaluate, kl_divergence, reconstruct, reconstruction_loss
from vae_gmm.vae import reparameterize, vae_loss


class CourseVAE(nn.Module):
    """The layers as the course project's report lists them; rectifiers and dropout where chapter 2 puts them."""

    def __init__(self, latent_dim=2, dropout_rate=0.2):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(64, 128, kernel_size=3, padding=1)
        self.conv4 = nn.Conv2d(128, 128, kernel_size=3, stride=2, padding=1)
        self.conv5 = nn.Conv2d(128, 256, kernel_size=3, padding=1)
        self.dropout_conv = nn.Dropout2d(dropout_rate)
        self.fc1 = nn.Linear(256 * 7 * 7, 512)
        self.fc_mu = nn.Linear(512, latent_dim)
        self.fc_log_sigma = nn.Linear(512, latent_dim)
        self.dropout_fc = nn.Dropout(dropout_rate)
        self.fc2 = nn.Linear(latent_dim, 256 * 7 * 7)
        self.deconv1 = nn.ConvTranspose2d(256, 128, kernel_size=3, stride=1, padding=1)
        self.deconv2 = nn.ConvTranspose2d(128, 128, kernel_size=3, stride=2, padding=1, output_padding=1)
        self.deconv3 = nn.ConvTranspose2d(128, 64, kernel_size=3, stride=1, padding=1)
        self.deconv4 = nn.ConvTranspose2d(64, 32, kernel_size=3, stride=2, padding=1, output_padding=1)
        self.deconv5 = nn.ConvTranspose2d(32, 1, kernel_size=3, stride=1, padding=1)

    def forward(self, x):
        h = x
        for i in range(1, 6):
            h = F.relu(getattr(self, f"conv{i}")(h))
        h = self.dropout_fc(F.relu(self.fc1(self.dropout_conv(h).flatten(1))))
        mu, log_sigma = self.fc_mu(h), self.fc_log_sigma(h)
        z = mu + torch.exp(0.5 * log_sigma) * torch.randn_like(mu) if self.training else mu
        h = self.dropout_fc(F.relu(self.fc2(z))).view(-1, 256, 7, 7)
        for i in range(1, 5):
            h = F.relu(getattr(self, f"deconv{i}")(h))
        return self.deconv5(self.dropout_conv(h)), mu, log_sigma


def course_loss(logits, x, mu, log_sigma, beta):
    """BCE + beta * KLD, both summed over everything in an image, a mean over the batch."""
    bce = F.binary_cross_entropy(torch.sigmoid(logits), x, reduction="sum")
    kld = -0.5 * torch.sum(1 + log_sigma - mu.pow(2) - log_sigma.exp())
    return (bce + beta * kld) / len(x)


def our_name(name):
    return name.replace("fc_log_sigma", "fc_logvar")


@pytest.fixture(scope="module")
def x(digits):
    return as_images(digits[0][:24])


@pytest.fixture(scope="module")
def made():
    """Our network and the course project's, made from the same seed."""
    torch.manual_seed(0)
    ours = VAE()
    torch.manual_seed(0)
    return ours, CourseVAE()


@pytest.fixture
def both(made):
    """Copies of the two, to be changed."""
    torch.manual_seed(0)
    return copy.deepcopy(made)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_layer_for_layer(both):
    ours, course = both
    assert [name for name, _ in ours.named_parameters()] == [our_name(name) for name, _ in course.named_parameters()]
    for mine, theirs in zip(ours.parameters(), course.parameters()):
        assert torch.equal(mine, theirs)
    for name, theirs in course.named_children():
        mine = getattr(ours, our_name(name))
        assert isinstance(mine, type(theirs)) and str(mine).partition("(")[2] == str(theirs).partition("(")[2], name
    assert ours.latent_dim == 2 and ours.fc1.out_features == 512
    assert ours.dropout == ours.dropout_conv.p == ours.dropout_fc.p == 0.2


def test_same_pass_and_same_gradient(both, x):
    results = []
    for model in both:
        model.eval()
        logits, mu, logvar = model(x)
        out = logits, x, mu, logvar
        loss = vae_loss(*out).loss if isinstance(model, VAE) else course_loss(*out, beta=0.5)
        loss.backward()
        results.append([logits, mu, logvar, loss, *(p.grad for p in model.parameters())])
    assert results[0][0].shape == x.shape and results[0][1].shape == (24, 2)
    for mine, theirs in zip(*results):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_the_course_projects_weights_fit(x):
    torch.manual_seed(5)
    course, ours = CourseVAE().eval(), VAE().eval()
    ours.load_state_dict({our_name(name): value for name, value in course.state_dict().items()})
    torch.testing.assert_close(ours(x)[0], course(x)[0], atol=1e-5, rtol=1e-4)


def test_dropout_acts_in_training_only(both, x):
    model = both[0].train()
    assert not torch.equal(model(x, sample=False)[0], model(x, sample=False)[0])
    model.eval()
    assert torch.equal(model(x)[0], model(x)[0])
    torch.manual_seed(0)
    kept = model.dropout_conv.train()(torch.ones(500, 10, 7, 7)).flatten(2)
    assert ((kept == 0).all(2) | (kept == 1.25).all(2)).all()  # whole channels
    assert abs((kept == 0).float().mean() - 0.2) < 0.02


def test_reparameterisation():
    mu, logvar = (torch.full((200_000,), value, requires_grad=True) for value in (3.0, np.log(4.0)))
    z = reparameterize(mu, logvar, seeded())
    assert abs(z.mean() - 3) < 0.02 and abs(z.std() - 2) < 0.02
    eps = torch.randn(200_000, generator=seeded())
    torch.testing.assert_close(z, 3 + 2 * eps)
    z.sum().backward()
    torch.testing.assert_close(mu.grad, torch.ones_like(mu))
    torch.testing.assert_close(logvar.grad, 0.5 * 2 * eps)


def test_z_is_drawn_in_training_and_on_request(both, x):
    model = both[0].eval()
    logits, mu, logvar = model(x)
    assert torch.equal(logits, model.decode(mu))
    drawn = model(x, seeded(1), sample=True)[0]
    assert torch.equal(drawn, model.decode(reparameterize(mu, logvar, seeded(1))))
    assert torch.equal(drawn, model(x, seeded(1), sample=True)[0])
    assert not torch.equal(drawn, model(x, seeded(2), sample=True)[0])
    for part in (model.dropout_conv, model.dropout_fc):
        part.p = 0.0
    model.train()
    assert not torch.equal(model(x)[0], model(x)[0])


@pytest.mark.parametrize("beta", [0.5, 1, 4])
def test_bce_plus_beta_kl(beta):
    torch.manual_seed(0)
    logits, x = torch.randn(6, 1, 28, 28, dtype=torch.float64), torch.rand(6, 1, 28, 28, dtype=torch.float64)
    mu, logvar = torch.randn(2, 6, 2, dtype=torch.float64)
    loss = vae_loss(logits, x, mu, logvar, beta)
    torch.testing.assert_close(loss.loss, course_loss(logits, x, mu, logvar, beta))
    torch.testing.assert_close(loss.loss, loss.reconstruction + beta * loss.kl)
    torch.testing.assert_close(loss.elbo, -course_loss(logits, x, mu, logvar, 1))  # a bound at beta = 1 only
    assert reconstruction_loss(logits, x).shape == kl_divergence(mu, logvar).shape == (6,)
    assert [term.ndim for term in loss] == [0, 0, 0]
    assert vae_loss(logits, x, mu, logvar) == vae_loss(logits, x, mu, logvar, 0.5)


def test_the_loss_is_taken_from_logits():
    logits, ink = torch.full((1, 1, 28, 28), -200.0, requires_grad=True), torch.ones(1, 1, 28, 28)
    loss = reconstruction_loss(logits, ink)
    loss.sum().backward()
    assert loss.item() == 784 * 200 and (logits.grad == -1).all()  # from probabilities: 100 a pixel, and no gradient


def test_a_target_outside_would_have_no_floor():
    losses = [reconstruction_loss(torch.full((1, 1, 28, 28), a), torch.full((1, 1, 28, 28), -0.3)).item()
              for a in (-10.0, -100.0, -1000.0)]
    assert losses[0] > losses[1] > losses[2]
    with pytest.raises(ValueError, match="expected fractions from 0 to 1"):
        as_images(torch.full((1, 1, 28, 28), -0.3))


def test_every_weight_learns(both, x):
    model = both[0].train()
    optimiser, losses = torch.optim.Adam(model.parameters(), lr=1e-3), []
    for _ in range(8):
        logits, mu, logvar = model(x)
        loss = vae_loss(logits, x, mu, logvar).loss
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad.abs().sum() > 0 for p in model.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize("latent_dim", [1, 2, 16])
def test_shapes(latent_dim, x):
    model = VAE(latent_dim).eval()
    logits, mu, logvar = model(x)
    assert logits.shape == x.shape and mu.shape == logvar.shape == (24, latent_dim)
    assert model(x[:0])[0].shape == (0, 1, 28, 28)


@pytest.mark.parametrize("wrong, why", [
    (lambda x: x.flatten(1), r"shape \(B, 1, 28, 28\), got \(24, 784\)"),
    (lambda x: x[:, 0], r"shape \(B, 1, 28, 28\), got \(24, 28, 28\)"),
    (lambda x: x[..., 1:], r"shape \(B, 1, 28, 28\), got \(24, 1, 28, 27\)"),
    (lambda x: (x * 255).to(torch.uint8), "float tensor with values in .*, got torch.uint8"),
    (lambda x: x.numpy(), "float tensor with values in .*, got ndarray"),
])
def test_one_form_of_an_image(both, x, wrong, why):
    with pytest.raises(ValueError, match=f"^images must (be a|have) {why}$"):
        both[0](wrong(x))


def test_what_cannot_be_right_is_refused(both):
    with pytest.raises(ValueError, match="latent_dim must be at least 1, got 0"):
        VAE(latent_dim=0)
    with pytest.raises(ValueError, match="dropout must be .* got 1.0"):
        VAE(dropout=1.0)
    with pytest.raises(ValueError, match=r"z must have shape \(B, 2\), got \(4, 3\)"):
        both[0].decode(torch.zeros(4, 3))


@pytest.mark.parametrize("training", [False, True])
def test_using_the_network(both, x, training):
    model = both[0].train(training)
    z, pictures = encode(model, x), reconstruct(model, x)
    assert z.dtype == np.float64 and z.shape == (24, 2)
    assert pictures.dtype == np.float32 and pictures.shape == (24, 1, 28, 28)
    assert 0 <= pictures.min() and pictures.max() <= 1
    assert np.array_equal(pictures, decode(model, z))
    np.testing.assert_allclose(encode(model, x, batch_size=7), z, atol=1e-5)
    terms = evaluate(model, x)
    assert terms == evaluate(model, x) and elbo(model, x) == elbo(model, x)
    assert model.training is training  # as it was found
    logits, mu, logvar = model.eval()(x)
    loss = vae_loss(logits, x, mu, logvar)
    np.testing.assert_allclose(terms, [loss.reconstruction.item(), loss.kl.item()], rtol=1e-5)
    np.testing.assert_allclose(evaluate(model, x, batch_size=7), terms, rtol=1e-5)
    np.testing.assert_allclose(z, mu.detach().numpy(), atol=1e-6)


def test_the_elbo_is_taken_with_drawn_z(both, x):
    model = both[0].eval()
    drawn = [vae_loss(*(out := model(x, seeded(i), sample=True))[:1], x, *out[1:]).elbo.item() for i in range(40)]
    assert abs(elbo(model, x, samples=40, seed=9) - np.mean(drawn)) < 0.05
    assert np.std(drawn) > 0


# --- what a session may have set, and networks of other widths --------------------------------------------------------
@contextmanager
def default_type():
    torch.set_default_dtype(torch.float64)
    try: yield
    finally: torch.set_default_dtype(torch.float32)


SESSIONS = [default_type, torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16),
            lambda: np.errstate(all="raise")]


def uses(model, x):
    """All that a network is used for."""
    measures = np.array([*evaluate(model, x), elbo(model, x, 2)])
    return encode(model, x), reconstruct(model, x), decode(model, [[0, 1]]), measures


@pytest.mark.parametrize("session", SESSIONS)
def test_whatever_the_session_has_set(x, session):
    def made():
        torch.manual_seed(0)
        return VAE()
    right = made()
    with session():
        found = made()
        results = uses(found, x[:8])
    assert all(torch.equal(a, b) and b.requires_grad and b.dtype == torch.float32 and not b.is_inference()
               for a, b in zip(right.parameters(), found.parameters()))
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(results, uses(right, x[:8])))
    vae_loss(*(out := found(x[:4]))[:1], x[:4], *out[1:]).loss.backward()  # it can be trained
    assert all(p.grad is not None for p in found.parameters())


@pytest.mark.parametrize("dtype, off", [(torch.float64, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_networks_of_other_widths(both, x, dtype, off):
    right = uses(both[0], x[:8])
    for found, expected in zip(uses(both[0].to(dtype), x[:8]), right):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, atol=off, rtol=off)


@pytest.mark.parametrize("z", [
    [[0, 1]], np.array([[0.0, 1.0]]), np.broadcast_to(np.float32([0, 1]), (1, 2)), np.array([[1, 0]])[:, ::-1],
    torch.tensor([[0.0, 1.0]], requires_grad=True), torch.tensor([[0.0, 1.0]], dtype=torch.float64)])
def test_latent_points_of_every_kind(both, z):
    torch.set_warn_always(True)
    try: image = decode(both[0], z)
    finally: torch.set_warn_always(False)
    assert np.array_equal(image, decode(both[0], np.array([[0.0, 1.0]])))


def test_each_layer_keeps_its_mode(both, x):
    model = both[0].train()
    model.dropout_fc.eval()  # as somebody set it
    uses(model, x[:4])
    assert model.training and model.dropout_conv.training and not model.dropout_fc.training
    model.decode = None  # an error in the middle
    with pytest.raises(TypeError):
        evaluate(model, x[:4])
    assert model.training and not model.dropout_fc.training and torch.is_grad_enabled()


@pytest.mark.parametrize("use", [encode, reconstruct, evaluate, elbo])
@pytest.mark.parametrize("wrong, why", [(lambda x: x[:0], "got none"), (lambda x: x.numpy(), "got ndarray"),
                                        (lambda x: x.flatten(1), r"got \(24, 784\)")])
def test_one_sentence_for_other_images(both, x, use, wrong, why):
    with pytest.raises(ValueError, match=f"^images must be? .*{why}$|^images must have .*{why}$"):
        use(both[0], wrong(x))


def test_settings_from_numpy():
    model = VAE(np.int64(3), np.float64(0.1))
    assert type(model.latent_dim) is int and type(model.dropout) is float and type(model.dropout_fc.p) is float
    for wrong in (2.0, "2", None, np.nan):
        with pytest.raises(ValueError, match="latent_dim must be at least 1, got .*; expected a whole number"):
            VAE(wrong)
    for wrong in (np.nan, "0.1", None, -0.1):
        with pytest.raises(ValueError, match="dropout must be at least 0 and below 1, got"):
            VAE(dropout=wrong)
