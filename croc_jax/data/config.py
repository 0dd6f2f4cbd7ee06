"""Settings of the images, the crops and their photometric augmentation."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """The random resized crops of an image.

    Attributes:
        crop_size: side of a view in pixels.
        scale: smallest and largest area of a crop over the area of the image.
        ratio: smallest and largest width over height.
        flip_probability: chance of a horizontal flip.
    """

    crop_size: int = 224
    scale: tuple[float, float] = (0.25, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotometricConfig:
    """Color, blur and solarization; pairs hold a value for view 1 and one for view 2."""

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    jitter_probability: float = 0.8
    grayscale_probability: float = 0.2
    blur_probability: tuple[float, float] = (1.0, 0.1)
    blur_radius: tuple[float, float] = (0.1, 2.0)
    solarize_probability: tuple[float, float] = (0.0, 0.2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images are and how views are made of them.

    Attributes:
        folders: folders of images, searched recursively; several are joined in order.
        views: the crops.
        photometric: the augmentation on the device.
    """

    folders: tuple[str, ...] = ()
    views: ViewsConfig = ViewsConfig()
    photometric: PhotometricConfig = PhotometricConfig()
