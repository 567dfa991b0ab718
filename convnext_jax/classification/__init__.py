"""Classification: augmentation, loss, accuracy, and classes and embeddings of images."""
