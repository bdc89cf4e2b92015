"""A trained model on images, folders and videos."""
