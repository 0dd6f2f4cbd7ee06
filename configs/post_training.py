r"""Post-training: pre-trained weights continue with CrOC's objective, 20 epochs of COCO; by default DINO's ViT-S/16.

    python launch/pretrain.py --config=configs/post_training.py --workdir=runs/post \
        --config.init_from.source=path/to/dino_deitsmall16_pretrain.pth --config.data.folders=path/to/images

After the colon: dino_vits16, dinov2_vits14, dinov2_vits14_registers or dinov3_vits16, for files under their authors'
names. The source may also be anything else that evaluate.py takes: CrOC, timm, Hugging Face, or a workdir; for another
architecture, an error names the flags that make it fit. Crops are whole patches of 14 or 16 pixels, as 112 or 224 are.

--config.optimizer.frozen_blocks=9 trains the upper blocks alone, in less time;
--config.optimizer.freeze_backbone_epochs=1 trains the new heads alone at first.
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config

DINO_VITS16 = {"init_from.source": "weights/dino_deitsmall16_pretrain.pth"}
DINOV2_VITS14 = {
    "init_from.source": "weights/dinov2_vits14_pretrain.pth",
    "backbone.patch_size": 14,
    "backbone.layer_scale": True,
    # All of its 37 x 37 places are kept, whatever the crops.
    "backbone.position_size": 518,
}
VARIANTS = {
    "dino_vits16": DINO_VITS16,
    "dinov2_vits14": DINOV2_VITS14,
    "dinov2_vits14_registers": DINOV2_VITS14
    | {
        "init_from.source": "weights/dinov2_vits14_reg4_pretrain.pth",
        "backbone.num_registers": 4,
        "backbone.position_resizing": "antialias",
    },
    "dinov3_vits16": {
        "init_from.source": "weights/dinov3_vits16_pretrain_lvd1689m.pth",
        "backbone.layer_scale": True,
        "backbone.num_registers": 4,
        "backbone.positions": "rope",
        "backbone.norm_epsilon": 1e-5,
    },
}


def get_config(variant: str = "dino_vits16") -> ConfigDict:
    """Returns the recipe for a source."""
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r}: choose one of {', '.join(VARIANTS)}")
    config = recipe_config()
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
    config.update_from_flattened_dict(VARIANTS[variant])
    return config
