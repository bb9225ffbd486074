"""Read handwritten digits without training labels: `from vae_gmm import VAE, GaussianMixture, VAEGMM`."""
__version__ = "0.1.0"

__all__ = ["VAE", "GaussianMixture", "VAEGMM", "SubsetImagesFromNPZ"]

_HOME = dict(zip(__all__, ("vae", "mixture.estimator", "classifier", "data")))  # the module of each


def __getattr__(name):
    """One of the names above, from its module when it is first asked for: `import vae_gmm` by itself loads no torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    globals()[name] = value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__():
    return sorted({*globals(), *__all__})
