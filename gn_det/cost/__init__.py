"""Measure what a model costs by part: parameters, FLOPs, activations, and memory."""
