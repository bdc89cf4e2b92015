"""Norms, backbones and heads of a detector, registered with detectron2."""
