"""Named recipes: settings that a job's `train`, or one of its stages, starts from with `recipe: NAME`.

Plain data. A stage's identity comes from the settings that result, never from a recipe's name.
"""

from collections.abc import Mapping
from typing import Any

MEANINGS: Mapping[str, str] = {
    "paper": "the paper's (Simonyan and Zisserman 2014, section 3.1): every setting's default",
    "torchvision": "of torchvision's reference training of its VGG nets without batch norm",
}

RECIPES: Mapping[str, Mapping[str, Any]] = {
    # Simonyan and Zisserman 2014 (arXiv 1409.1556), section 3.1: what every setting is by default.
    "paper": {},
    # torchvision's VGG nets without batch normalisation, by its references/classification (pytorch/vision): README,
    # "AlexNet and VGG", and the defaults of train.py and presets.py. Not taken over: RandomResizedCrop, which draws a
    # crop's area and aspect ratio (here `scale` says what is cropped; it validates at 256), and a deviation for each
    # colour (`pixel_std` is one for all).
    "torchvision": {
        "batch": 256,  # README: 8 GPUs; train.py: --batch-size 32 on each
        "epochs": 90,  # train.py: --epochs
        "learning_rate": 0.01,  # README: --lr 1e-2
        "schedule": "step",  # train.py: --lr-scheduler steplr
        "step": {"every": 30, "factor": 10.0},  # train.py: --lr-step-size 30 --lr-gamma 0.1
        "momentum": 0.9,  # train.py: --momentum
        "weight_decay": 1e-4,  # train.py: --weight-decay, of biases too
        "dropout": 0.5,  # torchvision/models/vgg.py
        "init": {"random": "torchvision", "std": 0.01},  # torchvision/models/vgg.py
        "flip": True,  # presets.py: hflip_prob=0.5
        "colour_shift": 0.0,  # presets.py has none
        "pixel_std": 57.6,  # presets.py: std=(0.229, 0.224, 0.225) of values from 0 to 1; their mean times 255
    },
}
