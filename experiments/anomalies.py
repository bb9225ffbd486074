"""Which images are no 1, 4 or 8? Draws 0 to 19: `python -m experiments.anomalies [SEED ...]`.

The networks are those of accuracy.py. All methods have seen a draw's unlabelled images, and score how strange an image
is; the area under the ROC curve (AUROC) says how often another digit is stranger than a 1, 4 or 8: the 3,091 official
test images of the three, and every second one of the other seven digits. Settings (what is added to what with which
weight, number of neighbours, nu and width of the kernel) were chosen on development images, normal ones and other
digits, before any official test image was scored (anomaly_settings.json has these trials).

p-values: 400 development images calibrate, twenty times out of 700; the scores of 400 other development images and of
the official test images are compared with theirs by the two-sample Kolmogorov-Smirnov test, which knows that both
samples are finite. Beside other digits, test images are turned into what no digit is: inverted, upside down (of the
4s, since 1 and 8 stay what they are), blank with a speck, and noise; 200 of each. About a minute a draw.
"""
import sys

import numpy as np
from scipy.stats import ks_2samp
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import OneClassSVM

from experiments import runs
from vae_gmm.data import as_images, straighten
from vae_gmm.files import mnist_digits
from vae_gmm.uses import conformal_p_value, surprise


def own_scores(clf, images):
    """The score of this report, and its parts."""
    excess, spread, place = surprise(clf.vae_, clf.mixture_, images)
    return {"this report": 2 * excess / spread + place, "sum in nats": excess + place, "reconstruction alone": excess,
            "density alone": place}


def rivals(known, neighbours, seed):
    """Functions from points to scores, by name, each fitted on the points that are known."""
    scale = 1 / (known.shape[1] * known.var())  # scikit-learn's own width of the kernel; 20 times narrower did better
    near = NearestNeighbors(n_neighbors=neighbours).fit(known)
    svm = OneClassSVM(nu=0.5, gamma=20 * scale).fit(known)
    forest = IsolationForest(n_estimators=300, random_state=seed).fit(known)
    return {"k-NN distance": lambda points: near.kneighbors(points)[0].mean(1),
            "one-class SVM": lambda points: -svm.score_samples(points),
            "isolation forest": lambda points: -forest.score_samples(points)}


def all_scores(clf, X, seed):
    """A function from images to the scores of all methods."""
    def pixels(images): return straighten(as_images(images))[0].flatten(1).numpy()

    spaces = {"straightened pixels": (pixels, rivals(pixels(X), 1, seed)),
              "latents": (clf.encode, rivals(clf.encode(X), 5, seed))}

    def scores(images):
        found = own_scores(clf, images)
        for space, (of, methods) in spaces.items():
            points = of(images)
            found |= {f"{name}, {space}": method(points) for name, method in methods.items()}
        return found
    return scores


def auroc(normal, strange):
    """How often a strange image has the higher score."""
    return round(float(roc_auc_score([0] * len(normal) + [1] * len(strange), np.concatenate([normal, strange]))), 4)


def altered(images, labels, seed, n=200):
    """Test images made into what no digit is, n of each kind, by name."""
    rng = np.random.default_rng(seed)
    some, four = images[rng.permutation(len(images))[:n]], images[labels == 4][:n]
    speck = np.zeros_like(some)
    speck[np.arange(n), rng.integers(4, 24, n), rng.integers(4, 24, n)] = 255
    return {"inverted": 255 - some, "upside-down 4": four[:, ::-1, ::-1].copy(), "blank with a speck": speck,
            "noise": rng.integers(0, 256, some.shape, dtype=np.uint8)}


def uniform(pool, others, seed, m=400):
    """Of twenty calibrations with m scores of the pool: p-values of the KS test, mean false alarms at 5 and 1 %."""
    rng = np.random.default_rng(seed)
    chosen = [np.sort(rng.permutation(pool)[:m]) for _ in range(20)]
    p = [conformal_p_value(others, scores) for scores in chosen]
    return dict(ks=[round(float(ks_2samp(scores, others).pvalue), 4) for scores in chosen],
                alarms_5=round(float(np.mean([(v <= 0.05).mean() for v in p])), 4),
                alarms_1=round(float(np.mean([(v <= 0.01).mean() for v in p])), 4))


def one(seed):
    """AUROC of each method, by digit and for altered images; p-values."""
    draw = runs.draw(seed)
    clf = runs.trained(seed, draw)
    images, labels = mnist_digits(train=False)
    known = np.isin(labels, runs.DIGITS)
    strange, digits = images[~known][::2], labels[~known][::2]
    scores = all_scores(clf, draw[0], seed)
    a, b = scores(images[known]), scores(strange)
    ours = a["this report"]
    np.testing.assert_allclose(ours[:50], clf.anomaly_score(images[known][:50]), rtol=1e-4)
    usual = runs.development_images()[0]
    usual = clf.anomaly_score(usual[np.random.default_rng(seed).permutation(len(usual))[:1100]])
    kinds = {name: own_scores(clf, found) for name, found in altered(images[known], labels[known], seed).items()}
    return dict(
        test={name: auroc(a[name], b[name]) for name in a},
        by_digit={int(d): auroc(ours, b["this report"][digits == d]) for d in np.unique(digits)},
        altered={kind: {name: auroc(a[name], found[name]) for name in found} for kind, found in kinds.items()},
        uniform=dict(development=uniform(usual[400:], usual[:400], seed), test=uniform(usual[400:], ours, seed)),
        found_at_5=round(float((conformal_p_value(b["this report"], np.sort(usual[400:])) <= 0.05).mean()), 4))


if __name__ == "__main__":
    runs.measure(__file__, [dict(seed=int(seed)) for seed in sys.argv[1:] or range(20)], one)
