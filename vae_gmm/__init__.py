"""Read handwritten digits without training labels: `from vae_gmm import VAE, GaussianMixture, VAEGMM`."""
import sys

__version__ = "0.1.0"

__all__ = ["VAE", "GaussianMixture", "VAEGMM", "SubsetImagesFromNPZ"]

_HOME = dict(zip(__all__, ("vae", "mixture.estimator", "classifier", "data")))  # the module of each

if sys.argv[:1] == ["-m"]:  # Python looks for the module that `python -m` names; those inside have nothing to run
    _, inside, word = sys.orig_argv[-len(sys.argv)].rpartition(f"{__name__}.")
    if inside and word != "__main__":
        print(f"Error: {inside}{word} is no program; type: python -m {__name__} --help", file=sys.stderr)
        sys.exit(2)


def __getattr__(name):
    """One of the names above, from its module when it is first asked for: `import vae_gmm` by itself loads no torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    globals()[name] = value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__():
    return sorted({*globals(), *__all__})
