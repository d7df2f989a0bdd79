"""The parts of ``benchmarks.fuzz``: what is mutated, how, and what it is put through."""
