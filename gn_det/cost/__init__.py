"""What a model costs: parameters, FLOPs, activations and memory, by part."""
