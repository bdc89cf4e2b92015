"""From predictions to AP, and from AP to records and comparisons."""
