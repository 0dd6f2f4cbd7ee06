"""What is said of errors of XLA that end a run."""

import jax
import pytest

from croc_jax.models import BackboneConfig
from croc_jax.training.sharding import make_mesh
from tests.training.tiny import tiny_recipe


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            "UNIMPLEMENTED: Unsupported element type for DotThunk::Execute: BF16 x BF16 = F32\nmore",
            "error: backbone.dtype='mixed': XLA on this CPU lacks a product of this network: in a new workdir, set "
            "--config.backbone.dtype=float32 (UNIMPLEMENTED: Unsupported element type for DotThunk::Execute: BF16 x "
            "BF16 = F32); no state has been saved",
        ),
        (
            "RESOURCE_EXHAUSTED: Out of memory\nmore",
            "error: out of memory: raise optimizer.accumulation_steps or set backbone.remat=True (RESOURCE_EXHAUSTED: "
            "Out of memory); no state has been saved",
        ),
    ],
)
def test_errors_of_xla_end_a_run_with_a_setting_to_change(monkeypatch, tmp_path, error, words):
    monkeypatch.syspath_prepend("launch")
    import endings

    recipe = tiny_recipe(backbone=BackboneConfig(width=16, depth=1, num_heads=2, patch_size=8, dtype="mixed"))
    with pytest.raises(SystemExit) as ended, endings.explaining_errors(recipe, make_mesh(jax.devices()[:1]), tmp_path):
        raise jax.errors.JaxRuntimeError(error)
    assert str(ended.value) == words


def test_other_errors_of_xla_keep_their_traceback(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend("launch")
    import endings

    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
        endings.explaining_errors(tiny_recipe(), make_mesh(jax.devices()[:1]), tmp_path),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")
