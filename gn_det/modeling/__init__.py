"""The parts of a detector: norms, backbones and heads, registered with detectron2."""
