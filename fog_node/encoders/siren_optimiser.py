"""Adam, plain or in the eigenbasis of the gradients' second moments, for many matrices of one size at once.

The second form is SOAP (arXiv:2409.11321). On deep sine networks it saves about half of the steps; on shallow ones it
gains nothing.
"""

from __future__ import annotations

import math

import torch

_BETA1, _BETA2, _EPSILON = 0.9, 0.99, 1e-8
_MEMORY = 0.95  # of the gradients' second moments
_EVERY = 25  # steps from one turn of the bases to the next
_EARLY = (2, 5, 10)


class Adam:
    """Moves matrices (N, L, outputs, inputs) in place; `gradient` has their size and is filled by the caller."""

    def __init__(self, matrices: torch.Tensor, *, precondition: bool) -> None:
        self.matrices, self.gradient = matrices, torch.zeros_like(matrices)
        self._first, self._second = torch.zeros_like(matrices), torch.zeros_like(matrices)
        self._precondition = precondition
        if precondition:
            *stack, rows, columns = matrices.shape
            sides = [torch.eye(size, device=matrices.device).repeat(*stack, 1, 1) for size in (rows, columns)]
            self._left, self._right = sides
            self._squares_left, self._squares_right = torch.zeros_like(sides[0]), torch.zeros_like(sides[1])

    def step(self, number: int, rate: float, frozen: int = 0) -> None:
        """Step `number`, from 0. The first `frozen` of the L matrices stay as they are."""
        live = slice(frozen, None)
        gradient, first, second = self.gradient[:, live], self._first[:, live], self._second[:, live]
        first.lerp_(gradient, 1 - _BETA1)
        update = first
        if self._precondition:
            self._turn(number, frozen)
            left, right = self._left[:, live], self._right[:, live]
            gradient, update = left.mT @ gradient @ right, left.mT @ first @ right
        second.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        size = second.sqrt().mul_(1 / math.sqrt(1 - _BETA2 ** (number + 1))).add_(_EPSILON)
        update = update / size
        if self._precondition:
            update = left @ update @ right.mT
        self.matrices[:, live].add_(update, alpha=-rate / (1 - _BETA1 ** (number + 1)))

    def _turn(self, number: int, frozen: int) -> None:
        """Follow the gradients' second moments, and now and then turn the bases towards their eigenvectors."""
        gradient = self.gradient[:, frozen:]
        self._squares_left[:, frozen:].lerp_(gradient @ gradient.mT, 1 - _MEMORY)
        self._squares_right[:, frozen:].lerp_(gradient.mT @ gradient, 1 - _MEMORY)
        if number == 0:
            self._left[:, frozen:] = torch.linalg.eigh(self._squares_left[:, frozen:])[1]
            self._right[:, frozen:] = torch.linalg.eigh(self._squares_right[:, frozen:])[1]
        elif number in _EARLY or number % _EVERY == 0:  # one step of the power iteration
            for basis, squares in ((self._left, self._squares_left), (self._right, self._squares_right)):
                basis[:, frozen:] = torch.linalg.qr(squares[:, frozen:] @ basis[:, frozen:])[0]
