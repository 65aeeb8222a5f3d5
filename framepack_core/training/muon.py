"""Muon: momentum whose matrix is brought near an orthogonal one before it is applied.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (kellerjordan.github.io/posts/muon,
2024): Nesterov momentum, five Newton-Schulz steps with the quintic's coefficients there, and its factor for tall
matrices; decoupled weight decay as in Liu et al. (arXiv 2502.16982).
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """For matrices, and kernels taken as matrices of one row per output.

    Those of one shape are updated together, so that a step is a few batched products.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        wrong = next((p for group in self.param_groups for p in group["params"] if p.ndim < 2), None)
        if wrong is not None:
            raise ValueError(
                f"Muon is for matrices and kernels, not for a parameter of shape {tuple(wrong.shape)}; use AdamW."
            )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update from the gradients; parameters without one stay."""
        if closure is not None:
            raise ValueError("Muon takes no closure; call backward() before step().")
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        momentum, lr = group["momentum"], group["lr"]
        gradients = torch.stack([parameter.grad for parameter in parameters if parameter.grad is not None])
        buffers = torch.stack([self._buffer(parameter) for parameter in parameters])
        buffers.lerp_(gradients, 1 - momentum)
        ahead = gradients.lerp(buffers, momentum).flatten(2)  # [n, rows, columns]
        updates = orthogonalise(ahead).reshape(gradients.shape).to(gradients.dtype).unbind()
        scale = -lr * max(1.0, ahead.shape[1] / ahead.shape[2]) ** 0.5
        self.state.update({p: {"momentum": buffer} for p, buffer in zip(parameters, buffers, strict=True)})
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(parameters, updates, alpha=scale)  # pyright: ignore[reportPrivateImportUsage]

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        return state["momentum"] if "momentum" in state else torch.zeros_like(parameter)


def orthogonalise(matrices: Tensor) -> Tensor:
    """[n, rows, columns] -> matrices with the same singular vectors and singular values near 1 (0.7 to 1.2).

    Computed in bf16 on an accelerator, as the source does, and in float32 on a CPU.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x.to(torch.float32 if x.device.type == "cpu" else torch.bfloat16)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        # sums and products in one launch each: a small model's step is as long as its launches take
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if is_tall else x
