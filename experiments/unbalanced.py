"""What if one digit is rare? 400, 200 and 67 images of 1, 4 and 8; equal and learned weights, three draws.

`python -m experiments.unbalanced [SEED ...]`. The labels say which images to leave out, and nothing else. About three
minutes a run on one core; `VAE_GMM_DATA` leads to MNIST.
"""
import sys

import numpy as np

from experiments import runs
from experiments.baselines import labels_of

IMAGES = dict(zip(runs.DIGITS, (400, 200, 67)))


def one(seed, equal_weights):
    """Accuracy on the official test images, as they are, and the weights that the mixture ends with."""
    X, X_lab, y_lab = runs.draw(seed)
    y = labels_of(X)
    chosen = np.sort(np.concatenate([np.flatnonzero(y == digit)[:n] for digit, n in IMAGES.items()]))
    clf = runs.trained(seed, (X[chosen], X_lab, y_lab), dict(equal_weights=equal_weights))
    return dict(test=clf.score(*runs.test_images()), weights=clf.mixture_.weights.tolist(),
                labels=clf.component_labels_.tolist(), seconds=runs.seconds(clf))


if __name__ == "__main__":
    seeds = [int(seed) for seed in sys.argv[1:]] or range(3)
    runs.measure(__file__, [dict(seed=seed, equal_weights=equal) for seed in seeds for equal in (True, False)], one)
