"""Studies that train many models: the norms at several batch sizes."""
