r"""A small ViT on driving scenes (CamVid, 367 images of 320 x 240): under half an hour on two CPU cores.

    python launch/pretrain.py --config=configs/camvid.py --workdir=runs/camvid \
        --config.data.folders=path/to/camvid/images/train

The baseline at the same budget is plain DINO: add --config.objective.alpha=0.0.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = recipe_config()
    config.data.folders = ("data/camvid/images/train",)
    config.data.views.crop_size = 64
    config.backbone.variant = "vit_tiny"
    config.backbone.patch_size = 8
    config.backbone.width = 128
    config.backbone.depth = 4
    config.backbone.num_heads = 4
    config.head.hidden_dim = 512
    config.head.bottleneck_dim = 128
    config.head.num_prototypes = 1024
    config.head.num_prototypes_dense = 512
    config.clustering.k_start = 8
    config.clustering.k_max = 8
    # So few steps need a higher peak, and a teacher that follows sooner.
    config.objective.warmup_teacher_temp_epochs = 5
    config.optimizer.base_lr = 4e-3
    config.optimizer.warmup_epochs = 2
    config.optimizer.teacher_momentum = 0.98
    config.schedule.epochs = 60
    config.schedule.batch_size = 32
    config.runtime.log_every_steps = 5
    config.runtime.checkpoint_every_minutes = 5.0
    return config
