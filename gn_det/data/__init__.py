"""Register data sets in COCO format, check their annotations, and generate a sample data set."""
