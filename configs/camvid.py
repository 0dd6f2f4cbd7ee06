r"""A small ViT on driving scenes (CamVid, 367 images of 320 x 240): twenty minutes on one CPU core.

    python launch/pretrain.py --config=configs/camvid.py --workdir=runs/camvid \
        --config.data.folders=path/to/camvid/images/train

The baseline at the same budget is plain DINO: add --config.objective.alpha=0.0.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = recipe_config()
    config.data.folders = ("data/camvid/images/train",)
    config.data.views.crop_size = 64
    config.backbone.variant = "vit_tiny"
    config.backbone.patch_size = 8
    config.backbone.width = 128
    config.backbone.depth = 4
    config.backbone.num_heads = 4
    config.head.hidden_dim = 256
    config.head.bottleneck_dim = 64
    config.head.num_prototypes = 512
    config.head.num_prototypes_dense = 256
    config.backbone.drop_path_rate = 0.0
    # 64 pixels show 6% of an image at its own scale.
    config.data.views.scale = (0.06, 0.5)
    # Driving scenes resemble each other: the teacher temperature for millions of images would collapse early.
    config.objective.warmup_teacher_temp = 0.02
    config.objective.teacher_temp = 0.025
    config.objective.warmup_teacher_temp_epochs = 40
    # Few steps need a higher learning rate and a faster teacher.
    config.optimizer.base_lr = 8e-3
    config.optimizer.warmup_epochs = 5
    config.optimizer.weight_decay_end = 0.1
    config.optimizer.teacher_momentum = 0.98
    config.schedule.epochs = 160
    config.schedule.batch_size = 16
    config.runtime.log_every_steps = 5
    config.runtime.checkpoint_every_minutes = 3.0
    return config
