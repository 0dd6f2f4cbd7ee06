"""Arithmetic of matrix products as compilers write them, against the plain count."""

import pytest
from programs.products import product_flops

SCORES = (
    '"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["4", "6", "200", "200"], "tuple_shapes": []}'
)


@pytest.mark.parametrize(
    ("line", "operands", "result", "expected"),
    [
        ("dot(%a, %b), lhs_contracting_dims={1}", [(272, 128), (128, 384)], (272, 384), 2 * 272 * 128 * 384),
        ("dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={1,2}", [(3, 4, 5), (3, 4, 5)], (3,), 2 * 3 * 20),
        ("dot(%a, %b), lhs_contracting_dims={}", [(7,), (9,)], (7, 9), 2 * 63),
        # A product with a batch: [8, 16, 768] times [768, 128].
        (
            "convolution(%a, %b), window={size=1}, dim_labels=0bf_io0->0bf",
            [(8, 16, 768), (768, 128, 1)],
            (8, 16, 128),
            2 * 8 * 16 * 768 * 128,
        ),
        # A batched product, whose batch is an axis with holes: 16 times [17, 64] by [64, 17].
        (
            "convolution(%a, %b), window={size=16 stride=15 lhs_dilate=16}, dim_labels=0bf_0oi->0bf",
            [(16, 17, 64), (16, 17, 64)],
            (16, 17, 17),
            2 * 16 * 17 * 17 * 64,
        ),
        # Two batch axes.
        (
            "convolution(%a, %b), window={size=4x2 stride=3x1 lhs_dilate=4x2}, dim_labels=01bf_01io->01bf",
            [(4, 2, 32, 64), (4, 2, 64, 12)],
            (4, 2, 32, 12),
            2 * 8 * 32 * 64 * 12,
        ),
        # The gradient of a matrix sums over rows of all images: the window is their axis.
        (
            "convolution(%a, %b), window={size=17}, dim_labels=f0b_i0o->bf0",
            [(8, 17, 128), (8, 17, 384)],
            (128, 384, 1),
            2 * 8 * 17 * 128 * 384,
        ),
        # A window of 3 on 5 places with a border of 1 misses two places.
        (
            "convolution(%a, %b), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
            [(1, 5, 2), (3, 2, 4)],
            (1, 5, 4),
            2 * 2 * 4 * 13,
        ),
        # With holes in the window, 2 apart.
        (
            "convolution(%a, %b), window={size=3 rhs_dilate=2}, dim_labels=b0f_0io->b0f",
            [(1, 9, 2), (3, 2, 4)],
            (1, 5, 4),
            2 * 2 * 4 * 15,
        ),
        (
            'custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":'
            '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}',
            [(50, 384), (384, 1536)],
            (50, 1536),
            2 * 50 * 384 * 1536,
        ),
        (
            f'custom-call(%q, %k, %v), custom_call_target="__cudnn$fmhaSoftmax", backend_config={{{SCORES}}}',
            [(4, 200, 6, 64)] * 3,
            (4, 6, 200, 64),
            2 * 2 * 4 * 6 * 200 * 200 * 64,
        ),
        (
            f'custom-call(%q, %k, %v), custom_call_target="__cudnn$fmhaSoftmaxBackward", backend_config={{{SCORES}}}',
            [(4, 200, 6, 64)] * 3,
            (4, 6, 200, 64),
            5 * 2 * 4 * 6 * 200 * 200 * 64,
        ),
        ('custom-call(%a), custom_call_target="Sharding"', [(8, 8)], (8, 8), 0),
        ("add(%a, %b)", [(8, 8), (8, 8)], (8, 8), 0),
    ],
)
def test_products_are_counted(line, operands, result, expected):
    assert product_flops(line.partition("(")[0], line, result, operands) == expected


def test_a_product_that_cannot_be_read_is_an_error():
    with pytest.raises(ValueError, match="a product without lhs_contracting_dims.*: dot"):
        product_flops("dot", "dot(%a, %b)", (8, 8), [(8, 8), (8, 8)])
