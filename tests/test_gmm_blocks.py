"""Fits to data that come in blocks: the in-memory answer, and the memory they take."""
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from vae_gmm.mixture import GaussianMixture

KINDS = ("full", "tied", "diag", "spherical")
rng = np.random.default_rng(0)
X = np.concatenate([rng.normal(m, s, size=(n, 4)) for m, s, n in ((0, 1, 3000), (4, 0.5, 2000), (-3, 2, 1500))])
X = X[rng.permutation(len(X))]
w = rng.integers(0, 4, size=len(X))


def pieces(step=700):
    return (X[i:i + step] for i in range(0, len(X), step))


def same(a, b, atol=1e-9):
    for name in ("weights_", "means_", "covariances_", "precisions_cholesky_", "lower_bounds_"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=atol, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["function", "list", "iterator", "memory map", "slice of a memory map", "array"])
def test_blocks_give_the_answer_of_memory(kind, form, tmp_path):
    np.save(tmp_path / "X.npy", np.vstack([X[:5], X]))
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    np.save(tmp_path / "Y.npy", X)
    blocks = {"function": pieces, "list": list(pieces()), "iterator": pieces(), "array": X,
              "memory map": np.load(tmp_path / "Y.npy", mmap_mode="r"), "slice of a memory map": mapped[5:]}[form]
    arguments = dict(n_components=3, covariance_type=kind, random_state=0, max_iter=30, tol=0)
    with pytest.warns(match="did not converge"):
        same(GaussianMixture(**arguments).fit_blocks(blocks), GaussianMixture(**arguments).fit(X))


def test_more_rows_than_the_sample_that_starts_are_made_from():
    many = np.concatenate([X + 0.001 * i for i in range(40)])      # 260,000 rows of 4
    arguments = dict(n_components=3, weights_init=[0.2, 0.3, 0.5], means_init=[[0.0] * 4, [4.0] * 4, [-3.0] * 4],
                     precisions_init=[np.eye(4)] * 3, tol=0, max_iter=15)
    with pytest.warns(match="did not converge"):
        by_blocks = GaussianMixture(**arguments).fit_blocks(many[i:i + 9999] for i in range(0, len(many), 9999))
        same(by_blocks, GaussianMixture(**arguments).fit(many))


def test_blocks_with_weights_and_gaps():
    holes = np.where(rng.random(X.shape) < 0.1, np.nan, X)
    arguments = dict(n_components=3, random_state=0, missing="marginalise")
    pairs = [(holes[i:i + 900], w[i:i + 900]) for i in range(0, len(X), 900)]
    same(GaussianMixture(**arguments).fit_blocks(pairs), GaussianMixture(**arguments).fit(holes, sample_weight=w))


@pytest.mark.parametrize("form", ["function", "iterator"])
def test_one_buffer_refilled_gives_what_fresh_arrays_give(form):
    buffer, step = np.empty((650, 4)), 650
    def refilled():
        for i in range(0, len(X), step):
            buffer[:] = X[i:i + step]
            yield buffer
    arguments = dict(n_components=3, random_state=0, max_iter=3, tol=0, init_params="random_from_data")
    with pytest.warns(match="did not converge"):
        a = GaussianMixture(**arguments).fit_blocks(refilled if form == "function" else refilled())
        b = GaussianMixture(**arguments).fit_blocks(list(pieces(step)))
    np.testing.assert_array_equal(a.means_, b.means_)


def test_a_map_is_read_as_an_array_not_through_its_file(tmp_path):
    np.save(tmp_path / "X.npy", X)
    changed = np.load(tmp_path / "X.npy", mmap_mode="c")      # copy on write: the file keeps the old values
    changed += 100
    deleted = np.load(tmp_path / "X.npy", mmap_mode="r+")
    (tmp_path / "X.npy").unlink()
    for mapped, values in ((changed, X + 100), (deleted, X)):
        same(GaussianMixture(3, random_state=0).fit_blocks(mapped), GaussianMixture(3, random_state=0).fit(values))


def test_columns_with_names_are_matched_by_name():
    pd = pytest.importorskip("pandas")
    for names in (["a", "b", "c", "d"], [0, 1, 2, 3]):
        A, B = (pd.DataFrame(part, columns=names) for part in (X[:3000], X[3000:]))
        for blocks in ([A, B[names[::-1]]], iter([A, B[names[::-1]]])):
            model = GaussianMixture(3, random_state=0).fit_blocks(blocks)
            same(model, GaussianMixture(3, random_state=0).fit(X))
            assert list(getattr(model, "feature_names_in_", [])) == (names if names[0] == "a" else [])
    same(GaussianMixture(3, random_state=0).fit_blocks(pd.DataFrame(X)), GaussianMixture(3, random_state=0).fit(X))
    for other in (B.rename(columns={0: "z"}), B.to_numpy(), B.iloc[:, :3], B[[0, 0, 1, 2]]):
        words = r"block 1 has (two columns of one|the column names .*, but .* have \[0, 1)"
        with pytest.raises(ValueError, match=words):
            GaussianMixture().fit_blocks([A, other])


@pytest.mark.parametrize("fit", [lambda model, Y: model.fit(Y), lambda model, Y: model.fit_blocks(Y),
                                 lambda model, Y: model.fit_blocks([Y]), lambda model, Y: model.fit_blocks(iter([Y]))])
def test_what_a_type_says_of_its_entries_is_heeded_or_refused(fit):
    pd = pytest.importorskip("pandas")
    small, gaps = X[:300], X[:300] > 3
    right = GaussianMixture(missing="marginalise").fit(np.where(gaps, np.nan, small)).means_
    for hidden in (np.ma.masked_array(small, gaps), pd.DataFrame(small).convert_dtypes().mask(gaps)):
        np.testing.assert_allclose(fit(GaussianMixture(missing="marginalise"), hidden).means_, right, atol=1e-9)
        with pytest.raises(ValueError, match="NaN"): fit(GaussianMixture(), hidden)
    class Metres(np.ndarray): unit = "m"
    for value, words in ((small.view(Metres), "has the unit m"), (small.astype("M8[s]"), "of the type datetime64"),
                         (pd.DataFrame(small.astype("m8[s]")), "of the type timedelta64"),
                         (np.zeros((9, 1), dtype=[("a", float)]), "of the type .*'a'"), (small + 1j, "(?i)complex"),
                         (np.full((9, 2), "a", dtype=object), "float: 'a'; .* must hold numbers")):
        with pytest.raises(ValueError, match=words): fit(GaussianMixture(), value)
    np.testing.assert_array_equal(fit(GaussianMixture(), small.astype(object)).means_,
                                  GaussianMixture().fit(small).means_)


def test_bad_blocks():
    for blocks, message in (({"a": X}, "got {'a'"), ("X.npy", "got 'X.npy'"), ([(X, None, 3)], "block 0 .* a tuple"),
                            (X[:, 0], r"block 0 must have the shape \(rows, columns\), but has \(6500,\)"),
                            (X[None], r"but has \(1, 6500, 4\)"), ([X, X[0]], r"block 1 .* has \(4,\)")):
        with pytest.raises(ValueError, match=message): GaussianMixture().fit_blocks(blocks)
    with pytest.raises(ValueError, match="block 1 has 3 columns, but the blocks before it have 4"):
        GaussianMixture().fit_blocks([X, X[:, :3]])
    with pytest.raises(ValueError, match="block 1 contains NaN"):
        GaussianMixture().fit_blocks([X, np.full((3, 4), np.nan)])
    with pytest.raises(ValueError, match="Found 0 rows"):
        GaussianMixture().fit_blocks([])
    for blocks, what in ((3, "got 3"), (lambda: None, "got None")):
        message = f"blocks must be an iterable of arrays or a function that returns one, {what}"
        with pytest.raises(ValueError, match=message):
            GaussianMixture().fit_blocks(blocks)
    once = pieces()
    with pytest.raises(ValueError, match="blocks gave 6500 rows at first and 0 when asked again"):
        GaussianMixture(2, means_init=X[:2]).fit_blocks(lambda: once)


SCRIPT = r"""
import json, re, sys, warnings
import numpy as np
from vae_gmm.mixture import GaussianMixture
path, n, D = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
part = np.random.default_rng(0).standard_normal((100_000, D))
part[::3] += 4
with open(path, "wb") as f:
    for i in range(n // len(part)): f.write((part + 0.001 * i).data)
del part
X = np.memmap(path, dtype=float, mode="r", shape=(n, D))
warnings.simplefilter("ignore")
model = GaussianMixture(2, random_state=0, max_iter=3).fit_blocks(X)
peak = re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1]      # of this process, unlike ru_maxrss
print(json.dumps([int(peak) / 1024, sorted(model.weights_)]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ten_million_rows_in_200_megabytes(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "X.bin"), "10000000", "8"]
    peak, weights = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    (tmp_path / "X.bin").unlink()
    assert peak < 200, f"{peak:.0f} MB"
    np.testing.assert_allclose(weights, [1 / 3, 2 / 3], atol=0.01)
