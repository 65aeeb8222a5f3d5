"""Golden values from the original's code (float32, axes 16/56/56, theta 256)."""

import torch
from framepack_pack.framepack_core.model.config import FramePackConfig
from framepack_pack.framepack_core.model.rope import (
    Rotation,
    join_rotations,
    pad_to_multiple,
    pooled_grid,
    rotate,
    rotation_grid,
)

CONFIG = FramePackConfig()
TIME, ROWS, COLUMNS = slice(0, 8), slice(8, 36), slice(36, 64)
COS, SIN = 0, 1


def close(got, expected):
    torch.testing.assert_close(got, torch.tensor(expected), atol=2e-6, rtol=0)


def test_time_axis():
    grid = rotation_grid(CONFIG, (1,), 2, 2, "cpu")
    close(grid[COS, TIME, 0, 0, 0], [0.540302, 0.877583, 0.968912, 0.992198, 0.998048, 0.999512, 0.999878, 0.999969])


def test_space_axes():
    grid = rotation_grid(CONFIG, (1,), 4, 6, "cpu")
    close(grid[COS, ROWS, 0, 3, 0][:4], [-0.989992, -0.777204, -0.433212, -0.085234])
    close(grid[SIN, COLUMNS, 0, 0, 5][:4], [-0.958924, -0.819240, -0.221310, 0.372191])


def test_2x_cells_average():
    pooled = pooled_grid(rotation_grid(CONFIG, (11, 12), 40, 38, "cpu"), 2)
    assert pooled.shape == (2, 64, 1, 20, 19)
    close(pooled[COS, TIME, 0, 0, 0], [0.424140, 0.834420, -0.957147, 0.132642, 0.752262, 0.936003, 0.983870, 0.995959])
    close(
        pooled[SIN, TIME, 0, 0, 0], [-0.768282, -0.492478, 0.261390, 0.989194, 0.658123, 0.351646, 0.178717, 0.089722]
    )


def test_4x_cells_average_and_pad_at_the_end():
    pooled = pooled_grid(rotation_grid(CONFIG, tuple(range(13, 29)), 40, 38, "cpu"), 4)
    assert pooled.shape == (2, 64, 4, 10, 10)
    close(
        pooled[COS, TIME, 0, 0, 0], [-0.168291, 0.482906, -0.851198, -0.237026, 0.615197, 0.898535, 0.974296, 0.993553]
    )
    close(pooled[COS, COLUMNS, 0, 0, -1][:4], [0.542069, 0.287357, 0.883751, 0.125999])


def test_averages_are_not_renormalised():
    for rate, magnitude in ((2, 0.878), (4, 0.474)):
        pooled = pooled_grid(rotation_grid(CONFIG, tuple(range(rate)), 8, 8, "cpu"), rate)
        assert abs(float(pooled[:, 0, 0, 0, 0].norm()) - magnitude) < 1e-3


def test_one_patch_cells_are_the_grid_itself():
    grid = rotation_grid(CONFIG, (0, 5), 3, 4, "cpu")
    assert torch.equal(pooled_grid(grid, 1), grid)


def test_padding_repeats_the_last_entry():
    x = torch.arange(6.0).view(1, 1, 1, 2, 3)
    padded = pad_to_multiple(x, (4, 4, 4))
    assert padded.shape == (1, 1, 4, 4, 4)
    assert padded[0, 0, 3, 3].tolist() == [3.0, 4.0, 5.0, 5.0]
    assert pad_to_multiple(x, (1, 2, 3)) is x


def test_rotation_turns_pairs_and_leaves_text():
    x = torch.randn(1, 2, 5, 128)
    rotation = join_rotations([rotation_grid(CONFIG, (3,), 1, 3, "cpu")])
    turned = rotate(x, rotation)
    assert torch.equal(turned[:, :, 3:], x[:, :, 3:])
    pairs = torch.view_as_complex(x[:, :, :3].unflatten(-1, (-1, 2)))
    expected = torch.view_as_real(pairs * torch.complex(rotation.cos, rotation.sin)).flatten(-2)
    torch.testing.assert_close(turned[:, :, :3], expected)


def test_rotation_by_zero_is_exact():
    x = torch.randn(1, 1, 2, 128)
    assert torch.equal(rotate(x, Rotation(torch.ones(1, 1, 2, 64), torch.zeros(1, 1, 2, 64))), x)
