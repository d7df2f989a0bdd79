"""Parts of :mod:`benchmarks.allocation`."""
