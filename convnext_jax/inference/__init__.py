"""Using trained models: loading, preprocessing, classes and embeddings of images."""
