"""Benchmark gn_det against stock detectron2: time and memory with the same weights, in one process."""
