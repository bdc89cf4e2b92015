"""Faults done to real runs of gn_det, and to the same runs of stock detectron2."""
