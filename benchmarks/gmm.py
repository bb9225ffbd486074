"""Speed of `vae_gmm.mixture.GaussianMixture` beside its peers.

    python benchmarks/gmm.py                 all tables (about five minutes on two cores)
    python benchmarks/gmm.py --rows 1 3      only these rows of the first table
    python benchmarks/gmm.py --quick         fewer pairs
    python benchmarks/gmm.py --gaps          missing values: few patterns of gaps and many

EM iterations: both libraries get the same data, start and number of iterations (full covariances, float64, two
threads), take turns, and their answers are compared. The ratio is the median over the pairs. pomegranate and the loop
of the course project (a density from `scipy.stats.multivariate_normal` per component) run once beside them.
"""
import argparse
import os
import sys
import time
import warnings

THREADS = int(os.environ.setdefault("OMP_NUM_THREADS", "2"))

import numpy as np
import sklearn.mixture
from scipy.stats import multivariate_normal
from threadpoolctl import threadpool_limits

from vae_gmm.mixture import GaussianMixture

# n, D, K, must, aim, as multiples of scikit-learn's speed
TABLE = [(18_435, 2, 3, 8, 15), (60_000, 10, 10, 8, 15), (1_000_000, 2, 3, 8, 20), (100_000, 32, 16, 5, 10)]
ITERATIONS = 20
CLASSES = GaussianMixture, sklearn.mixture.GaussianMixture


def data(n, D, K, seed=0):
    "Points of K overlapping Gaussians, and a start away from the truth."
    rng = np.random.default_rng(seed)
    means = 2 * rng.standard_normal((K, D))
    A = np.linalg.qr(rng.standard_normal((K, D, D)))[0] * rng.uniform(0.4, 1.6, size=(K, 1, D))
    c = rng.integers(K, size=n)
    X = rng.standard_normal((n, D))
    for k in range(K): X[c == k] = means[k] + X[c == k] @ A[k].T
    return X, dict(weights_init=np.full(K, 1 / K), means_init=means + 0.5 * rng.standard_normal((K, D)),
                   precisions_init=np.stack([np.eye(D)] * K))


def seconds(f):
    started = time.perf_counter()
    result = f()
    return time.perf_counter() - started, result


def ours_and_theirs(X, start, K, iterations, pairs):
    "Seconds of each in turn (pairs, 2), and the largest difference of their answers."
    def fit(cls):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cls(K, max_iter=iterations, tol=0, **start).fit(X)
    times, gap = [], 0.0
    for _ in range(pairs):
        (a, ours), (b, theirs) = (seconds(lambda: fit(cls)) for cls in CLASSES)
        times.append((a, b))
        for name in ("weights_", "means_", "covariances_", "lower_bounds_"):
            gap = max(gap, np.abs(np.subtract(getattr(ours, name), getattr(theirs, name))).max())
    return np.array(times), gap


def loop_of_the_course_project(X, start, iterations):
    "E and M steps as first published, with scipy's density."
    weights, means, covs = start["weights_init"], start["means_init"], np.linalg.inv(start["precisions_init"])
    for _ in range(iterations):
        pdfs = np.stack([p * multivariate_normal(m, S).pdf(X) for p, m, S in zip(weights, means, covs)], axis=1)
        prob = pdfs / (pdfs.sum(axis=1, keepdims=True) + 1e-9)
        Nk = prob.sum(axis=0)
        weights, means = Nk / len(X), prob.T @ X / Nk[:, None]
        covs = np.empty_like(covs)
        for k in range(len(Nk)):
            d = X - means[k]
            covs[k] = (prob[:, k, None] * d).T @ d / Nk[k] + 1e-6 * np.eye(X.shape[1])
    return means


def pomegranate_fit(X, start, iterations):
    import torch
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel
    torch.set_num_threads(THREADS)
    D = X.shape[1]
    parts = [Normal(means=torch.tensor(m), covs=torch.eye(D, dtype=torch.float64), covariance_type="full")
             for m in start["means_init"]]
    model = GeneralMixtureModel(parts, priors=torch.tensor(start["weights_init"]), max_iter=iterations, tol=-np.inf)
    return model.fit(torch.tensor(X))


def machine():
    "Bytes a second of one pass over a large array, and floating-point operations a second of a large matrix product."
    big = np.ones(40_000_000)
    bandwidth = big.nbytes / min(seconds(big.max)[0] for _ in range(5))
    A = np.random.default_rng(0).standard_normal((1536, 1536))
    return bandwidth, 2 * len(A) ** 3 / min(seconds(lambda: A @ A)[0] for _ in range(5))


def iterations_table(rows, pairs, slow):
    bandwidth, flops = machine()
    print(f"machine: one pass over memory {bandwidth / 1e9:.1f} GB/s (one thread), "
          f"matrix product {flops / 1e9:.0f} Gflop/s ({THREADS} threads)\n")
    print(f"EM iterations ({ITERATIONS} from the same start, whole call), median of {pairs} pairs")
    print("|       n |  D |  K | ours ms/iter | sklearn ms/iter | times sklearn (range) | must | aim |"
          " largest difference | of memory pass | of matrix rate | pomegranate ms/iter | course project ms/iter |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    failed = []
    for row in rows:
        n, D, K, must, aim = TABLE[row]
        X, start = data(n, D, K)
        times, gap = ours_and_theirs(X, start, K, ITERATIONS, pairs)
        ratios = times[:, 1] / times[:, 0]
        ours, theirs = np.median(times, axis=0) / ITERATIONS
        features = 1 + D + D * (D + 1) // 2
        memory, arithmetic = X.nbytes / bandwidth / ours, 4 * n * K * features / flops / ours
        others = []
        for f, few in ((pomegranate_fit, 3), (loop_of_the_course_project, 3)):
            try: others.append(f"{seconds(lambda: f(X, start, few))[0] / few * 1e3:.1f}" if slow else "")
            except ImportError: others.append("not installed")
        times_theirs = f"{np.median(ratios):.1f} ({ratios.min():.1f} to {ratios.max():.1f})"
        print(f"| {n:7d} | {D:2d} | {K:2d} | {ours * 1e3:.2f} | {theirs * 1e3:.2f} | {times_theirs} | {must} | {aim} "
              f"| {gap:.0e} | {memory:.0%} | {arithmetic:.0%} | {others[0]} | {others[1]} |", flush=True)
        if np.median(ratios) < must or gap > 1e-8: failed.append(row)
    return failed


def whole_fits(pairs):
    print("\nwhole fits (k-means++ starts to convergence, n_init=10, tol=1e-4)")
    print("|       n |  D |  K | ours s | sklearn s | times sklearn | mean log-likelihood ours | sklearn |")
    print("|---|---|---|---|---|---|---|---|")
    for n, D, K in ((18_435, 2, 3), (60_000, 10, 10)):
        X, _ = data(n, D, K)
        kw = dict(init_params="k-means++", n_init=10, tol=1e-4, random_state=0, max_iter=200)
        times = []
        for _ in range(pairs):
            (a, ours), (b, theirs) = (seconds(lambda: cls(K, **kw).fit(X)) for cls in CLASSES)
            times.append((a, b))
        a, b = np.median(times, axis=0)
        ratio = np.median([t / o for o, t in times])
        print(f"| {n:7d} | {D:2d} | {K:2d} | {a:.2f} | {b:.2f} | {ratio:.1f} "
              f"| {ours.lower_bound_:.6f} | {theirs.lower_bound_:.6f} |", flush=True)


def with_gaps(X, kind):
    "The points with a fifth of the entries missing, in four patterns or at random, or with half of them missing."
    rng = np.random.default_rng(1)
    share = 0.5 if kind == "half at random" else 0.2
    gaps = rng.random((4, X.shape[1]) if kind == "four patterns" else X.shape) < share
    if kind == "four patterns": gaps = gaps[rng.integers(4, size=len(X))]
    return np.where(gaps, np.nan, X), len(np.unique(gaps, axis=0))


def gaps_table(n=20_000, D=16):
    "Processor time of an iteration, the least of three, so that it hardly hangs on what else the machine does."
    print(f"EM with missing values, {n} points in {D} dimensions, processor time")
    print("|  K | gaps | patterns | ms/iter | times four patterns |")
    print("|---|---|---|---|---|")
    for K in (3, 10):
        X, start = data(n, D, K)
        for kind in ("four patterns", "a fifth at random", "half at random"):
            Y, patterns = with_gaps(X, kind)
            def fit(iterations):
                started = time.process_time()
                GaussianMixture(K, missing="marginalise", max_iter=iterations, tol=0, **start).fit(Y)
                return time.process_time() - started
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                each = (min(fit(4) for _ in range(3)) - min(fit(1) for _ in range(3))) / 3
            if kind == "four patterns": few = each
            print(f"| {K:2d} | {kind} | {patterns} | {each * 1e3:.0f} | {each / few:.1f} |", flush=True)


def gpu():
    import torch
    if not torch.cuda.is_available():
        print("\nGPU: none here")
        return
    print(f"\nGPU: {torch.cuda.get_device_name()}, against scikit-learn on the CPU with all its cores")
    print("|       n |  D |  K | ours ms/iter | sklearn ms/iter | times sklearn | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for n, D, K in ((100_000, 32, 16), (1_000_000, 64, 64)):
        X, start = data(n, D, K)
        T = torch.tensor(X, device="cuda")
        def fit(cls, points, iterations): return cls(K, max_iter=iterations, tol=0, **start).fit(points)
        def per_iteration(cls, points, short, long):
            fit(cls, points[:20_000], 1)
            times = {i: min(seconds(lambda: fit(cls, points, i))[0] for _ in range(2)) for i in (short, long)}
            return (times[long] - times[short]) / (long - short)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours, theirs = per_iteration(CLASSES[0], T, 5, 25), per_iteration(CLASSES[1], X, 1, 3)
            gap = np.abs(fit(CLASSES[0], T, 3).means_.cpu().numpy() - fit(CLASSES[1], X, 3).means_).max()
        print(f"| {n:7d} | {D:2d} | {K:2d} | {ours * 1e3:.2f} | {theirs * 1e3:.1f} | {theirs / ours:.0f} "
              f"| {gap:.0e} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", help="rows of the table, from 1")
    parser.add_argument("--quick", action="store_true", help="three pairs, no other peers, no whole fits")
    parser.add_argument("--gaps", action="store_true", help="only the table of missing values")
    arguments = parser.parse_args()
    if arguments.gaps: sys.exit(gaps_table())
    with threadpool_limits(THREADS):
        rows = [r - 1 for r in arguments.rows or range(1, len(TABLE) + 1)]
        failed = iterations_table(rows, 3 if arguments.quick else 5, not arguments.quick)
        if not arguments.quick and not arguments.rows: whole_fits(3)
    if not arguments.rows: gpu()
    sys.exit(f"below the required multiple, or answers apart: rows {[r + 1 for r in failed]}" if failed else 0)
