"""How well are all ten digits read by default options? Draws 0 to 4: `python -m experiments.ten_digits [SEED ...]`.

`vae_gmm data --digits 0-9` and `vae_gmm train`, with the seed: 3,950 unlabelled images, 50 labelled ones for the names,
the 10,000 official test images. Ten dimensions, 24 + 8 epochs: a quarter of an hour a run on one core; `VAE_GMM_DATA`
leads to MNIST. Draws 0 and 1 had been read before with the options of that time, eight dimensions and 24 + 24 epochs,
and draw 0 with ten dimensions, 24 + 8 epochs and more shrinkage (ten_digits_before.json).
"""
import sys

import numpy as np
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import KNeighborsClassifier

from experiments import runs
from experiments.baselines import labels_of

DIGITS = tuple(range(10))


def one(seed):
    """Accuracies of one draw, and the ceiling of five neighbours with all labels on the same latents."""
    X, X_lab, y_lab = images = runs.draw(seed, DIGITS)
    clf, (test, labels) = runs.trained(seed, images), runs.test_images(DIGITS)
    near = KNeighborsClassifier(5).fit(clf.encode(X), labels_of(X))
    return dict(test=clf.score(test, labels), development=clf.score(*runs.development_images(6, DIGITS)),
                labelled=clf.score(X_lab, y_lab), neighbours=float(near.score(clf.encode(test), labels)),
                confusion=confusion_matrix(labels, clf.predict(test)).tolist(), names=clf.component_labels_.tolist(),
                sure=float(np.mean(clf.predict_proba(test).max(1))), seconds=runs.seconds(clf))


if __name__ == "__main__":
    runs.measure(__file__, [dict(seed=int(seed)) for seed in sys.argv[1:] or range(5)], one)
