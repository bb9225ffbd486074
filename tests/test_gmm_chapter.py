"""Chapter 3's functions against independent ones, its prior, and the mixture for other people's data against both."""
import math

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close

from vae_gmm import gmm
from vae_gmm.mixture import GaussianMixture
from vae_gmm.mixture.steps import Parameters, block_sums, precision_cholesky, update

rng = np.random.default_rng(0)
X = np.concatenate([rng.normal(m, s, size=(n, 3)) for m, s, n in ((0, 1, 500), (4, 0.5, 300), (-3, 2, 200))])
A = rng.normal(size=(3, 3, 3))
START = np.array([0.2, 0.3, 0.5]), X[[0, 600, 900]], A @ A.transpose(0, 2, 1) + np.eye(3)
Z, START_T = torch.tensor(X), gmm.Mixture(*(torch.tensor(v) for v in START))
GROUP = torch.tensor([0] * 500 + [1] * 300 + [2] * 200)
VAR = torch.tensor(rng.uniform(0.01, 0.5, size=X.shape))


def torchs(mixture):
    return MixtureSameFamily(Categorical(mixture.weights), MultivariateNormal(mixture.means, mixture.covariances))


def expected(z, var, mixture):
    "log pi_c + E[log N(. | mu_c, Sigma_c)] over N(z_i, diag var_i), from torch's divergences and entropies."
    q = MultivariateNormal(z[:, None], torch.diag_embed(var)[:, None])
    return mixture.weights.log() - kl_divergence(q, MultivariateNormal(*mixture[1:])) - q.entropy()


def prior(mixture=START_T, **options):
    made = gmm.MixturePrior(len(mixture.weights), **options)
    made.load_state_dict(mixture._asdict())
    return made


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
    p, bounds = START_T, []
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


def test_the_m_step_of_gaussian_points_is_that_of_many_draws():
    z, var, n = Z[::50], VAR[::50], 40_000
    resp = gmm.e_step(z, *START_T)[0]
    draws = z + var.sqrt() * torch.from_numpy(np.random.default_rng(1).standard_normal((n, *z.shape)))
    many = gmm.m_step(draws.flatten(0, 1), resp.repeat(n, 1))
    for ours, theirs in zip(gmm.m_step(z, resp, var=var), many): assert_close(ours, theirs, atol=0.02, rtol=0)
    for ours, theirs in zip(gmm.m_step(z, resp, var=0 * var), gmm.m_step(z, resp)): assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shrinking(dtype):
    mixture = gmm.Mixture(*(a.to(dtype) for a in START_T))
    shared = sum(w * S for w, S in zip(mixture.weights, mixture.covariances))
    for amount in (0, 0.3, 1):
        shrunk = gmm.shrink(mixture, amount)
        assert shrunk.weights is mixture.weights and shrunk.means is mixture.means and shrunk.covariances.dtype == dtype
        for S, was in zip(shrunk.covariances, mixture.covariances):
            assert_close(S, (1 - amount) * was + amount * shared)
        assert_close(torch.einsum("c,cij->ij", shrunk.weights, shrunk.covariances), shared)   # this stays
    one = gmm.Mixture(*(a[:1] for a in mixture))._replace(weights=torch.ones(1, dtype=dtype))
    assert_close(gmm.shrink(one, 0.7), one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_start_is_the_statistics_of_the_clusters(dtype):
    z = Z[:800].to(dtype)
    mixture = gmm.k_means_mixture(z, 2, seed=3)
    assert {a.dtype for a in mixture} == {dtype}
    order = mixture.means[:, 0].argsort()
    for k, points in zip(order, (z[:500], z[500:])):
        assert_close(mixture.weights[k].item(), len(points) / 800, atol=0.01, rtol=0)
        assert_close(mixture.means[k], points.mean(dim=0), atol=0.05, rtol=0)
        assert_close(mixture.covariances[k], torch.cov(points.T, correction=0) + 1e-3 * torch.eye(3, dtype=dtype),
                     atol=0.05, rtol=0)
    for a, b in zip(mixture, gmm.k_means_mixture(z, 2, seed=3)): assert torch.equal(a, b)
    one = gmm.k_means_mixture(z[:, :1], 1)
    assert_close(one.covariances, z[:, :1].var(dim=0, correction=0).view(1, 1, 1) + 1e-3)


def test_too_few_points_to_start_from():
    with pytest.raises(ValueError, match="n_clusters"): gmm.k_means_mixture(Z[:2], 3)


@pytest.mark.parametrize("dtype, eps", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_divergence_and_responsibilities(dtype, eps):
    p = prior()
    mu, logvar = Z.to(dtype), VAR.log().to(dtype)
    z = (mu + torch.randn(mu.shape, dtype=dtype, generator=torch.Generator().manual_seed(0)) * (logvar / 2).exp())
    kl, log_resp = p.kl(mu, logvar, z), p.log_resp(z)
    assert kl.dtype == log_resp.dtype == dtype and kl.shape == (1000,) and log_resp.shape == (1000, 3)
    entropy = Independent(Normal(Z, VAR.sqrt()), 1).entropy()
    assert_close(kl.double(), -entropy - torchs(START_T).log_prob(z.double()), rtol=eps, atol=10 * eps)
    assert_close(log_resp.double(), gmm.e_step(z.double(), *START_T)[0].log(), rtol=eps, atol=10 * eps)


def test_the_mean_over_draws_is_the_divergence():
    one = gmm.Mixture(torch.ones(1).double(), START_T.means[:1], START_T.covariances[:1])
    mu, logvar = Z[:1].expand(50_000, 3), VAR[:1].log().expand(50_000, 3)
    z = mu + (logvar / 2).exp() * torch.from_numpy(np.random.default_rng(0).standard_normal(mu.shape))
    kl = prior(one).kl(mu, logvar, z)
    q, p = MultivariateNormal(Z[0], torch.diag(VAR[0])), MultivariateNormal(one.means[0], one.covariances[0])
    exact = kl_divergence(q, p)
    assert abs(kl.mean() - exact) < 4 * kl.std() / 50_000**0.5


def test_one_component_one_dimension():
    p = gmm.MixturePrior(1, reg_covar=0)
    p.start(Z[:, :1])
    p.refit(Z[:, :1], VAR[:, :1].log())
    assert_close(p.mixture.means[0], Z[:, 0].mean()[None])
    assert_close(p.mixture.covariances[0, 0, 0], Z[:, 0].var(correction=0) + VAR[:, 0].mean())
    assert_close(p.log_resp(Z[:, :1]), torch.zeros(1000, 1).double())


@pytest.mark.parametrize("equal, imagined", [(False, 0), (True, 0), (False, 0.1), (False, 3)])
def test_a_refit_without_shrinking_climbs(equal, imagined):
    """With imagined points too, but then the sum of the bound and of the logarithm of the Dirichlet density."""
    options = dict(equal_weights=equal, shrinkage=0, reg_covar=0, weight_prior=imagined)
    p, bounds = prior(**options), []
    if equal: p.refit(Z, VAR.log())                      # from here on the weights stay
    for _ in range(25):
        density = imagined / 3 * p.mixture.weights.log().sum()
        bounds.append(expected(Z, VAR, p.mixture).logsumexp(dim=1).mean() + density)
        p.refit(Z, VAR.log())
    assert (np.diff(bounds) > -1e-12).all() and bounds[-1] > bounds[0] + 0.01
    again = prior(**options)
    again.refit(Z, VAR.log(), steps=25 + equal)
    for a, b in zip(again.mixture, p.mixture): assert torch.equal(a, b)


@pytest.mark.parametrize("imagined, expected_weights", [
    (0, (0.5, 0.3, 0.2)), (0.1, (16 / 33, 10 / 33, 7 / 33)), (1, (5 / 12, 19 / 60, 4 / 15)), (1e12, (1 / 3,) * 3)])
def test_imagined_points_draw_the_weights_together(imagined, expected_weights):
    """Groups far apart, of 500, 300 and 200 points, so that N_c is known: (N_c + N_0) / (n + 3 N_0)."""
    far, nothing = Z + 100 * GROUP[:, None], torch.full_like(Z, -200)
    means = torch.stack([far[GROUP == c].mean(0) for c in range(3)])
    p = prior(gmm.Mixture(START_T.weights, means, torch.eye(3).double().expand(3, 3, 3)), equal_weights=False,
              weight_prior=imagined)
    p.refit(far, nothing)
    assert_close(p.mixture.weights, torch.tensor(expected_weights, dtype=torch.float64))


def test_a_component_that_has_died_comes_back_under_imagined_points():
    dead = START_T._replace(weights=torch.tensor([0.5, 0.5, 0.0]).double())
    left = {}
    for imagined in (0, 0.1):
        p = prior(dead, equal_weights=False, shrinkage=0, reg_covar=1e-4, weight_prior=imagined)
        p.refit(Z, VAR.log())
        left[imagined] = p.mixture.weights[2].item()
    assert left[0] < 1e-15 and left[0.1] > 0.03
    for wrong in (-1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"weight_prior must be finite and not negative, got {wrong}"):
            gmm.MixturePrior(3, weight_prior=wrong)


@pytest.mark.parametrize("equal", [False, True])
def test_a_refit_with_shrinking_settles(equal):
    p = prior(equal_weights=equal)
    p.refit(Z, VAR.log(), steps=300)
    before = p.mixture
    p.refit(Z, VAR.log())
    for a, b in zip(p.mixture, before): assert_close(a, b, atol=1e-6, rtol=0)
    right = torch.zeros(3, 3).index_put_((GROUP, p.log_resp(Z).argmax(dim=1)), torch.ones(1000), accumulate=True)
    assert right.max(dim=1).values.sum() > 950


def test_a_refit_by_its_parts():
    p = prior(shrinkage=0.3, reg_covar=1e-2)
    p.refit(Z.float(), VAR.log().float())
    resp = expected(Z.float().double(), VAR.log().float().double().exp(), START_T).softmax(dim=1)
    N, means = resp.sum(dim=0), (resp.T @ Z) / resp.sum(dim=0)[:, None]
    own = torch.stack([torch.einsum("n,ni,nj->ij", r, Z - m, Z - m) / n + torch.diag(r @ VAR) / n + 1e-2 * torch.eye(3)
                       for r, m, n in zip(resp.T, means, N)])
    assert_close(p.mixture.weights, torch.full((3,), 1 / 3).double())      # after the shared covariance, not before
    assert_close(p.mixture.means, means, atol=1e-5, rtol=0)
    assert_close(p.mixture.covariances, 0.7 * own + 0.3 * torch.einsum("c,cij->ij", N / 1000, own), atol=1e-5, rtol=0)


def test_latents_in_one_place_do_not_break_it():
    p = prior(shrinkage=0, reg_covar=1e-4)
    p.refit(torch.zeros(64, 3), torch.full((64, 3), -60.0), steps=5)
    assert_close(p.mixture.covariances, 1e-4 * torch.eye(3).double().expand(3, 3, 3))
    assert p.kl(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3)).isfinite().all()


def test_no_gradient_flows_into_the_mixture():
    net = torch.nn.Linear(3, 3).double()
    p = prior()
    mu = net(Z[:32])
    p.start(net(Z))
    p.refit(net(Z), net(Z))
    (p.kl(mu, 0 * mu, mu).sum() - p.log_resp(mu)[:, 0].sum()).backward()
    assert not any(a.requires_grad for a in p.mixture) and net.weight.grad.abs().sum() > 0


def test_the_state_goes_round(tmp_path):
    p = prior()
    p.refit(Z, VAR.log(), steps=3)
    torch.save(p.state_dict(), tmp_path / "prior")
    q = gmm.MixturePrior(3)
    q.load_state_dict(torch.load(tmp_path / "prior"))
    assert set(p.state_dict()) == {"weights", "means", "covariances"}
    for a, b in zip(p.mixture, q.mixture): assert torch.equal(a, b) and b.dtype == torch.float64
    for one in (p, q): one.refit(Z, VAR.log())
    for a, b in zip(p.mixture, q.mixture): assert torch.equal(a, b)
    fresh = gmm.MixturePrior(3)
    assert fresh.state_dict() == {} and fresh.mixture is None
    q.load_state_dict(fresh.state_dict())
    assert q.mixture is None


@pytest.mark.parametrize("options, message", [
    ({"n_components": 0}, "n_components must be at least 1, got 0"),
    ({"shrinkage": 1.5}, "shrinkage must be within 0 and 1, got 1.5"),
    ({"shrinkage": math.nan}, "shrinkage must be within 0 and 1, got nan"),
    ({"reg_covar": -1.0}, "reg_covar must not be negative, got -1.0")])
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message): gmm.MixturePrior(**{"n_components": 3, **options})


@pytest.mark.parametrize("change, message", [
    (lambda s: s.pop("means"), "the state of a mixture prior lacks means"),
    (lambda s: s.update(weights=torch.ones(2) / 2), r"weights must have shape \(3,\), got \(2,\)"),
    (lambda s: s.update(covariances=torch.eye(3)), r"covariances must have shape \(3, 3, 3\), got \(3, 3\)"),
    (lambda s: s.update(means=torch.full((3, 3), math.nan)), "means must be finite"),
    (lambda s: s.update(covariances=-s["covariances"]), "covariances must be positive definite")])
def test_wrong_states(change, message):
    state, p = dict(START_T._asdict()), prior()
    change(state)
    with pytest.raises(ValueError, match=message): p.load_state_dict(state)
    assert p.mixture is not None                                           # what it had stays


@pytest.mark.parametrize("use", [lambda p: p.kl(Z, Z, Z), lambda p: p.log_resp(Z), lambda p: p.refit(Z, Z)])
def test_before_the_start(use):
    with pytest.raises(RuntimeError, match="call start first"): use(gmm.MixturePrior(3))


@pytest.mark.parametrize("D", [3, 8])
@pytest.mark.parametrize("K", [1, 2, 3, 4, 10])
def test_the_plane(K, D):
    g = torch.Generator().manual_seed(K)
    A, means = torch.randn(K, D, D, generator=g).double(), 3 * torch.randn(K, D, generator=g).double()
    mixture = gmm.Mixture(torch.ones(K).double() / K, means, A @ A.mT + torch.eye(D))
    plane, W = gmm.discriminant_plane(mixture), gmm.shrink(mixture, 1).covariances[0]
    assert_close(plane.onto.T @ plane.axes, torch.eye(2).double(), atol=1e-8, rtol=0)
    assert_close(plane.onto.T @ W @ plane.onto, torch.eye(2).double(), atol=1e-8, rtol=0)   # circles within
    ab = torch.randn(5, 2, generator=g).double()
    assert_close(plane.project(plane.lift(ab)), ab)
    assert (plane.axes.gather(0, plane.axes.abs().argmax(dim=0, keepdim=True)) > 0).all()
    if K <= 3:
        z, shared = torch.randn(50, D, generator=g).double(), gmm.shrink(mixture, 1)
        assert_close(plane.lift(plane.project(mixture.means)), mixture.means)
        assert_close(gmm.e_step(plane.project(z), *plane.shadow(shared))[0], gmm.e_step(z, *shared)[0])
    if K == 2:
        assert_close(plane.project(mixture.means)[:, 1], torch.zeros(2).double(), atol=1e-8, rtol=0)
        line, (v,) = mixture.means[1] - mixture.means[0], plane.onto[:, 1:].T
        across = [d - (d @ line) / (line @ line) * line for d in torch.randn(200, D, generator=g).double()]
        assert abs(v @ line) < 1e-8 and (v @ W @ v) / (v @ v) >= max((d @ W @ d) / (d @ d) for d in across) - 1e-8


@pytest.mark.parametrize("K, dtype", [(3, torch.float64), (3, torch.float32), (6, torch.float64)])
def test_the_plane_is_that_of_scikit_learn(K, dtype):
    r = np.random.default_rng(0)
    y = r.choice(K, size=600)
    x = 2 * r.normal(size=(K, 8))[y] + r.normal(size=(600, 8)) @ r.normal(size=(8, 8))
    mixture = gmm.m_step(torch.tensor(x).to(dtype), torch.eye(K, dtype=dtype)[torch.tensor(y)])
    theirs = LinearDiscriminantAnalysis(solver="eigen").fit(x, y).transform(x)[:, :2]
    ours = gmm.discriminant_plane(mixture).project(torch.tensor(x).to(dtype))
    assert ours.dtype == dtype
    atol = 1e-8 if dtype == torch.float64 else 0.02
    np.testing.assert_allclose(ours.abs(), np.abs(theirs - theirs.mean(0)), atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_components_in_one_place_or_on_one_line_have_a_plane_too(dtype):
    line = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.1], dtype=dtype)
    S = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=dtype)).expand(3, 5, 5)
    for places, first in (((0, 0, 0), None), ((-1, 0.3, 2), line), ((0, 0, 1), line)):
        means = 0.7 + torch.tensor(places, dtype=dtype)[:, None] * line
        plane = gmm.discriminant_plane(gmm.Mixture(torch.tensor([0.2, 0.3, 0.5], dtype=dtype), means, S))
        assert_close(plane.onto.T @ plane.axes, torch.eye(2, dtype=dtype), atol=1e-5, rtol=0)
        if first is None:                                                  # where the components are widest
            assert_close(plane.onto.abs().argmax(dim=0), torch.tensor([4, 3]))
        else:
            assert_close(torch.cosine_similarity(plane.axes[:, 0], first, dim=0), torch.ones((), dtype=dtype))
            assert_close(plane.onto[:, 1] @ line, torch.zeros((), dtype=dtype), atol=1e-5, rtol=0)


def test_two_dimensions_keep_their_plane_and_one_has_none():
    mixture = gmm.Mixture(START_T.weights, START_T.means[:, :2], START_T.covariances[:, :2, :2])
    plane = gmm.discriminant_plane(mixture)
    assert torch.equal(plane.project(Z[:, :2]), Z[:, :2]) and torch.equal(plane.lift(Z[:, :2]), Z[:, :2])
    assert_close(plane.shadow(mixture), mixture)
    with pytest.raises(ValueError, match="at least 2 dimensions, got 1"):
        gmm.discriminant_plane(gmm.Mixture(START_T.weights, Z[:3, :1], torch.ones(3, 1, 1).double()))
