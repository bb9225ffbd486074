"""How well does the course project's own system read? Five draws: `python -m experiments.course [SEED ...]`.

A plane, images as they are, step size by plateau, 80:20, patience 15, a plain mixture with one component a digit.
"""
import sys

from experiments import runs
from vae_gmm.classifier import VAEGMM


def one(seed):
    """Accuracy of one draw."""
    X, X_lab, y_lab = runs.draw(seed)
    clf = VAEGMM.course(random_state=seed, device=runs.DEVICE).fit_labelled(X, X_lab, y_lab)
    return dict(test=clf.score(*runs.test_images()), development=clf.score(*runs.development_images()),
                labelled=clf.score(X_lab, y_lab), epochs=len(clf.history_.rows), best_epoch=clf.history_.best_epoch,
                seconds=runs.seconds(clf))


if __name__ == "__main__":
    runs.measure(__file__, [dict(seed=int(seed)) for seed in sys.argv[1:] or range(5)], one)
