"""Promises of the mixture beyond scikit-learn's tests: numerics, weights, gaps, starts, messages, same bits."""
import warnings

import numpy as np
import pytest
import sklearn.mixture
import threadpoolctl
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from vae_gmm.mixture import GaussianMixture, fit_best

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
KINDS = ("full", "tied", "diag", "spherical")


def groups(n, seed=0, D=3, spread=4.0):
    "Points of three Gaussians of different shapes."
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(3, D, D)) / np.sqrt(D) + np.eye(D)
    c = rng.integers(3, size=n)
    return spread * rng.normal(size=(3, D))[c] + np.einsum("nij,nj->ni", A[c], rng.normal(size=(n, D)))


X = groups(1200)


def same(a, b, atol=1e-8, names=("weights_", "means_", "covariances_")):
    for name in names:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=atol, rtol=atol, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", ["kmeans", "random", "k-means++", "random_from_data"])
@pytest.mark.parametrize("n", [300, 40_000])
def test_scikit_learns_answer_from_the_same_seed(kind, init, n):
    if kind == "tied" and init in ("k-means++", "random_from_data"):
        pytest.skip("scikit-learn's start depends on the origin")
    Y = groups(n, seed=1)
    arguments = dict(n_components=3, covariance_type=kind, init_params=init, random_state=0, max_iter=20, tol=0)
    ours, theirs = GaussianMixture(**arguments).fit(Y), sklearn.mixture.GaussianMixture(**arguments).fit(Y)
    same(ours, theirs, 1e-7)
    np.testing.assert_allclose(ours.lower_bounds_[1:], theirs.lower_bounds_[1:], atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_computed_in_double(kind):
    pair = np.array([[9999], [0]], dtype=np.float32)
    narrow = GaussianMixture(2, covariance_type=kind, reg_covar=0.1, random_state=0).fit(pair)
    wide = GaussianMixture(2, covariance_type=kind, reg_covar=0.1, random_state=0).fit(pair.astype(float))
    assert narrow.covariances_.dtype == np.float32
    same(narrow, wide, 1e-5)
    np.testing.assert_allclose(narrow.covariances_, 0.1, rtol=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_the_likelihood_never_falls(kind, seed):
    model = GaussianMixture(4, covariance_type=kind, reg_covar=0, tol=0, max_iter=150, init_params="random",
                            random_state=seed)
    assert np.diff(model.fit(groups(800, seed, D=4, spread=2)).lower_bounds_).min() > -1e-10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_moving_and_scaling_the_data_moves_and_scales_the_model(kind, shift):
    arguments, moved = dict(n_components=3, covariance_type=kind, reg_covar=0, random_state=0), (X + shift) * 1e-9
    a = GaussianMixture(means_init=X[:3], **arguments).fit(X)
    b = GaussianMixture(means_init=moved[:3], **arguments).fit(moved)
    np.testing.assert_allclose(b.means_ * 1e9 - shift, a.means_, atol=1e-6)
    np.testing.assert_allclose(b.covariances_ * 1e18, a.covariances_, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", ["kmeans", "k-means++"])
def test_integer_weights_are_copies_and_zero_is_absence(kind, init):
    w = np.random.default_rng(0).integers(0, 4, size=len(X))
    arguments = dict(n_components=3, covariance_type=kind, init_params=init, random_state=0)
    copies = np.repeat(X, w, axis=0)
    weighted, copied = GaussianMixture(**arguments).fit(X, sample_weight=w), GaussianMixture(**arguments).fit(copies)
    same(weighted, copied)
    for name in ("score", "bic", "aic"):
        ours, theirs = getattr(weighted, name)(X, sample_weight=w), getattr(copied, name)(copies)
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    same(GaussianMixture(**arguments).fit(X, sample_weight=(w > 0)), GaussianMixture(**arguments).fit(X[w > 0]))
    same(GaussianMixture(**arguments).fit(X, sample_weight=w * 1e-3), weighted)
    same(GaussianMixture(**arguments).fit(X, sample_weight=2), GaussianMixture(**arguments).fit(X))
    np.testing.assert_allclose(weighted.bic(X, sample_weight=2), weighted.bic(np.repeat(X, 2, axis=0)))


def mixture_with_gaps(seed, n=2000):
    truth = GaussianMixture.from_parameters([0.5, 0.3, 0.2], [[0, 0, 0], [6, 0, 6], [0, 7, -6]],
                                            [np.eye(3) + 0.6, np.diag([1, 2, 0.5]), 1.5 * np.eye(3) - 0.4])
    Y, c = truth.sample(n, random_state=seed)
    Y[np.random.default_rng(seed).random(Y.shape) < 0.2] = np.nan
    return truth, Y, c


def test_gaps_the_means_are_within_two_standard_errors():
    inside = []
    for seed in range(20):
        truth, Y, c = mixture_with_gaps(seed)
        fitted = GaussianMixture(3, missing="marginalise", means_init=truth.means_, tol=1e-6, max_iter=300).fit(Y)
        seen = np.stack([(~np.isnan(Y[c == k])).sum(axis=0) for k in range(3)])
        error = np.sqrt(np.diagonal(truth.covariances_, axis1=1, axis2=2) / seen)
        inside.append(np.abs(fitted.means_ - truth.means_) < 2 * error)
        if seed == 0: assert inside[0].all()
    assert 0.92 < np.mean(inside) < 0.99      # two standard errors hold 95 % of normal deviates


@pytest.mark.parametrize("kind", KINDS)
def test_gaps_in_answers(kind):
    truth, Y, _ = mixture_with_gaps(0, 400)
    model = GaussianMixture(3, covariance_type=kind, missing="marginalise", random_state=0, reg_covar=0, tol=0,
                            max_iter=60).fit(Y)
    assert np.diff(model.lower_bounds_).min() > -1e-10
    S = model.covariances_
    full = {"full": lambda: S, "tied": lambda: [S] * 3, "diag": lambda: [np.diag(v) for v in S],
            "spherical": lambda: [v * np.eye(3) for v in S]}[kind]()
    for y, log_prob in zip(Y[:50], model.score_samples(Y[:50])):      # the density of what was seen
        o = ~np.isnan(y)
        if not o.any(): continue
        seen = [np.asarray(S)[np.ix_(o, o)] for S in full]
        part = GaussianMixture.from_parameters(model.weights_, model.means_[:, o], seen)
        np.testing.assert_allclose(part.score_samples(y[None, o])[0], log_prob)
    nothing_seen = np.full((1, 3), np.nan)
    np.testing.assert_allclose(model.predict_proba(nothing_seen)[0], model.weights_)
    with pytest.raises(ValueError, match="contains NaN"): GaussianMixture(2).fit(Y)
    with pytest.raises(ValueError, match="column 1"):
        GaussianMixture(2, missing="marginalise").fit(np.column_stack([Y[:, 0], Y[:, 1] * np.nan]))


@pytest.mark.parametrize("kind", KINDS)
def test_from_parameters(kind):
    fitted = GaussianMixture(3, covariance_type=kind, random_state=0).fit(X)
    parameters = fitted.weights_, fitted.means_, fitted.covariances_, kind
    given = GaussianMixture.from_parameters(*parameters)
    np.testing.assert_allclose(given.predict_proba(X), fitted.predict_proba(X), atol=1e-10)
    for a, b in zip(given.sample(30, random_state=3), fitted.sample(30, random_state=3)):
        np.testing.assert_array_equal(a, b)
    more = GaussianMixture.from_parameters(*parameters, warm_start=True, tol=1e-9).fit(X)
    assert more.score(X) > fitted.score(X) - 1e-6


def test_sample_takes_a_seed_and_leaves_the_model_alone():
    model = GaussianMixture(2, random_state=0).fit(X)
    np.testing.assert_array_equal(model.sample(5, random_state=1)[0], model.sample(5, random_state=1)[0])
    assert (model.sample(5, random_state=1)[0] != model.sample(5, random_state=2)[0]).all()
    theirs = sklearn.mixture.GaussianMixture(2, random_state=0).fit(X)
    np.testing.assert_allclose(model.sample(5)[0], theirs.sample(5)[0], atol=1e-6)


def test_fit_best_finds_three():
    best, curve = fit_best(X, range(1, 6), random_state=0, n_init=3)
    assert best.n_components == 3 == min(curve, key=curve.get) and list(curve) == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="criterion must be 'bic' or 'aic', got 'r2'"): fit_best(X, criterion="r2")
    for bad in (3, []):
        with pytest.raises(ValueError, match="n_components must be one or more numbers"): fit_best(X, bad)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_for_any_number_of_threads(kind):
    Y, models = groups(60_000), []
    for threads in (1, 2, 2):
        with threadpoolctl.threadpool_limits(threads, user_api="blas"):
            models.append(GaussianMixture(3, covariance_type=kind, means_init=Y[:3], init_params="random",
                                          random_state=0, max_iter=5).fit(Y))
    for other in models[1:]:
        for name in ("means_", "covariances_", "lower_bounds_"):
            np.testing.assert_array_equal(getattr(models[0], name), getattr(other, name))


def test_fits_in_several_threads_leave_blas_as_it_was():
    from concurrent.futures import ThreadPoolExecutor
    Y = groups(50_000)
    before = [lib["num_threads"] for lib in threadpoolctl.threadpool_info()]
    arguments = dict(n_components=3, means_init=Y[:3], init_params="random", random_state=0, max_iter=4)
    with ThreadPoolExecutor(3) as pool:
        models = list(pool.map(lambda _: GaussianMixture(**arguments).fit(Y), range(6)))
    assert [lib["num_threads"] for lib in threadpoolctl.threadpool_info()] == before
    for m in models[1:]: np.testing.assert_array_equal(m.means_, models[0].means_)


def test_an_init_that_scikit_learn_cannot_return():
    model = GaussianMixture(3, weights_init=[0.2, 0.3, 0.5], means_init=X[:3], precisions_init=[np.eye(3)] * 3,
                            max_iter=0).fit(X)
    np.testing.assert_allclose(model.covariances_, [np.eye(3)] * 3, atol=1e-12)
    assert model.n_iter_ == 0 and not model.converged_


BAD = [
    (dict(n_components=0), X, "n_components.*GaussianMixture.*Got 0"),
    (dict(covariance_type="round"), X, "covariance_type.*Got 'round'"),
    (dict(init_params="zeros"), X, "init_params.*Got 'zeros'"),
    (dict(missing="drop"), X, "missing.*Got 'drop'"),
    (dict(tol=-1.0), X, "tol.*Got -1.0"),
    (dict(reg_covar=-1e-3), X, "reg_covar.*Got -0.001"),
    (dict(n_components=9), X[:5], "n_components = 9, n_samples = 5"),
    (dict(), np.where(X > 1, np.inf, X), "X contains infinity"),
    (dict(), np.where(X > 1, np.nan, X), "X contains NaN"),
    (dict(), X[0], "Expected 2D array, got 1D"),
    (dict(n_components=2, means_init=np.zeros((2, 2))), X,
     r"'means' should have the shape of \(2, 3\), but got \(2, 2\)"),
    (dict(n_components=2, means_init=np.full((2, 3), np.nan)), X, "means_init contains NaN"),
    (dict(n_components=2, weights_init=[0.7, 0.7]), X, r"sum\(weights\) = 1.40000"),
    (dict(n_components=2, weights_init=[-0.5, 1.5]), X, "smallest is -0.50000, the largest 1.50000"),
    (dict(precisions_init=[-np.eye(3)]), X,
     "'full precision' should be symmetric, positive-definite, but matrix 0 has the eigenvalue -1"),
    (dict(precisions_init=[np.arange(9.0).reshape(3, 3)]), X, "matrix 0 is not symmetric"),
    (dict(covariance_type="diag", precisions_init=[[1.0, 2.0, -3.0]]), X,
     "'diag precision' should be positive, but got -3"),
]


@pytest.mark.parametrize("arguments, data, message", BAD)
def test_errors_name_argument_and_value(arguments, data, message):
    with pytest.raises(ValueError, match=message): GaussianMixture(**arguments).fit(data)


def test_errors_of_answers_and_weights():
    model = GaussianMixture(2, random_state=0).fit(X)
    with pytest.raises(ValueError, match="X has 2 features, but GaussianMixture is expecting 3"):
        model.predict(X[:, :2])
    for bad in (0, 2.5):
        with pytest.raises(ValueError, match=f"Invalid value for 'n_samples': {bad}"): model.sample(bad)
    with pytest.raises(ValueError, match="[Nn]egative"): model.fit(X, sample_weight=-np.ones(len(X)))
    with pytest.raises(ValueError, match=r"\(5,\)"): model.fit(X, sample_weight=np.ones(5))


@pytest.mark.parametrize("arguments, message", [
    (dict(weights=[0.5, 0.6]), r"sum\(weights\) = 1.10000"),
    (dict(weights=[0.5, np.nan]), "weights contains NaN"),
    (dict(means=[0.0, 1.0]), r"means must have the shape \(n_components, n_features\), but got \(2,\)"),
    (dict(means=[[0.0, np.inf], [1.0, 1.0]]), "means contains infinity"),
    (dict(covariances=np.eye(2)), r"'full covariance' should have the shape of \(2, 2, 2\), but got \(2, 2\)"),
    (dict(covariances=[-np.eye(2)] * 2),
     "'full covariance' should be symmetric, positive-definite, but matrix 0 has the eigenvalue -1"),
    (dict(covariance_type="round"), "covariance_type.*Got 'round'"),
])
def test_errors_of_given_parameters(arguments, message):
    good = dict(weights=[0.5, 0.5], means=[[0.0, 0.0], [1.0, 1.0]], covariances=[np.eye(2)] * 2)
    with pytest.raises(ValueError, match=message): GaussianMixture.from_parameters(**(good | arguments))


def test_no_stray_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)
        for kind in KINDS: GaussianMixture(3, covariance_type=kind, random_state=0).fit(X).predict_proba(X * 1e160)


def test_verbose_says_what_scikit_learn_says(capsys):
    def lines(cls):
        cls(3, random_state=0, verbose=1, verbose_interval=2, tol=1e-8, n_init=2, max_iter=300).fit(X)
        return capsys.readouterr().out
    assert lines(GaussianMixture) == lines(sklearn.mixture.GaussianMixture)


def fitted_attributes(model): return {name for name in vars(model) if name.endswith("_")}


def test_no_attribute_of_an_earlier_fit_survives():
    pd, torch = pytest.importorskip("pandas"), pytest.importorskip("torch")
    data = X[:200, :2]
    frame = pd.DataFrame(data, columns=["a", "b"])
    ways = {"frame": lambda m: m.fit(frame), "array": lambda m: m.fit(data),
            "tensor": lambda m: m.fit(torch.tensor(data)), "blocks": lambda m: m.fit_blocks([data]),
            "frames": lambda m: m.fit_blocks([frame])}
    for first in ways:
        for second in ways:
            used, new = ways[second](ways[first](GaussianMixture(2))), ways[second](GaussianMixture(2))
            assert fitted_attributes(used) == fitted_attributes(new) and type(used.means_) is type(new.means_)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
def test_a_fit_that_does_not_end_leaves_no_fit(error):
    data = np.random.default_rng(0).normal(size=(200, 2))
    def blocks(passes=[]):
        passes.append(1)
        if len(passes) > 3: raise error
        yield data
    model = GaussianMixture(2).fit(data)
    with pytest.raises(error): model.fit_blocks(blocks)
    assert not fitted_attributes(model)
    with pytest.raises(NotFittedError): model.predict(data)


@pytest.mark.parametrize("change, columns, words", [
    (dict(n_components=4), 3, "n_components=3, but n_components=4"), ({}, 2, "3 features, but X has 2 features"),
    (dict(covariance_type="diag"), 3, "covariance_type='tied', not 'diag'"),
    (dict(covariance_type="full"), 3, "covariance_type='tied', not 'full'")])
def test_warm_start_with_another_shape_is_refused(change, columns, words):
    data = np.random.default_rng(0).normal(size=(200, 3))
    model = GaussianMixture(3, covariance_type="tied", warm_start=True, tol=1).fit(data).set_params(**change)
    with pytest.raises(ValueError, match=words): model.fit(data[:, :columns])
    if "covariance_type" in change:
        with pytest.raises(ValueError, match=words): model.set_params(**change).predict(data)
        with pytest.raises(ValueError, match=words): model.sample()


def test_n_init_goes_on_when_one_start_collapses():
    rng = np.random.default_rng(1)
    data = np.concatenate([np.repeat(rng.normal(size=(1, 2)) * 4, 8, 0), rng.normal(size=(40, 2)),
                           rng.normal(size=(40, 2)) + 4])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(6): GaussianMixture(5, reg_covar=0, n_init=10, random_state=seed).fit(data)
    with pytest.raises(ValueError, match="ill-defined"):
        GaussianMixture(2, reg_covar=0, n_init=3).fit(np.zeros((9, 2)))


@pytest.mark.parametrize("kind", KINDS)
def test_numpys_error_state_changes_nothing(kind):
    rng = np.random.default_rng(0)
    data = np.concatenate([rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + 100])
    arguments = dict(n_components=2, covariance_type=kind, random_state=0)
    right = GaussianMixture(**arguments).fit(data)
    for state in ("raise", "ignore"):
        with np.errstate(all=state):
            for model in (GaussianMixture(**arguments).fit(data), GaussianMixture(**arguments).fit_blocks([data])):
                np.testing.assert_allclose(model.means_, right.means_, atol=1e-12)
            np.testing.assert_array_equal(model.predict_proba(data), right.predict_proba(data))
            assert model.score(data) == pytest.approx(right.score(data)) and model.sample(3)
