"""Figures beside the bars they are measured against; run one as `python -m benchmarks.NAME`."""
