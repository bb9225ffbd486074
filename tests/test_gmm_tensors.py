"""The mixture on torch tensors: NumPy's answers, in the tensor's kind, precision and place."""
import numpy as np
import pytest

from vae_gmm.mixture import GaussianMixture

torch = pytest.importorskip("torch")
KINDS = ("full", "tied", "diag", "spherical")
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
rng = np.random.default_rng(0)
X = np.concatenate([rng.normal(m, s, size=(n, 3)) for m, s, n in ((0, 1, 300), (4, 0.5, 200), (-3, 2, 150))])
fresh = rng.normal(0, 4, size=(100, 3))
w = rng.integers(0, 3, size=len(X)).astype(float)


@pytest.mark.filterwarnings("ignore:.*did not converge")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", ["kmeans", "k-means++", "random", "random_from_data"])
def test_agrees_with_numpy(device, kind, init):
    arguments = dict(n_components=3, covariance_type=kind, init_params=init, random_state=0, max_iter=40)
    T, F = (torch.tensor(a, device=device) for a in (X, fresh))
    ours = GaussianMixture(**arguments).fit(T, sample_weight=torch.tensor(w))
    theirs = GaussianMixture(**arguments).fit(X, sample_weight=w)
    for name in ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"):
        value = getattr(ours, name)
        assert isinstance(value, torch.Tensor) and value.dtype == torch.float64 and value.device.type == device
        np.testing.assert_allclose(value.cpu(), getattr(theirs, name), rtol=1e-9, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(ours.lower_bounds_, theirs.lower_bounds_, atol=1e-9)
    for name in ("predict", "predict_proba", "score_samples"):
        value = getattr(ours, name)(F)
        assert isinstance(value, torch.Tensor) and value.device.type == device
        np.testing.assert_allclose(value.cpu(), getattr(theirs, name)(fresh), atol=1e-9)
    for name in ("score", "bic", "aic"):
        assert isinstance(getattr(ours, name)(F), float)
        np.testing.assert_allclose(getattr(ours, name)(F), getattr(theirs, name)(fresh), rtol=1e-9)
    points, components = ours.sample(20)
    assert isinstance(points, torch.Tensor) and points.device.type == components.device.type == device
    np.testing.assert_allclose(points.cpu(), theirs.sample(20)[0], atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_single_precision(device):
    T = torch.tensor(X, dtype=torch.float32, device=device)
    ours, theirs = GaussianMixture(3, random_state=0).fit(T), GaussianMixture(3, random_state=0).fit(T.cpu().numpy())
    assert ours.means_.dtype == ours.predict_proba(T).dtype == torch.float32
    np.testing.assert_allclose(ours.means_.cpu(), theirs.means_, rtol=1e-6, atol=1e-6)


def test_starts_from_tensors_and_goes_on_from_them():
    start = dict(weights_init=torch.full((3,), 1 / 3, dtype=torch.float64),
                 means_init=torch.tensor([[0.0] * 3, [4.0] * 3, [-3.0] * 3], dtype=torch.float64),
                 precisions_init=torch.eye(3, dtype=torch.float64).repeat(3, 1, 1))
    ours = GaussianMixture(3, warm_start=True, **start).fit(torch.tensor(X))
    theirs = GaussianMixture(3, warm_start=True, **{k: v.numpy() for k, v in start.items()}).fit(X)
    np.testing.assert_allclose(ours.means_, theirs.means_, atol=1e-9)
    np.testing.assert_allclose(ours.fit(torch.tensor(X)).means_, theirs.fit(X).means_, atol=1e-9)
    np.testing.assert_allclose(theirs.predict_proba(torch.tensor(fresh)), theirs.predict_proba(fresh), atol=1e-9)


def test_a_gradient_is_left_out():
    with_gradient, plain = (GaussianMixture(3, random_state=0).fit(torch.tensor(X, requires_grad=g))
                            for g in (True, False))
    assert not with_gradient.means_.requires_grad and torch.equal(with_gradient.means_, plain.means_)
    assert not plain.score_samples(torch.tensor(fresh, requires_grad=True)).requires_grad


def test_bad_tensors():
    model = GaussianMixture(2).fit(X)
    with pytest.raises(ValueError, match="X has 2 features, but GaussianMixture is expecting 3"):
        model.predict(torch.tensor(fresh[:, :2]))
    with pytest.raises(ValueError, match="1D array"): model.fit(torch.tensor(X[0]))
    with pytest.raises(ValueError, match="int64"): model.fit(torch.ones(5, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="float32 or float64, got torch.bfloat16"):
        model.fit(torch.ones(5, 2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="NaN"): model.fit(torch.tensor(np.where(X > 3, np.nan, X)))
    with pytest.raises(ValueError, match="n_samples = 4"): GaussianMixture(5).fit(torch.tensor(X[:4]))
    for tensor, words in ((torch.ones(5, 2).to_sparse(), "dense tensor"), (torch.ones(5, 2, device="meta"), "'meta'"),
                          (torch.ones(0, 3), "0 sample"), (torch.ones(1, 3), "1 sample"),
                          (torch.ones(5, 0), "no columns"), (torch.ones(5, 2).half(), "got torch.float16")):
        with pytest.raises(ValueError, match=words): GaussianMixture().fit(tensor)
        if "sample" not in words:
            with pytest.raises(ValueError, match=words.replace("0 s", "s")): GaussianMixture().fit_blocks([tensor])
    with pytest.raises(ValueError, match="sample_weight must be a dense"):
        GaussianMixture().fit(torch.tensor(X), sample_weight=torch.tensor(w).to_sparse())


@pytest.mark.parametrize("around", [
    torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    lambda: torch.device("meta")])
def test_what_the_user_has_set_in_torch_changes_nothing(around):
    T, before = torch.tensor(X), torch.get_default_dtype()
    plain = GaussianMixture(3, random_state=0).fit(T)
    torch.set_default_dtype(torch.float16)
    try:
        with around():
            model = GaussianMixture(3, random_state=0).fit(T)
            proba = model.predict_proba(T)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(model.means_, plain.means_) and torch.equal(proba, plain.predict_proba(T))


def test_tensors_as_blocks():
    T = torch.tensor(X)
    right = GaussianMixture(3, random_state=0).fit(X).means_
    for blocks in (T, [T[:300], T[300:]], iter([T[:300], T[300:]]), [T.clone().requires_grad_()]):
        np.testing.assert_allclose(GaussianMixture(3, random_state=0).fit_blocks(blocks).means_, right, atol=1e-9)
