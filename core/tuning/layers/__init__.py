"""Figures by layer: what each op costs and bears, gathered at the end of a run."""
