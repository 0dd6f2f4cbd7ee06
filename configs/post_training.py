r"""Post-training: a ViT-S/16 pre-trained by DINO continues with CrOC's objective, 20 epochs of COCO.

    python launch/pretrain.py --config=configs/post_training.py --workdir=runs/post \
        --config.init_from.source=path/to/dino_deitsmall16_pretrain.pth --config.data.folders=path/to/images

The source may be anything that evaluate.py takes: CrOC, DINO, DINOv2, DINOv3, timm, Hugging Face, or a workdir. For
another architecture, an error names the flags that make it fit.
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
    config.schedule.epochs = 20
    # A tenth of the rate from scratch keeps what the features know. During one epoch of warm-up the new heads settle,
    # with their last layers frozen.
    config.optimizer.base_lr = 5e-5
    config.optimizer.warmup_epochs = 1
    config.optimizer.freeze_last_layer_epochs = 1
    # The teacher is as good as the student at the start: it may follow slowly.
    config.optimizer.teacher_momentum = 0.998
    # Decay that grows tenfold suits 300 epochs.
    config.optimizer.weight_decay_end = 0.04
    config.objective.warmup_teacher_temp_epochs = 2
    return config
