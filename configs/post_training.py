r"""Post-training: a ViT-S/16 that DINO trained already goes on with CrOC's objective, 20 epochs of COCO.

    python launch/pretrain.py --config=configs/post_training.py --workdir=runs/post \
        --config.init_from.source=path/to/dino_deitsmall16_pretrain.pth --config.data.folders=path/to/images

The source may be all that evaluate.py takes: CrOC, DINO, DINOv2, DINOv3, timm, Hugging Face, or a workdir. Of another
architecture, the program says which flags make it fit.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = recipe_config()
    config.init_from.source = "weights/dino_deitsmall16_pretrain.pth"
    # The heads are new; a whole checkpoint of CrOC or DINO brings its own with "networks".
    config.init_from.parts = "backbone"
    config.data.sources = ("coco:data/coco",)
    config.backbone.variant = "vit_small"
    config.backbone.patch_size = 16
    config.schedule.epochs = 20
    config.schedule.batch_size = 256
    # A tenth of the rate from scratch: the features are to move, not to be forgotten. One epoch of warm-up lets the
    # new heads settle first, while their last layers rest.
    config.optimizer.base_lr = 5e-5
    config.optimizer.warmup_epochs = 1
    config.optimizer.freeze_last_layer_epochs = 1
    # The teacher starts as good as the student: it follows slowly.
    config.optimizer.teacher_momentum = 0.998
    # Decay that grows tenfold suits 300 epochs.
    config.optimizer.weight_decay_end = 0.04
    config.objective.warmup_teacher_temp_epochs = 2
    return config
