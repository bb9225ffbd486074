"""The tools behind the Makefile: run the notebooks, check them, and turn them into README.md and report.pdf."""
