"""The number of heads shows in no shape: what tells it, and who is asked where nothing does."""

import pytest

import croc_jax
from croc_jax.checkpoints.infer_architecture import count_heads
from tests.checkpoints.test_pretrained import dinov3_weights, official_weights, read_as, write


def test_heads_are_told_by_periods_sizes_and_callers(monkeypatch):
    assert read_as(monkeypatch, dinov3_weights())().config.num_heads == 2
    assert read_as(monkeypatch, dinov3_weights(periods=16))().config.num_heads == 4
    assert read_as(monkeypatch, dinov3_weights())(num_heads=8).config.num_heads == 8
    plain = official_weights(width=192, depth=2)
    assert read_as(monkeypatch, plain)().config.num_heads == 3
    assert read_as(monkeypatch, plain)(num_heads=2).config.num_heads == 2
    assert read_as(monkeypatch, plain)(default_heads=6).config.num_heads == 6
    assert read_as(monkeypatch, plain)(default_heads=5).config.num_heads == 3
    assert read_as(monkeypatch, dinov3_weights())(default_heads=8).config.num_heads == 2
    with pytest.raises(ValueError, match="num_heads=5 does not divide 192 features"):
        read_as(monkeypatch, plain)(num_heads=5)
    with pytest.raises(ValueError, match=r"96 features do not make heads of 64: state their number.*num_heads"):
        read_as(monkeypatch, official_weights(width=96))()


@pytest.mark.parametrize(
    "size, rope, heads, told",
    [
        ((1280, 32), False, 16, True),
        ((1280, 32), True, 20, False),
        ((1408, 40), False, 16, True),
        ((1664, 48), False, 16, True),
        ((4096, 40), True, 32, True),
        ((1536, 40), False, 24, False),
        ((1024, 24), False, 16, False),
    ],
)
def test_heads_of_well_known_sizes(size, rope, heads, told):
    width, depth = size
    assert count_heads({}, None, width=width, depth=depth, rope=rope) == (heads, told, [])
    assert count_heads({}, 8, width=width, depth=depth, rope=rope) == (8, True, [])


def test_programs_leave_the_number_of_heads_to_runs(tmp_path):
    with pytest.raises(ValueError, match="num_heads=4.*is a run, whose settings are known"):
        croc_jax.load_backbone(tmp_path, num_heads=4)
    file = write(tmp_path / "vit.safetensors", official_weights())
    assert croc_jax.load_backbone(file, num_heads=4).module.num_heads == 4  # pyright: ignore
