"""Object detection and instance segmentation: Mask R-CNN and Cascade Mask R-CNN on COCO."""
