"""scikit-learn's own tests of `GaussianMixture`, run on ours, and scikit-learn's checks for estimators.

The test file comes out of the installed scikit-learn wheel; only its name `GaussianMixture` is bound to our class.
Functions that reach behind the public interface are left out, each with its reason.
"""
import importlib.util
import inspect
import pickle
import re
import types
from pathlib import Path

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from vae_gmm.mixture import GaussianMixture

pytestmark = pytest.mark.filterwarnings("default::sklearn.exceptions.ConvergenceWarning")      # their tests expect some
HELPER = "calls scikit-learn's private function {} and no estimator"
LEFT_OUT = {
    "test_suffstat_sk_full": HELPER.format("_estimate_gaussian_covariances_full"),
    "test_suffstat_sk_tied": HELPER.format("_estimate_gaussian_covariances_tied"),
    "test_suffstat_sk_diag": HELPER.format("_estimate_gaussian_covariances_diag"),
    "test_gaussian_suffstat_sk_spherical": HELPER.format("_estimate_gaussian_covariances_spherical"),
    "test_compute_log_det_cholesky": HELPER.format("_compute_log_det_cholesky"),
    "test_gaussian_mixture_log_probabilities": HELPER.format("_estimate_log_gaussian_prob"),
    "test_gaussian_mixture_precisions_init":
        "calls the private methods _initialize and _set_parameters of the estimator",
    "test_gaussian_mixture_all_init_does_not_estimate_gaussian_parameters":
        "counts the calls of scikit-learn's private function _estimate_gaussian_parameters",
    "test_gaussian_mixture_array_api_compliance":
        "asks for scikit-learn's array_api_dispatch configuration; ours takes tensors without it (test_gmm_tensors.py)",
    "test_gaussian_mixture_raises_where_array_api_not_implemented":
        "asks for an error where ours works: k-means starts for tensors",
}


def theirs():
    "scikit-learn's test module with our class in it."
    path = Path(importlib.util.find_spec("sklearn").origin).parent / "mixture/tests/test_gaussian_mixture.py"
    module = types.ModuleType("their_tests")
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    assert module.GaussianMixture is sklearn.mixture.GaussianMixture
    module.GaussianMixture = GaussianMixture
    return {name: f for name, f in vars(module).items() if name.startswith("test_")}


THEIRS = theirs()
globals().update({name: f for name, f in THEIRS.items() if name not in LEFT_OUT})


@pytest.fixture(params=[np.float64, np.float32], ids=["float64", "float32"])
def global_dtype(request):
    return request.param


@pytest.fixture(params=[0, 42])
def global_random_seed(request):
    return request.param


def test_every_function_is_run_or_left_out_with_a_reason():
    if sklearn.__version__.startswith("1.9."):
        assert LEFT_OUT.keys() <= THEIRS.keys()
        assert len(THEIRS) - len(LEFT_OUT) >= 27


@parametrize_with_checks([GaussianMixture(), GaussianMixture(missing="marginalise"),
                          GaussianMixture(covariance_type="tied"),
                          GaussianMixture(covariance_type="diag", init_params="k-means++"),
                          GaussianMixture(covariance_type="spherical", init_params="random")])
def test_estimator_checks(estimator, check):
    check(estimator)


X = np.vstack([np.random.RandomState(0).randn(60, 2), np.random.RandomState(1).randn(60, 2) + 5])


def test_in_a_pipeline():
    model = make_pipeline(StandardScaler(), GaussianMixture(2, random_state=0)).fit(X)
    assert sorted(np.bincount(model.predict(X))) == [60, 60]


def test_in_a_grid_search():
    grid = {"n_components": [1, 2], "covariance_type": ["full", "spherical"]}
    search = GridSearchCV(GaussianMixture(random_state=0), grid).fit(X)
    assert search.best_params_["n_components"] == 2


def test_clone_and_pickle():
    model = GaussianMixture(2, random_state=0, missing="marginalise").fit(X)
    assert not hasattr(clone(model), "weights_") and clone(model).missing == "marginalise"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), model.predict_proba(X))


def test_constructor_methods_and_attributes():
    ours, theirs = GaussianMixture, sklearn.mixture.GaussianMixture
    extra = {"__init__": ["missing"], "fit": ["sample_weight"], "fit_predict": ["sample_weight"],
             "score": ["sample_weight"], "bic": ["sample_weight"], "aic": ["sample_weight"], "sample": ["random_state"]}
    public = [name for name in dir(theirs) if not name.startswith("_") and callable(getattr(theirs, name))]
    for name in ["__init__"] + public:
        a, b = ([(p.name, p.default, p.kind) for p in inspect.signature(getattr(cls, name)).parameters.values()]
                for cls in (ours, theirs))
        assert a[:len(b)] == b and [p[0] for p in a[len(b):]] == extra.get(name, []), name
    a, b = (cls(2, random_state=0).fit(X.astype(np.float32)) for cls in (ours, theirs))
    assert {name for name in vars(a) if name.endswith("_")} == {name for name in vars(b) if name.endswith("_")}
    for name in ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"):
        assert (getattr(a, name).shape, getattr(a, name).dtype) == (getattr(b, name).shape, getattr(b, name).dtype)


def bad(name, value, data=X, **more):
    return pytest.param({"n_components": 2, name: value, **more}, data, id=f"{name}={value}"[:40])


@pytest.mark.parametrize("arguments, data", [
    bad("n_components", 0), bad("n_components", 1.5), bad("tol", -1), bad("reg_covar", -1), bad("max_iter", -1),
    bad("n_init", 0), bad("covariance_type", "x"), bad("init_params", "x"), bad("verbose", -1),
    bad("verbose_interval", 0), bad("warm_start", "x"), bad("random_state", "x"), bad("weights_init", [1.0]),
    bad("weights_init", [0.7, 0.7]), bad("weights_init", [-0.5, 1.5]),
    bad("means_init", X[:3]), bad("means_init", np.full((2, 2), np.nan)), bad("precisions_init", np.eye(2)),
    bad("precisions_init", [-np.eye(2)] * 2), bad("precisions_init", -np.eye(2), covariance_type="tied"),
    bad("precisions_init", -np.ones((2, 2)), covariance_type="diag"),
    bad("precisions_init", -np.ones(2), covariance_type="spherical"),
    bad("tol", 0.0, X[:, 0]), bad("tol", 0.0, X[:1]), bad("n_components", 5, X[:3]),
    bad("tol", 0.0, X * np.nan), bad("tol", 0.0, X * np.inf),
    bad("tol", 0.0, X + 1j), bad("tol", 0.0, [["a"], ["b"]]), bad("reg_covar", 0.0, np.zeros((9, 2)))])
@pytest.mark.filterwarnings("ignore")
def test_messages_are_scikit_learns_or_say_more(arguments, data):
    def message(cls):
        with pytest.raises(Exception) as caught: cls(**arguments).fit(data)
        text = re.sub("Input [a-z_]+ contains", "Input contains", str(caught.value))
        return type(caught.value), re.sub(r"\{.*\}", lambda m: str(sorted(m[0])), text)      # sets have no order
    (kind, ours), (their_kind, theirs) = message(GaussianMixture), message(sklearn.mixture.GaussianMixture)
    if theirs.startswith("Complex data"): theirs = theirs.splitlines()[0]  # the numbers follow, all of them
    assert kind is their_kind and ours.startswith(theirs)
