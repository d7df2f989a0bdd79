"""Scripts to start from; run them as modules: `python -m examples.demo`."""
