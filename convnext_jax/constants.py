"""Values that models, data and conversion share."""

# Mean and standard deviation of ImageNet's RGB channels, for pixels scaled to [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

IMAGENET_1K_CLASSES = 1000
IMAGENET_22K_CLASSES = 21841
ADE20K_CLASSES = 150
COCO_CLASSES = 80

# Which of an evaluation's results decides, by task.
DECISIVE = {"classification": "top1", "segmentation": "miou", "detection": "box_ap"}

# What a run leaves to look at, in its workdir.
EXAMPLES_FILE = "examples.png"
REPORT_FILE = "report.html"

# The label of pixels that belong to no class.
IGNORED = 255

# What is taken from folders, in lower or upper case, in training as in prediction.
IMAGE_EXTENSIONS = (
    ".avif",
    ".bmp",
    ".gif",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)

# How users read which of a run's or a file's parameters were taken.
PARAMETERS = {
    "ema": "moving average",
    "params": "raw parameters",
    "file": "parameters as in the file",
}
