"""The mixture for other people's data holds to the equations as chapter 3 carries them out, on torch tensors."""
import numpy as np
import pytest
import torch

from vae_gmm import gmm
from vae_gmm.mixture import GaussianMixture
from vae_gmm.mixture.steps import Parameters, block_sums, precision_cholesky, update

rng = np.random.default_rng(0)
X = np.concatenate([rng.normal(m, s, size=(n, 3)) for m, s, n in ((0, 1, 500), (4, 0.5, 300), (-3, 2, 200))])
A = rng.normal(size=(3, 3, 3))
START = np.array([0.2, 0.3, 0.5]), X[[0, 600, 900]], A @ A.transpose(0, 2, 1) + np.eye(3)
Z, START_T = torch.tensor(X), tuple(torch.tensor(v) for v in START)


def test_the_e_step():
    resp, log_prob = gmm.e_step(Z, *START_T)
    model = GaussianMixture.from_parameters(*START)
    np.testing.assert_allclose(model.predict_proba(X), resp, atol=1e-12)
    np.testing.assert_allclose(model.score_samples(X), log_prob, rtol=1e-12)


@pytest.mark.parametrize("reg", [0.0, 1e-3])
def test_the_m_step(reg):
    p = Parameters(*START, precision_cholesky(START[2], "full"))
    loglik, *sums = block_sums(X.T, None, p, p.log_constants("full"), "full")
    resp, log_prob = gmm.e_step(Z, *START_T)
    np.testing.assert_allclose(loglik, log_prob.sum(), rtol=1e-12)
    for ours, theirs in zip(update(sums, p.means, p, "full", np.full(3, reg)), gmm.m_step(Z, resp, reg_covar=reg)):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


def test_thirty_iterations():
    p, bounds = gmm.Mixture(*START_T), []
    for _ in range(30):
        resp, log_prob = gmm.e_step(Z, *p)
        bounds.append(float(log_prob.mean()))
        p = gmm.m_step(Z, resp)
    model = GaussianMixture(3, weights_init=START[0], means_init=START[1], precisions_init=np.linalg.inv(START[2]),
                            reg_covar=0, tol=0, max_iter=30)
    with pytest.warns(match="did not converge"): model.fit(X)
    np.testing.assert_allclose(model.lower_bounds_, bounds, rtol=1e-9)
    for name, theirs in zip(("weights_", "means_", "covariances_"), p):
        np.testing.assert_allclose(getattr(model, name), theirs, atol=1e-8, err_msg=name)
