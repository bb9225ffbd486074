"""Which images are no 1, 4 or 8? Five draws: `python -m experiments.anomalies [SEED ...]`.

The networks are those of a draw (runs.py), of 24 + 24 epochs with products in bfloat16. All methods have seen the
draw's unlabelled images, and score how strange an image is; the area under the ROC curve (AUROC) says how often another
digit is stranger than a 1, 4 or 8. Other digits are the other seven. Settings (what is added to what with which weight,
number of neighbours, nu and width of the kernel) were chosen on development images, normal and other digits that are not embedded, before any
official test image was scored; the script scores all candidates on development images of its own, and on the official
test images those that are named in CHOSEN, and the plain sum in nats.

p-values: 500 more development images calibrate, twenty times, in twenty draws; the scores of other development images
and of official test images are compared with them by the two-sample Kolmogorov-Smirnov test, which knows that both
samples are finite. Beside other digits, test images are turned into what no digit is: inverted, upside down (of the
4s, since 1 and 8 stay what they are), blank with a speck, and noise.
"""
import sys

import numpy as np
from scipy.stats import ks_2samp
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import OneClassSVM

from experiments import runs
from vae_gmm.checkpoint import kept
from vae_gmm.classifier import VAEGMM
from vae_gmm.config import TrainConfig
from vae_gmm.data import as_images, straighten
from vae_gmm.files import mnist_digits
from vae_gmm.uses import conformal_p_value, surprise

CONFIG = TrainConfig.fast(precision="bfloat16", epochs=24, prior_epochs=24)
WEIGHTS = 1, 2, 3, 5, 8, 12, 20
CHOSEN = {  # by the mean over the development images of draws 0 and 1: name in the results, candidate
    "this report": "deviations x 2 + place",
    "reconstruction alone": "excess",
    "density alone": "place",
    "sum in nats": "excess + place",
    "k-NN, straightened pixels": "pixels, 1 neighbours",
    "k-NN, latents": "latents, 5 neighbours",
    "one-class SVM, straightened pixels": "pixels, SVM 0.5, width 20",
    "one-class SVM, latents": "latents, SVM 0.5, width 20",
    "isolation forest, straightened pixels": "pixels, forest",
    "isolation forest, latents": "latents, forest",
}


def own_scores(clf, images):
    """Candidates made of the parts of the score, by name."""
    excess, spread, place = surprise(clf.vae_, clf.mixture_, images)
    found = {"excess": excess, "place": place, "excess + place": excess + place, "deviations": excess / spread}
    found |= {f"excess + place x {w}": excess + w * place for w in WEIGHTS}
    return found | {f"deviations x {w} + place": w * excess / spread + place for w in WEIGHTS}


def rivals(clf, X, seed):
    """Functions from images to scores, by name, each fitted on the images X."""
    def pixels(images): return straighten(as_images(images))[0].flatten(1).numpy()

    found = {}
    for space, of in dict(pixels=pixels, latents=clf.encode).items():
        known = of(X)
        for k in 1, 5, 20:
            near = NearestNeighbors(n_neighbors=k).fit(known)
            found[f"{space}, {k} neighbours"] = lambda images, near=near, of=of: near.kneighbors(of(images))[0].mean(1)
        scale = 1 / (known.shape[1] * known.var())  # scikit-learn's own
        models = {f"{space}, SVM {nu}, width {g}": OneClassSVM(nu=nu, gamma=g * scale) for nu in (0.05, 0.5)
                  for g in (1, 5, 20)}
        models[f"{space}, forest"] = IsolationForest(n_estimators=300, random_state=seed)
        for name, model in models.items():
            model.fit(known)
            found[name] = lambda images, model=model, of=of: -model.score_samples(of(images))
    return found


def auroc(normal, strange):
    """How often a strange image has the higher score."""
    return round(float(roc_auc_score([0] * len(normal) + [1] * len(strange), np.concatenate([normal, strange]))), 4)


def development(seed, normal=1000, strange=2000, calibration=1500):
    """Development images for this draw: 1, 4 and 8; other digits; more of 1, 4 and 8 to calibrate with."""
    images, labels = runs.outside_images()
    order = np.random.default_rng(seed).permutation(len(images))
    known = np.isin(labels[order], runs.DIGITS)
    usual, other = order[known], order[~known][:strange]
    return images[usual[:normal]], images[other], images[usual[normal:normal + calibration]]


def altered(images, labels, seed):
    """Test images made into what no digit is: 400 of each kind, by name."""
    rng = np.random.default_rng(seed)
    some, four = images[rng.permutation(len(images))[:400]], images[labels == 4][:400]
    speck = np.zeros_like(some)
    speck[np.arange(400), rng.integers(4, 24, 400), rng.integers(4, 24, 400)] = 255
    return {"inverted": 255 - some, "upside-down 4": four[:, ::-1, ::-1].copy(), "blank with a speck": speck,
            "noise": rng.integers(0, 256, some.shape, dtype=np.uint8)}


def uniform(pool, others, seed, m=500):
    """Of twenty calibrations with m scores of the pool: p-values of the KS test, mean false alarms at 5 and 1 %."""
    rng = np.random.default_rng(seed)
    chosen = [np.sort(rng.permutation(pool)[:m]) for _ in range(20)]
    p = [conformal_p_value(others, scores) for scores in chosen]
    return dict(ks=[round(float(ks_2samp(scores, others).pvalue), 4) for scores in chosen],
                alarms_5=round(float(np.mean([(v <= 0.05).mean() for v in p])), 4),
                alarms_1=round(float(np.mean([(v <= 0.01).mean() for v in p])), 4))


def candidates(clf, X, seed):
    """A function from images to all candidates' scores."""
    others = rivals(clf, X, seed)
    return lambda images: own_scores(clf, images) | {name: score(images) for name, score in others.items()}


def one(seed):
    """AUROC of each candidate on development images, of the chosen ones on the official test images."""
    X, X_lab, y_lab = runs.draw(seed)
    clf = VAEGMM(random_state=seed, config=CONFIG)
    with kept(clf, X) as path:
        clf.fit_labelled(X, X_lab, y_lab, checkpoint=path, resume=True)
    scores = candidates(clf, X, seed)
    usual, other, more = development(seed)
    a, b = scores(usual), scores(other)
    trial = {name: auroc(a[name], b[name]) for name in a}
    images, labels = mnist_digits(train=False)
    known = np.isin(labels, runs.DIGITS)
    a, b = scores(images[known]), scores(images[~known])
    mine, ours = CHOSEN["this report"], clf.anomaly_score(images[known])
    np.testing.assert_allclose(a[mine], ours, rtol=1e-6)  # the method of VAEGMM is the candidate that was chosen
    pool = clf.anomaly_score(more)
    kinds = {name: own_scores(clf, strange) for name, strange in altered(images[known], labels[known], seed).items()}
    parts = {"this report": mine, "sum in nats": "excess + place", "reconstruction alone": "excess",
             "density alone": "place"}
    return dict(
        test={name: auroc(a[candidate], b[candidate]) for name, candidate in CHOSEN.items()},
        by_digit={int(d): auroc(ours, b[mine][labels[~known] == d]) for d in np.unique(labels[~known])},
        altered={kind: {name: auroc(a[part], found[part]) for name, part in parts.items()}
                 for kind, found in kinds.items()},
        uniform=dict(development=uniform(pool, clf.anomaly_score(usual), seed), test=uniform(pool, ours, seed)),
        found_at_5=round(float((conformal_p_value(b[mine], np.sort(pool)) <= 0.05).mean()), 4),
        development=trial, accuracy=round(float(clf.score(images[known], labels[known])), 4),
        seconds=round(sum(row["seconds"] for row in clf.history_.rows)))


if __name__ == "__main__":
    runs.measure(__file__, [dict(seed=int(seed)) for seed in sys.argv[1:] or range(5)], one)
