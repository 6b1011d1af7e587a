"""Two ways to change weights at once: Muon for the matrices of the layers, AdamW for everything else."""

import torch
from torch import Tensor, nn

MATRIX_RATE, OTHER_RATE = 0.02, 3e-3
WEIGHT_DECAY, MOMENTUM = 0.02, 0.95
_BY_ADAM = ("token_embd", "gate_inp", "alpha", "beta", "conv1d", "bias")
"""Parts of the names of what has two dimensions or more, but is no matrix between hidden states."""


def orthogonal(matrices: Tensor, n_steps: int = 5) -> Tensor:
    """About the nearest matrices whose rows (or columns, whichever are fewer) are orthonormal; [..., row, column]."""
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(n_steps):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if is_tall else x


class Optimizer:
    """Keeps the momentum of the matrices and the AdamW of the rest."""

    def __init__(self, model: nn.Module) -> None:
        self.matrices: list[Tensor] = []
        others: list[Tensor] = []
        for name, weight in model.named_parameters():
            is_matrix = weight.dim() >= 2 and name != "output.weight" and not any(part in name for part in _BY_ADAM)
            (self.matrices if is_matrix else others).append(weight)
        self.momenta = [torch.zeros_like(weight) for weight in self.matrices]
        self.adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, part: float) -> None:
        """One step with that part of the full rates, after ``backward``; gradients are cleared."""
        for group in self.adam.param_groups:
            group["lr"] = OTHER_RATE * part
        self.adam.step()
        for weight, momentum in zip(self.matrices, self.momenta, strict=True):
            momentum.lerp_(weight.grad, 1 - MOMENTUM)
            change = orthogonal(torch.lerp(weight.grad, momentum, MOMENTUM))
            rate = MATRIX_RATE * part
            weight.mul_(1 - rate * WEIGHT_DECAY)
            weight.sub_(change, alpha=rate * max(1.0, weight.shape[-2] / weight.shape[-1]) ** 0.5)
        self.adam.zero_grad()
        for weight in self.matrices:
            weight.grad = None

    def state_dict(self) -> dict[str, object]:
        """What ``load_state_dict`` takes."""
        return {"momenta": self.momenta, "adam": self.adam.state_dict()}

    def load_state_dict(self, saved: dict[str, object]) -> None:
        """Goes on from what was saved."""
        self.momenta = list(saved["momenta"])  # type: ignore[call-overload]
        self.adam.load_state_dict(saved["adam"])
