"""Embedding tables of which a file stores only the rows that its known words need; all other rows are zero.

The host's tokenizers number 128,320 and 49,408 tokens, a vocabulary of a hundred words needs a few hundred of them.
Beside `<table>.weight` [R, D] such a file has `<table>.rows` [R], the numbers of these rows, and under ROWS_ENTRY in
its metadata the number of rows of each whole table.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

ROWS_ENTRY = "table_rows"


def stored_table(table: str, rows: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """The two tensors of a table that has these rows [D], in the order of their numbers."""
    numbers = sorted(rows)
    return {
        f"{table}.weight": torch.stack([rows[number] for number in numbers]),  # [R, D]
        f"{table}.rows": torch.tensor(numbers, dtype=torch.int32),
    }


def whole_shapes(shapes: Mapping[str, tuple[int, ...]], table_rows: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Shapes as they are after whole_tables."""
    whole = {key: shape for key, shape in shapes.items() if key.removesuffix(".rows") not in table_rows}
    return whole | {f"{table}.weight": (count, shapes[f"{table}.weight"][1]) for table, count in table_rows.items()}


def whole_tables(tensors: Mapping[str, Tensor], table_rows: Mapping[str, int]) -> dict[str, Tensor]:
    """The state dict with whole tables [table_rows, D], zero where the file has no row."""
    whole = {key: tensor for key, tensor in tensors.items() if key.removesuffix(".rows") not in table_rows}
    for table, count in table_rows.items():
        weight = tensors[f"{table}.weight"]
        whole[f"{table}.weight"] = weight.new_zeros(count, weight.shape[1])
        whole[f"{table}.weight"][tensors[f"{table}.rows"].long()] = weight
    return whole
