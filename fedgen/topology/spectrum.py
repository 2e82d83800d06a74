"""Three numbers of a mixing matrix: |lambda_2|, the spectral gap, the effective number of neighbours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import ArpackNoConvergence, eigs, eigsh

from fedgen.parameters import Array
from fedgen.topology.graph import Matrix

DENSE = 1_024
"""Peers up to which all eigenvalues are computed; beyond, the largest ones by Arnoldi's iteration."""
DECAY = 0.9
"""Decay of the random walk whose variance defines the effective number of neighbours."""
EXACT, PROBES = 256, 64


def second_eigenvalue(matrix: Matrix) -> float:
    """|lambda_2| of W[N, N]: the asymptotic factor by which one mixing shrinks the distances between peers.

    Where pi_i w_ij = pi_j w_ji for some pi, the symmetric sqrt(w_ij w_ji) has the same eigenvalues; that its largest is
    1 tells that there is such a pi.

    Raises ArithmeticError where Arnoldi's iteration does not find it.

    >>> round(second_eigenvalue(np.full((4, 4), 0.25)), 6)
    0.0
    """
    sparse = csr_array(matrix)
    if len_of(sparse) == 1:
        return 0.0
    for solve, each in ((_symmetric, sparse.multiply(sparse.T).sqrt()), (_general, sparse)):
        first, second = solve(each)
        if abs(first - 1) < 1e-6:
            break
    return second


def _symmetric(matrix: Matrix) -> tuple[float, float]:
    """The two eigenvalues of largest size."""
    if len_of(matrix) <= DENSE:
        return _largest(np.linalg.eigvalsh(matrix.toarray()))
    return _largest(_iterated(eigsh, matrix))


def _general(matrix: Matrix) -> tuple[float, float]:
    if len_of(matrix) <= DENSE:
        return _largest(np.linalg.eigvals(matrix.toarray()))
    return _largest(_iterated(eigs, matrix))


def _iterated(solver: Callable[..., Array], matrix: Matrix) -> Array:
    try:
        return solver(matrix, k=2, which="LM", return_eigenvectors=False, v0=np.ones(len_of(matrix)), tol=1e-6)
    except ArpackNoConvergence as error:
        raise ArithmeticError("the second eigenvalue is too close to the first to be found") from error


def _largest(eigenvalues: Array) -> tuple[float, float]:
    sizes = np.sort(np.abs(eigenvalues))
    return float(sizes[-1]), float(sizes[-2])


def effective_neighbours(matrix: Matrix, decay: float = DECAY) -> float:
    """Number of peers whose noise one peer averages: 1 without mixing, N for the complete mean.

    n_W = (1 / (1 - decay)) / sum_k decay^k |W^(k + 1)|_F^2 / N

    Up to 256 peers exact, but for terms below 1e-6; beyond, with 64 random probes in place of the Frobenius norm.

    >>> round(effective_neighbours(np.full((4, 4), 0.25)), 4), round(effective_neighbours(np.eye(4)), 4)
    (4.0, 1.0)

    Source: T. Vogels, H. Hendrikx, M. Jaggi, Beyond spectral gap, arXiv 2206.03093 (2022), definition A.
    """
    peers = len_of(matrix)
    exact = peers <= EXACT
    walk: Array = np.eye(peers) if exact else np.random.default_rng(0).choice([-1.0, 1.0], (peers, PROBES))
    columns = peers if exact else PROBES * peers
    variance, weight = 0.0, 1.0
    while weight > 1e-6:
        walk = matrix @ walk
        variance += weight * float(np.vdot(walk, walk)) / columns
        weight *= decay
    settled = weight / (1 - decay) * float(np.vdot(walk, walk)) / columns
    return 1 / (1 - decay) / (variance + settled)


def len_of(matrix: Matrix) -> int:
    return int(matrix.shape[0])
