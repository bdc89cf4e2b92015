"""Training steps in which the host seldom waits for the GPU (``TRAIN.FEWER_SYNCS``).

detectron2 selects anchors, proposals and positives by their number, which the host must know before it
can launch the next operation: each ``nonzero``, boolean index or ``.item()`` waits until the GPU has
finished. Here all sizes are fixed: the ground truth is padded, samples have a fixed number of slots, and
a label says which slots are empty. The losses and the samples are those of detectron2 for the same
random numbers. Only NMS still waits.

N images, G ground-truth objects of an image (the largest number in the batch), A anchors of an image,
S slots of a sample, R regions of interest.
"""
