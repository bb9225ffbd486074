"""How well are all ten digits read by default options? Draws 0 to 4: `python -m experiments.ten_digits [SEED ...]`.

`vae_gmm data --digits 0-9` and `vae_gmm train`, with the seed: 3,950 unlabelled images, 50 labelled ones for the names,
the 10,000 official test images. D is the default; other values of D are read on development images only. Twenty
minutes a run on one core, half a minute on a GPU; `VAE_GMM_DATA` leads to MNIST.
"""
import sys

import numpy as np
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import KNeighborsClassifier

from experiments import runs
from experiments.baselines import labels_of
from vae_gmm.classifier import VAEGMM

DIGITS = tuple(range(10))
DEFAULT, OTHERS = VAEGMM().latent_dim, (4, 10, 16)


def one(latent_dim, seed):
    """Accuracies of one draw; on official test images for the default D alone, and there the confusions too."""
    X, X_lab, y_lab = images = runs.draw(seed, DIGITS)
    clf = runs.trained(seed, images, **dict(latent_dim=latent_dim) if latent_dim != DEFAULT else {})
    result = dict(development=clf.score(*runs.development_images(6, DIGITS)), seconds=runs.seconds(clf),
                  names=clf.component_labels_.tolist())
    if latent_dim != DEFAULT: return result
    test, labels = runs.test_images(DIGITS)
    near = KNeighborsClassifier(5).fit(clf.encode(X), labels_of(X))
    return result | dict(test=clf.score(test, labels), labelled=clf.score(X_lab, y_lab),
                         neighbours=float(near.score(clf.encode(test), labels)),
                         confusion=confusion_matrix(labels, clf.predict(test)).tolist(),
                         sure=float(np.mean(clf.predict_proba(test).max(1))))


if __name__ == "__main__":
    seeds = [int(seed) for seed in sys.argv[1:]] or range(5)
    keys = [dict(latent_dim=DEFAULT, seed=seed) for seed in seeds]
    runs.measure(__file__, keys + [dict(latent_dim=D, seed=seed) for D in OTHERS for seed in seeds if seed < 2], one)
