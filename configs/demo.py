r"""A small ViT on generated scenes: minutes on two CPU cores. `make demo` runs it.

    python launch/pretrain.py --config=configs/demo.py --workdir=runs/demo \
        --config.data.folders=path/to/photos

Without the last flag it trains on the scenes that `make demo` generates.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = recipe_config()
    config.data.folders = ("data/scenes/images/train",)
    config.data.views.crop_size = 64
    # Drawn things have any color: changed colors teach texture and shape, but with 0.4 objects are followed worse.
    config.data.photometric.hue = 0.2
    config.data.photometric.saturation = 0.4
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
    # With few images, a high teacher temperature collapses early.
    config.objective.student_temp = 0.05
    config.objective.warmup_teacher_temp = 0.01
    config.objective.teacher_temp = 0.0125
    config.objective.warmup_teacher_temp_epochs = 10
    # In the same time, batches of 8 score higher than of 16; the rate is 5e-4 for 8. Few updates need a faster teacher.
    config.optimizer.base_lr = 16e-3
    config.optimizer.warmup_epochs = 2
    config.optimizer.weight_decay_end = 0.1
    config.optimizer.teacher_momentum = 0.98
    config.schedule.epochs = 28
    config.schedule.batch_size = 8
    config.runtime.log_every_steps = 10
    config.runtime.checkpoint_every_minutes = 1.0
    return config
