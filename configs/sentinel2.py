r"""CrOC, ViT-S/16 on all 13 bands of Sentinel-2 (Level-1C), 16-bit TIFFs of 256 pixels or a little more.

    python launch/pretrain.py --config=configs/sentinel2.py --workdir=runs/sentinel2 \
        --config.data.folders=path/to/tiles

Each file holds the bands in the order B1 to B8, B8A, B9 to B12, resampled to one grid of 10 m. Of larger images, such
as whole products, add --config.data.window=256. Products processed from January 2022 on store reflectance with an
offset of 1000: take it off by --config.data.range=1000 --config.data.range=11000.

Mean and deviation are those of SSL4EO-S12 (50,000 tiles all over the world). For a region of your own, or another level
of processing, measure them, and give the file that holds them:

    python launch/prepare.py --statistics=runs/bands.json --source=folder:path/to/tiles \
        --channels=13 --dtype=uint16
    python launch/pretrain.py --config=configs/sentinel2.py --workdir=runs/sentinel2 \
        --config.data.folders=path/to/tiles --config.data.statistics=runs/bands.json
"""

from ml_collections import ConfigDict

from croc_jax.training.config_dict import recipe_config

# Reflectance of B1 to B8, B8A, B9 to B12: Wang et al., SSL4EO-S12, 2023.
MEAN = (
    0.16056, 0.13908, 0.13149, 0.13635, 0.15494, 0.20917, 0.23717, 0.22999, 0.25603, 0.08301, 0.00221, 0.21771, 0.15241,
)  # fmt: skip
STD = (
    0.07868, 0.08503, 0.08751, 0.11388, 0.11222, 0.11616, 0.12744, 0.12484, 0.13455, 0.05773, 0.00512, 0.13361, 0.11365,
)  # fmt: skip


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = recipe_config()
    config.data.folders = ("data/sentinel2",)
    config.data.channels = 13
    config.data.dtype = "uint16"
    # Stored values are reflectance times 10,000; only clouds and snow reach beyond 1.
    config.data.range = (0.0, 10_000.0)
    # B4, B3 and B2 are red, green and blue.
    config.data.shown_channels = (3, 2, 1)
    config.backbone.image_mean = MEAN
    config.backbone.image_std = STD
    # Thirteen bands have no hue.
    config.data.photometric.saturation = 0.0
    config.data.photometric.hue = 0.0
    config.data.photometric.grayscale_probability = 0.0
    # In place of it: features must not rest on single bands.
    config.data.photometric.channel_drop_probability = 0.1
    # Nothing on the ground looks like inverted reflectance.
    config.data.photometric.solarize_probability = (0.0, 0.0)
    # 100 epochs of the 251,000 places of SSL4EO-S12 are 98,000 updates, as many as 200 epochs of COCO.
    config.schedule.epochs = 100
    return config
