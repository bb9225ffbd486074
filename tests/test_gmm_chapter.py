"""Chapter 3's EM on torch tensors: what its text promises, on data that the text does not use."""
import warnings

import numpy as np
import pytest
import sklearn.mixture
import torch
from sklearn.exceptions import ConvergenceWarning

from vae_gmm.mixture import Mixture, e_step, fit_mixture, log_joint, m_step

DTYPES = [torch.float32, torch.float64]
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def problem(seed, n=200, D=2, K=3, dtype=torch.float64):
    """Points around `K` centres, and a start of random responsibilities."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 3, size=(K, D))
    z = centres[rng.integers(K, size=n)] + rng.normal(size=(n, D)) * rng.uniform(0.3, 1.5, size=D)
    z = torch.tensor(z, dtype=dtype)
    return z, m_step(z, torch.tensor(rng.dirichlet(np.ones(K), size=n), dtype=dtype))


def assert_kind(tensors, dtype, device):
    for t in tensors:
        assert t.dtype == dtype and t.device.type == device and t.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sigmas", [1, 40, 1e3, 1e6])
def test_responsibilities_sum_to_one_far_away(sigmas, dtype, device):
    eye = torch.eye(2, dtype=dtype, device=device)
    mixture = Mixture(torch.tensor([0.5, 0.3, 0.2], dtype=dtype, device=device),
                      torch.tensor([[0, 1], [0, -1], [-2, 0]], dtype=dtype, device=device), torch.stack([eye] * 3))
    z = sigmas * torch.cat([eye, -eye])
    resp, log_prob = e_step(z, *mixture)
    assert_kind((resp, log_prob), dtype, device)
    torch.testing.assert_close(resp.sum(1), torch.ones_like(log_prob), rtol=0, atol=4 * torch.finfo(dtype).eps)
    if sigmas < 1e3:  # two are equally far; from there on single precision does not hold their weights beside z^2
        torch.testing.assert_close(resp[0, 0] / resp[0, 1], resp.new_tensor(5 / 3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_torch_distributions(dtype):
    z, start = problem(0, D=3, dtype=dtype)
    components = torch.distributions.MultivariateNormal(start.means, start.covariances)
    peer = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(start.weights), components)
    torch.testing.assert_close(log_joint(z, *start), start.weights.log() + components.log_prob(z[:, None]))
    torch.testing.assert_close(e_step(z, *start)[1], peer.log_prob(z))


@pytest.mark.parametrize("seed", range(50))
def test_the_likelihood_never_falls(seed):
    z, start = problem(seed, n=300 + 7 * seed, D=1 + seed % 4, K=1 + seed % 5)
    mixture, likelihoods = fit_mixture(z, start, max_iter=40, tol=0, reg_covar=0)
    assert len(likelihoods) == 41
    assert (np.diff(likelihoods) > -1e-12).all()
    assert likelihoods[0] == e_step(z, *start)[1].mean() and likelihoods[-1] == e_step(z, *mixture)[1].mean()


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scikit_learn_from_the_same_start(seed):
    z, start = problem(seed, D=1 + seed)
    ours, likelihoods = fit_mixture(z, start)
    theirs = sklearn.mixture.GaussianMixture(3, weights_init=start.weights.numpy(), means_init=start.means.numpy(),
                                             precisions_init=start.covariances.inverse().numpy(),
                                             tol=0, max_iter=len(likelihoods) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs.fit(z.numpy())
    for value, name in zip(ours, ("weights_", "means_", "covariances_")):
        np.testing.assert_allclose(value, getattr(theirs, name), rtol=1e-7, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(likelihoods[:-1], theirs.lower_bounds_, atol=1e-10)
    np.testing.assert_allclose(e_step(z, *ours)[0], theirs.predict_proba(z.numpy()), atol=1e-9)


def test_agrees_with_the_estimator():
    estimator = pytest.importorskip("vae_gmm.mixture.estimator")
    z, start = problem(3)
    mixture = fit_mixture(z, start)[0]
    model = estimator.GaussianMixture.from_parameters(*(v.numpy() for v in mixture))
    fresh = 3 * torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    resp, log_prob = e_step(fresh, *mixture)
    np.testing.assert_allclose(model.predict_proba(fresh.numpy()), resp, atol=1e-10)
    np.testing.assert_allclose(model.score_samples(fresh.numpy()), log_prob, rtol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dead_component(dtype, device):
    z = problem(1, dtype=dtype)[0].to(device)
    resp = torch.zeros(len(z), 3, dtype=dtype, device=device)
    resp[:100, 0] = resp[100:, 1] = 1  # nothing for the third
    start = m_step(z, resp, reg_covar=1e-6)
    assert_kind(start, dtype, device)
    assert 0 < start.weights[2] < 1e-6
    mixture, likelihoods = fit_mixture(z, start, max_iter=20)
    assert_kind(mixture, dtype, device)
    assert np.isfinite(likelihoods).all()
    two = fit_mixture(z, Mixture(start.weights[:2], start.means[:2], start.covariances[:2]), max_iter=20)[1]
    assert likelihoods[-1] == pytest.approx(two[-1], abs=1e-4)


def test_a_weight_of_zero():
    z, start = problem(2)
    weights = torch.tensor([0.4, 0.6, 0.0], dtype=torch.float64)
    resp, log_prob = e_step(z, weights, *start[1:])
    assert (resp[:, 2] == 0).all() and log_prob.isfinite().all()
    torch.testing.assert_close(log_prob, e_step(z, weights[:2], *(v[:2] for v in start[1:]))[1])


def test_a_collapsed_component_is_an_error_without_reg_covar():
    z = torch.zeros(10, 2, dtype=torch.float64)
    resp = torch.full((10, 2), 0.5, dtype=torch.float64)
    with pytest.raises(torch.linalg.LinAlgError):
        e_step(z, *m_step(z, resp))
    assert e_step(z, *m_step(z, resp, reg_covar=1e-6))[1].isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_finite(dtype, device):
    z, start = problem(4, dtype=dtype)
    z = torch.cat([z, z.new_tensor([[1e4, -1e4]])]).to(device).requires_grad_()
    theta = [v.to(device).requires_grad_() for v in start]
    log_joint(z, *theta).logsumexp(1).sum().backward()
    assert_kind([v.grad for v in (z, *theta)], dtype, device)
    joint = log_joint(z, *(v.detach() for v in theta))
    slope, = torch.autograd.grad(joint.sum(), z)
    expected = -sum(torch.linalg.solve(S, (z - m).T).T for m, S in zip(*(v.detach() for v in theta[1:])))
    torch.testing.assert_close(slope, expected.detach(), rtol=1e-3, atol=1e-4)


def test_gradients_against_differences():
    z, start = problem(5, n=6)
    resp = e_step(z, *start)[0]
    lower = torch.linalg.cholesky(start.covariances)
    inputs = [v.clone().requires_grad_() for v in (z, start.weights, start.means, lower)]
    assert torch.autograd.gradcheck(lambda z, w, m, L: e_step(z, w, m, L @ L.mT), inputs)
    assert torch.autograd.gradcheck(lambda z, r: tuple(m_step(z, r)), [inputs[0], resp.clone().requires_grad_()])


def test_it_stops_when_the_likelihood_stands_still():
    z, start = problem(6)
    likelihoods = fit_mixture(z, start, max_iter=500, tol=1e-5)[1]
    change = np.diff(likelihoods)
    assert len(change) < 500 and change[-1] < 1e-5 and (change[:-1] >= 1e-5).all()
    same, only = fit_mixture(z, start, max_iter=0)
    assert len(only) == 1 and all(a is b for a, b in zip(same, start))
