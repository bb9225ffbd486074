"""`python -m vae_gmm` runs the command line of cli.py."""
from .cli import main

if __name__ == "__main__":
    main()
