"""The long measurements: one script a question, one JSON file a script. `python -m experiments` lists them."""
