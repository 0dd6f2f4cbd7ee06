"""Makes libraries that import torchvision importable beside any build of PyTorch."""


def complete_torchvision():
    """Names operators that a torchvision for another build of PyTorch lacks; timm and transformers call none."""
    import torch

    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError:
        # As of a build for CUDA beside a PyTorch for CPUs; the library forgets its operators with this object.
        complete_torchvision.library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            complete_torchvision.library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
