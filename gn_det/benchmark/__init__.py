"""gn_det beside stock detectron2, with the same weights, in one process and in turn: seconds, ratios, memory."""
