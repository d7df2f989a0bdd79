"""Layers for weights that no layer of torch holds: parameters, functional calls, experts."""
