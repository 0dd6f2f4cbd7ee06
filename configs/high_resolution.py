r"""A last stage at a high resolution: a run continues on larger crops, briefly and slowly, as in DINOv2 and Franca.

    python launch/pretrain.py --config=configs/high_resolution.py --workdir=runs/high \
        --config.init_from.source=runs/croc --config.data.folders=path/to/images

After the colon: the side of the crops in pixels, 336 by default, 1.5 times the usual one; a second run from the first
one, at :448, doubles it. For patches of 14: :364, then :518. Both networks, their heads and centers continue, and
learned position embeddings are resized; the settings of the backbone and of the heads are those of the run, and an
error names what differs. Larger crops take more memory: --config.optimizer.accumulation_steps splits the batch.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config


def get_config(size: str = "336") -> ConfigDict:
    """Returns the recipe for crops of a size."""
    if not size.isdigit() or not int(size):
        raise ValueError(f"size={size!r}: expected the side of the crops in pixels, such as 336")
    config = recipe_config()
    config.init_from.source = "runs/croc"
    config.init_from.parts = "networks"
    config.data.views.crop_size = int(size)
    config.data.sources = ("coco:data/coco",)
    # 1.25e-5 for a batch of 1024 (Franca): patches keep what they are, and learn where they are.
    config.optimizer.base_lr = 1.25e-5 * 256 / 1024
    # The usual 1e-6 is more than that of a small batch.
    config.optimizer.min_lr = 0.0
    # The schedules of a whole run, compressed (DINOv2).
    config.schedule.epochs = 10
    config.optimizer.warmup_epochs = 1
    config.objective.warmup_teacher_temp_epochs = 1
    # The last layers are trained already.
    config.optimizer.freeze_last_layer_epochs = 0
    config.optimizer.teacher_momentum = 0.998
    return config
