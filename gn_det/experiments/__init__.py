"""Experiments that train many models, such as the comparison of norms at several batch sizes."""
